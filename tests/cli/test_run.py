"""`topv run`: one row for each question, in their order, whatever the files are like and however often it is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from topv.ask.batch import BatchAsker
from topv.ask.job import JobItem, plan_batches, read_items
from topv.cli.job_progress import ProgressLines
from topv.errors import InputError
from topv.images import open_image
from topv.loading import load_model

ROW = {"image", "prompt", "answer", "visual_tokens", "kept_tokens", "error"}


def draw(path: Path, size: tuple[int, int] = (24, 24), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five good images of three sizes, and five files that are none."""
    folder = tmp_path / "photos"
    for index, size in enumerate([(24, 24), (200, 100), (24, 24), (25, 24), (200, 101)]):
        draw(folder / f"{index}.png", size, seed=index)
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("not an image")
    whole = draw(folder / "whole.png", (90, 90)).read_bytes()
    (folder / "whole.png").rename(folder / "cut.png")
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    draw(folder / "strip.png", (1000, 2))
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "notes.txt").write_text("left alone")
    return folder


def test_bad_files_are_rows_and_the_others_are_answered(topv, model_dir, photos, tmp_path):
    out = tmp_path / "out" / "answers.jsonl"
    out.parent.mkdir()
    command = ("run", photos, "--prompt", "w8 w9", "--out", out, "--model", model_dir, "--device", "cpu")
    code, printed, err = topv(*command, "--keep", 0.25, "--max-new-tokens", 3, "--batch-size", 3)
    assert (code, printed) == (0, "")
    assert "10 rows, 5 of them with an error" in err
    found = rows(out)
    assert [Path(row["image"]).name for row in found] == sorted(
        [f"{index}.png" for index in range(5)] + ["cut.png", "empty.png", "gone.png", "strip.png", "text.jpg"]
    )
    assert all(set(row) == ROW and row["prompt"] == "w8 w9" for row in found)
    errors = {Path(row["image"]).name: row["error"] for row in found if row["error"] is not None}
    for name, reason in {
        "cut.png": "damaged", "empty.png": "empty (0 bytes)", "gone.png": "does not exist", "strip.png": "200 times",
        "text.jpg": "not an image",
    }.items():  # fmt: skip
        assert reason in errors.pop(name)
    assert not errors
    for row in found:
        counts = (row["visual_tokens"], row["kept_tokens"])
        assert counts == ((36, 9) if row["error"] is None else (None, None))
        assert (row["answer"] is None) == (row["error"] is not None)


def test_answers_are_those_of_each_question_alone(topv, model_dir, photos, tmp_path):
    """Questions of different lengths in one batch, so that padding would show."""
    out, lines = tmp_path / "answers.jsonl", tmp_path / "photos" / "questions.jsonl"
    asked = [("w8", 0), ("w8 w9 w10 w11 w12", 2), ("w9", 3), ("w13 w8", 2)]
    records = [{"image": f"{place}.png", "prompt": prompt, "id": [place]} for prompt, place in asked]
    lines.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    command = ("run", lines, "--out", out, "--model", model_dir, "--device", "cpu", "--max-new-tokens", 5)
    assert topv(*command, "--method", "fastv", "--keep", 9)[0] == 0
    found = rows(out)
    assert [(row["image"], row["prompt"], row["id"]) for row in found] == [
        (record["image"], record["prompt"], record["id"]) for record in records
    ]
    for row in found:
        code, alone, _ = topv(
            "generate", "--model", model_dir, "--image", photos / row["image"], "--prompt", row["prompt"],
            "--method", "fastv", "--keep", 9, "--max-new-tokens", 5, "--device", "cpu",
        )  # fmt: skip
        assert (code, alone) == (0, row["answer"] + "\n")
    assert len({row["answer"] for row in found}) > 1, "answers that are all alike would show nothing"


def test_a_batch_that_fails_is_asked_again_one_by_one(model_dir, photos, monkeypatch):
    model, processor = load_model(model_dir, device="cpu")
    generate, batches = model.generate, []

    def too_large(**inputs: Any) -> torch.Tensor:
        batches.append(len(inputs["input_ids"]))
        if batches[-1] > 1:
            raise torch.OutOfMemoryError("no room")
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", too_large)
    items = [JobItem(f"{index}.png", photos / f"{index}.png", "w8") for index in range(2)]
    items.append(JobItem("3.png", photos / "3.png", "<image> w8"))
    items.append(JobItem("4.png", photos / "4.png", "  "))
    with BatchAsker(model, processor, None, max_new_tokens=2) as asker:
        found = asker.ask(items)
        assert batches == [1, 1], "four cannot be prepared together, each alone can or cannot"
        assert [row["error"] is None for row in found] == [True, True, False, False]
        assert "placeholder '<image>'" in found[2]["error"]
        assert "prompt is empty" in found[3]["error"]
        assert found[0]["visual_tokens"] == found[0]["kept_tokens"] == 36
        batches.clear()
        assert all(row["error"] is None for row in asker.ask(items[:2]))
        assert batches == [2, 1, 1]


def test_what_is_nobodys_fault_ends_the_job(model_dir, photos, monkeypatch):
    model, processor = load_model(model_dir, device="cpu")

    def broken(**inputs: Any) -> torch.Tensor:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(model, "generate", broken)
    with BatchAsker(model, processor, None, max_new_tokens=2) as asker, pytest.raises(RuntimeError, match="gone"):
        asker.ask([JobItem("0.png", photos / "0.png", "w8")])


def test_images_of_like_size_share_a_batch(photos):
    items = read_items([str(photos)], "what?")
    names = [[Path(items[place].image or "").name for place in batch] for batch in plan_batches(items, 3)]
    # The header of cut.png is whole; what follows it is found out when it is opened.
    *readable, bad = names
    assert readable == [["0.png", "2.png", "3.png"], ["strip.png"], ["cut.png"], ["1.png", "4.png"]]
    assert bad == ["empty.png", "gone.png", "text.jpg"]


def test_sources(tmp_path, photos):
    (tmp_path / "a.jsonl").write_text(
        '\ufeff{"image": "photos/0.png"}\r\n\n{"image": 3}\nnot json\n[1]\n{"image": "photos/1.png", "prompt": 7}\n'
        f'{{"image": "{photos}/2.png", "prompt": "own"}}',
        encoding="utf-8",
    )
    items = read_items([str(photos / "[01].png"), str(photos / "2.png"), str(tmp_path / "a.jsonl")], "what?")
    assert [item.path for item in items if item.fault is None] == [photos / f"{i}.png" for i in (0, 1, 2, 0, 2)]
    assert [item.prompt for item in items if item.fault is None] == ["what?"] * 4 + ["own"]
    faults = [item.fault for item in items if item.fault is not None]
    for fault, expected in zip(
        faults, ["line 3 of a.jsonl names no image", "line 4 of a.jsonl is not JSON", "line 5", "line 6"], strict=True
    ):
        assert expected in fault
    assert [Path(item.image or "").name for item in read_items([str(tmp_path / "**" / "4.png")], "x")] == ["4.png"]


@pytest.mark.parametrize(
    ("source", "message"),
    [("nowhere", "holds nothing"), ("empty", "holds nothing"), ("bytes.jsonl", "no UTF-8"), ("none.jsonl", "No such")],
)
def test_sources_that_cannot_be_read(tmp_path, source, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=message):
        read_items([str(tmp_path / source)], "what?")


def test_images_without_a_question_are_refused(topv, photos, tmp_path):
    code, _, err = topv("run", photos, "--out", tmp_path / "a.jsonl")
    assert code == 2
    assert "--prompt is missing" in err


def test_a_file_of_someone_elses_is_not_overwritten(topv, model_dir, photos, tmp_path):
    out = tmp_path / "answers.jsonl"
    out.write_text("precious")
    code, _, err = topv("run", photos, "--prompt", "w8", "--out", out, "--model", model_dir)
    assert (code, out.read_text()) == (2, "precious")
    assert "there already" in err


def test_a_finished_job_is_not_done_again_and_another_is_told(topv, model_dir, photos, tmp_path):
    out = tmp_path / "answers.jsonl"
    command = ("run", photos / "0.png", "--prompt", "w8", "--out", out, "--model", model_dir, "--max-new-tokens", 1)
    assert topv(*command)[0] == 0
    before = out.stat().st_mtime_ns
    assert topv(*command)[0] == 0
    assert out.stat().st_mtime_ns == before
    code, _, err = topv(*command, "--method", "none")
    assert code == 2
    assert "method: " in err
    assert "'none' now" in err


def test_files_may_change_while_a_job_is_down(topv, model_dir, photos, tmp_path, monkeypatch):
    out, asked = tmp_path / "answers.jsonl", []
    ask = BatchAsker.ask

    def interrupted(self: BatchAsker, items: list[JobItem]) -> list[dict[str, Any]]:
        if len(asked) == 1:
            raise KeyboardInterrupt
        asked.append([Path(item.image or "").name for item in items])
        return ask(self, items)

    command = ("run", photos, "--prompt", "w8", "--out", out, "--model", model_dir, "--max-new-tokens", 1)
    monkeypatch.setattr(BatchAsker, "ask", interrupted)
    assert topv(*command, "--batch-size", 2)[0] == 130
    assert asked == [["0.png", "2.png"]]
    assert not out.exists()
    code, _, err = topv(*command, "--batch-size", 3)
    assert code == 2
    assert "batch_size: 2 there, 3 now" in err
    monkeypatch.setattr(BatchAsker, "ask", ask)
    draw(photos / "0.png", (400, 300))
    draw(photos / "1.png", (24, 24))
    draw(photos / "empty.png")
    (photos / "4.png").write_bytes(b"spoilt")
    assert topv(*command, "--batch-size", 2)[0] == 0
    found = {Path(row["image"]).name: row["error"] for row in rows(out)}
    assert [name for name, error in found.items() if error is None] == ["0.png", "1.png", "2.png", "3.png", "empty.png"]
    assert json.loads((tmp_path / "answers.jsonl.work" / "plan.json").read_text())[0] == [0, 2]
    assert list((tmp_path / "answers.jsonl.work").glob("answers-*")) == []


def test_not_one_answer_is_a_failure(topv, model_dir, photos, tmp_path):
    command = ("run", photos / "text.jpg", "--prompt", "w8", "--out", tmp_path / "a.jsonl", "--model", model_dir)
    assert topv(*command)[0] == 1


def test_a_file_over_the_limit_is_not_read(tmp_path):
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=r"1,099,511,627,776 bytes, more than the limit"):
        open_image(path)


def test_progress_says_how_long_the_rest_will_take(capsys):
    now = iter([0.0, 10.0, 40.0, 50.0, 60.0])
    advance = ProgressLines("Answering", 100, 50, file=sys.stdout, clock=lambda: next(now))
    for steps in (5, 15, 5, 25):
        advance(steps)
    assert capsys.readouterr().out == "Answering: 70 of 100, 0:01:00 left\nAnswering: 100 of 100, 0:00:00 left\n"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[dict[str, Any]]]:
    """A job of 200 small images, three of them bad, and its rows when nothing disturbs it."""
    from topv.cli.main import main

    folder = tmp_path_factory.mktemp("job")
    for index in range(200):
        side = 16 + 8 * (index % 3)
        draw(folder / "images" / f"{index:03}.png", (side, side), seed=index)
    for index in (3, 77, 150):
        (folder / "images" / f"{index:03}.png").write_bytes(b"spoilt")
    command = ["run", str(folder / "images"), "--prompt", "what is written?", "--keep", "0.1"]
    command += ["--max-new-tokens", "2"]
    out = folder / "answers.jsonl"
    assert main([*command, "--out", str(out)]) == 0
    found = rows(out)
    assert sum(row["error"] is not None for row in found) == 3
    assert len({row["answer"] for row in found}) > 2
    return command, found


@pytest.mark.slow
def test_two_hundred_images_killed_five_times(tmp_path, job):
    command, whole = job
    out, random_ = tmp_path / "answers.jsonl", random.Random(8)
    store = tmp_path / "answers.jsonl.work" / "answers-0.jsonl"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    kept: list[str] = []
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-m", "topv", *command, "--out", str(out)], env=environment, stderr=subprocess.DEVNULL
        )
        wanted, deadline = len(kept) + random_.randrange(0, 5), time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and len(lines(store)) < wanted:
            time.sleep(0.005)
        time.sleep(random_.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the job ended before it was killed"
        assert not out.exists()
        assert lines(store)[: len(kept)] == kept, "what was answered is kept as it is"
        kept = lines(store)
    assert kept, "the job got somewhere before the last kill"
    assert subprocess.run([sys.executable, "-m", "topv", *command, "--out", str(out)], env=environment).returncode == 0
    assert rows(out) == whole


def lines(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1] if path.exists() else []


@pytest.mark.slow
def test_two_processes_share_a_job(topv, model_dir, photos, tmp_path):
    command = ["run", str(photos), "--prompt", "w8 w9", "--model", str(model_dir), "--device", "cpu"]
    command += ["--batch-size", "2", "--max-new-tokens", "3"]
    alone, shared = tmp_path / "alone.jsonl", tmp_path / "shared.jsonl"
    assert topv(*command, "--out", alone)[0] == 0
    launch = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--main_process_port", "0"]
    called = [sys.executable, "-m", "accelerate.commands.launch", *launch, "-m", "topv", *command, "--out", str(shared)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(called, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert rows(shared) == rows(alone)
    assert done.stderr.count("Answering: ") == 2, "both took part"
