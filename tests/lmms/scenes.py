"""The bundled questions as local lmms-eval tasks, and runs of both evaluations on them."""

from __future__ import annotations

import json
import os
import shutil
import string
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from topv.evaluate import Example

TASK = Path(__file__).parent / "task"
LONGEST = {"caption": 64}
"""New tokens that `topv eval` lets a model write, by task; 12 elsewhere."""


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found on one task.

    Attributes:
        score: the task's score, as the evaluation itself reports it or means it.
        answers: what the model wrote, in the order of the questions.
    """

    score: float
    answers: list[str]


def write_tasks(folder: Path, examples: Mapping[str, Sequence[Example]]) -> None:
    """Save `examples` as data sets, and one lmms-eval task for each under `folder / "tasks"`, named topv_TASK."""
    from datasets import Dataset, DatasetDict

    tasks = folder / "tasks"
    tasks.mkdir()
    shutil.copy(TASK / "utils.py", tasks)
    template = string.Template((TASK / "scenes.yaml").read_text())
    for task, found in examples.items():
        rows = [{"task": e.task, "image": e.image, "prompt": e.prompt, "answer": e.answer} for e in found]
        DatasetDict({"test": Dataset.from_list(rows)}).save_to_disk(str(folder / task))
        (tasks / f"{task}.yaml").write_text(
            template.substitute(task=task, dataset=folder / task, longest=LONGEST.get(task, 12))
        )


def run(arguments: Sequence[str], folder: Path) -> str:
    """Run a module of this interpreter without any network, and return what it wrote."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**os.environ, **offline},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def topv_eval(folder: Path, tasks: Sequence[str], questions: int, reduction: float) -> tuple[dict[str, dict], int]:
    """Run `topv eval` on the model in `folder / "model"`.

    Returns:
        The outcomes by task of "unpruned" and of "topv", and how many visual tokens topv kept.
    """
    command = ["topv", "eval", "--model", "./model", "--methods", "topv", "--reductions", str(reduction)]
    command += ["--tasks", ",".join(tasks), "--questions", str(questions), "--batch-size", "1", "--no-foreground"]
    run([*command, "--device", "cpu", "--json", "answers.json"], folder)
    records = json.loads((folder / "answers.json").read_text())["answers"]
    outcomes: dict[str, dict] = {}
    for key, by_task in records.items():
        outcomes[key.partition("@")[0]] = {
            task: Outcome(sum(a["score"] for a in found) / len(found), [a["answer"] for a in found])
            for task, found in by_task.items()
        }
    pruned = [by_task for key, by_task in records.items() if key != "unpruned"]
    (kept,) = {answer["kept_tokens"] for by_task in pruned for found in by_task.values() for answer in found}
    return outcomes, kept


def lmms_eval(
    folder: Path, tasks: Sequence[str], model_args: str, *, name: str, options: Sequence[str] = ()
) -> tuple[dict[str, Outcome], str, str]:
    """Run `lmms-eval --model topv` on the model in `folder / "model"`.

    Returns:
        The outcomes by task, the class that lmms-eval says it has run and its form, and what was written.
    """
    command = ["lmms_eval", "--model", "topv", "--model_args", f"pretrained={folder / 'model'},{model_args}"]
    command += ["--device", "cpu", "--tasks", ",".join(f"topv_{task}" for task in tasks)]
    command += ["--include_path", str(folder / "tasks"), "--output_path", name, "--log_samples", *options]
    written = run(command, folder)
    found = list((folder / name).rglob("*_results.json"))
    assert len(found) == 1, written
    report = json.loads(found[0].read_text())
    outcomes = {}
    for task in tasks:
        (path,) = (folder / name).rglob(f"*_samples_topv_{task}.jsonl")
        samples = sorted(map(json.loads, path.read_text().splitlines()), key=lambda sample: sample["doc_id"])
        answers = [sample["filtered_resps"].strip() for sample in samples]
        outcomes[task] = Outcome(report["results"][f"topv_{task}"]["score,none"], answers)
    return outcomes, report["config"]["model_backend"], written
