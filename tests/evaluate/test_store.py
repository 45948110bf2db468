"""Answers on disk: what a kill leaves, what another setup is told, and several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import topv
from topv.cli.main import main
from topv.errors import InputError
from topv.evaluate import AnswerStore, setup_of

SETUP = {"model": "mini", "questions": 4}
COMMAND = [
    "eval",
    "--questions",
    "6",
    "--tasks",
    "counting,existence",
    "--methods",
    "uniform,topv",
    "--batch-size",
    "3",
]
COMMAND += ["--reductions", "0.5", "--no-foreground"]


def test_what_was_added_is_read_again(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, SETUP)
    store.add("a", 0, [{"answer": "x\ny"}])
    store.add("b", 1, [])
    store.close()
    other = AnswerStore(tmp_path, SETUP, process=1)
    other.add("a", 1, [{"answer": "z"}])
    assert other.read() == {("a", 0): [{"answer": "x\ny"}], ("b", 1): [], ("a", 1): [{"answer": "z"}]}


def test_a_line_cut_short_does_not_count_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, SETUP)
    store.add("a", 0, [{"answer": "x"}])
    store.add("a", 1, [{"answer": "y"}])
    store.close()
    path = tmp_path / "answers-0.jsonl"
    path.write_text(path.read_text()[:-4])
    store = AnswerStore(tmp_path, SETUP)
    assert set(store.read()) == {("a", 0)}
    store.add("a", 1, [{"answer": "z"}])
    assert store.read()["a", 1] == [{"answer": "z"}]


def test_another_setup_is_refused_and_named(tmp_path: Path) -> None:
    AnswerStore(tmp_path, SETUP).close()
    with pytest.raises(InputError, match=r"questions: 4 there, 5 now"):
        AnswerStore(tmp_path, {**SETUP, "questions": 5})
    (tmp_path / "setup.json").write_text("{")
    with pytest.raises(InputError, match="not what topv wrote"):
        AnswerStore(tmp_path, SETUP)
    with pytest.raises(InputError, match="cannot keep answers"):
        AnswerStore(tmp_path / "setup.json" / "x", SETUP)


def answers(path: Path) -> Any:
    return json.loads(path.read_text())["answers"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The answers of one undisturbed run."""
    path = tmp_path_factory.mktemp("whole") / "answers.json"
    assert main([*COMMAND, "--json", str(path)]) == 0
    return answers(path)


@pytest.mark.slow
def test_a_killed_run_loses_and_repeats_nothing(tmp_path: Path, whole: Any) -> None:
    work, out = tmp_path / "work", tmp_path / "answers.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "topv", *COMMAND, "--work", str(work), "--json", str(out)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    path, deadline = work / "answers-0.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= 2:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = path.read_text().splitlines()
    assert 2 <= len(before) < 12
    assert main([*COMMAND, "--work", str(work), "--json", str(out)]) == 0
    after = path.read_text().splitlines()
    assert len({(record["configuration"], record["batch"]) for record in map(json.loads, after)}) == len(after) == 12
    assert answers(out) == whole


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path, whole: Any) -> None:
    out = tmp_path / "answers.json"
    launch = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--main_process_port", "0"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch, "-m", "topv", *COMMAND]
    command += ["--work", str(tmp_path / "work"), "--json", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    written = [len(path.read_text().splitlines()) for path in sorted((tmp_path / "work").glob("answers-*.jsonl"))]
    assert len(written) == 2
    assert min(written) > 0, "both took part"
    assert answers(out) == whole


def test_other_weights_are_another_setup() -> None:
    model = topv.load_mini()[0]
    given: dict[str, Any] = {"name": "m", "split": "test", "tasks": ["ocr"], "questions": 1, "batch_size": 1}
    before = setup_of(model, [], **given)
    assert setup_of(topv.load_mini()[0], [], **given) == before
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    assert {name for name, value in setup_of(model, [], **given).items() if value != before[name]} == {"weights"}
