"""Score a bundled model on the test split: ``python -m topv.mini.score --questions 300``.

Every answer is generated, greedily, from the processor's own chat format. The image-blind score asks the same
questions about the next scene's image: what questions alone give away, and what is likely in any scene. With --json a
scoring that was cut short goes on behind the tasks that it had finished.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from topv.mini import MINI_PATH
from topv.mini.statistics import answer_score, gain_interval, mean_interval
from topv.scenes import SPLITS, TASKS, Geometry, Question, draw_scene, read_view

__all__ = ["answer_all", "collect", "main"]

_LONGEST = {"caption": 64, "description": 160}
_PER_SCENE = 2


@dataclass(frozen=True)
class Asked:
    """A question with the scene it is about, and the image of the scene drawn next."""

    scene: int
    image: Image.Image
    other: Image.Image
    question: Question


def collect(split: str, count: int, geometry: Geometry, start: int = 0) -> dict[str, list[Asked]]:
    """The first ``count`` questions of each task from a split, at most two of a task per scene."""
    found: dict[str, list[Asked]] = {task: [] for task in TASKS}
    seed, scene = start, draw_scene(start, split, geometry)
    while any(len(asked) < count for asked in found.values()):
        following = draw_scene(seed + 1, split, geometry)
        for task in TASKS:
            chosen = [q for q in scene.questions if q.task == task][:_PER_SCENE]
            room = count - len(found[task])
            found[task] += [Asked(seed, scene.image, following.image, q) for q in chosen[:room]]
        seed, scene = seed + 1, following
    return found


def answer_all(
    model: Any, processor: Any, pairs: Sequence[tuple[Image.Image, str]], longest: int, batch: int
) -> list[str]:
    """Greedy answers to (image, question) pairs, in order."""
    import torch

    answers: list[str] = []
    for first in range(0, len(pairs), batch):
        part = pairs[first : first + batch]
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}],
                add_generation_prompt=True,
            )
            for _, prompt in part
        ]
        inputs = processor(images=[image for image, _ in part], text=texts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**inputs.to(model.device), max_new_tokens=longest, do_sample=False)
        written = ids[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.batch_decode(written, skip_special_tokens=True)]
    return answers


def _score_task(model: Any, processor: Any, task: str, asked: list[Asked], batch: int) -> dict[str, Any]:
    longest = _LONGEST.get(task, 12)
    seen = answer_all(model, processor, [(a.image, a.question.prompt) for a in asked], longest, batch)
    blind = answer_all(model, processor, [(a.other, a.question.prompt) for a in asked], longest, batch)
    scores = [answer_score(task, answer, a.question.answer) for answer, a in zip(seen, asked, strict=True)]
    guesses = [answer_score(task, answer, a.question.answer) for answer, a in zip(blind, asked, strict=True)]
    by_size = defaultdict(list)
    for score, a in zip(scores, asked, strict=True):
        if a.question.target_size is not None:
            by_size[a.question.target_size].append(score)
    return {
        "task": task,
        "questions": len(asked),
        "score": mean_interval(scores),
        "blind": mean_interval(guesses),
        "gain": gain_interval(scores, guesses, [a.scene for a in asked]),
        "by_size": {size: (sum(s) / len(s), len(s)) for size, s in sorted(by_size.items())},
    }


def _row(result: dict[str, Any]) -> str:
    def cell(name: str) -> str:
        low, mean, high = (100 * value for value in result[name])
        return f"{mean:5.1f} [{low:.1f}, {high:.1f}]"

    sizes = ", ".join(f"{size} {100 * mean:.0f} ({n})" for size, (mean, n) in result["by_size"].items())
    cells = (result["task"], str(result["questions"]), cell("score"), cell("blind"), cell("gain"), sizes)
    return "| " + " | ".join(cells) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of accuracy per task, with the image and blind, with 95 % intervals."""
    parser = argparse.ArgumentParser(prog="python -m topv.mini.score", description=__doc__)
    parser.add_argument("--model", type=Path, default=MINI_PATH, help="model folder")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--questions", type=int, default=300, help="questions per task")
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--json", type=Path, help="keep the figures there, task by task")
    options = parser.parse_args(arguments)
    tasks = options.tasks.split(",")
    unknown = sorted(set(tasks) - set(TASKS))
    if unknown:
        raise ValueError(f"Unknown tasks {unknown}; expected some of {', '.join(TASKS)}.")
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(options.model, dtype=torch.float32, local_files_only=True)
    model.to(options.device)
    processor = AutoProcessor.from_pretrained(options.model, local_files_only=True)
    geometry = read_view(model.config, processor).geometry
    setup = {"weights": _digest(options.model), "split": options.split, "questions": options.questions}
    done = _finished(options.json, setup)
    asked = collect(options.split, options.questions, geometry)
    print("| task | questions | score, % | image-blind, % | gain, points | score by target size (questions) |")
    print("|---|---|---|---|---|---|")
    for task in tasks:
        if task not in done:
            done[task] = _score_task(model.eval(), processor, task, asked[task], options.batch)
            if options.json is not None:
                options.json.write_text(json.dumps({**setup, "tasks": list(done.values())}, indent=1) + "\n")
        print(_row(done[task]), flush=True)


def _digest(folder: Path) -> str:
    """Of all files of a model folder that hold weights."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _finished(path: Path | None, setup: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The tasks that an earlier scoring of the same model and questions has left in its file."""
    if path is None or not path.is_file():
        return {}
    held = json.loads(path.read_text())
    if {name: held.get(name) for name in setup} != setup:
        raise ValueError(f"{path} holds scores of another model, split or number of questions; give another --json.")
    return {result["task"]: result for result in held["tasks"]}


if __name__ == "__main__":
    main()
