"""`topv eval` from the command line, on a handful of questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from topv.cli.main import main


def test_tables_and_answers_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, answers = tmp_path / "sub" / "results.md", tmp_path / "answers.json"
    command = ["eval", "--questions", "2", "--tasks", "counting,existence", "--methods", "vtw,uniform,topv:eps=0.2"]
    assert main([*command, "--reductions", "0.5", "--out", str(out), "--json", str(answers)]) == 0
    text = out.read_text()
    assert text.strip() in capsys.readouterr().out.replace("\r", "")
    assert "`topv eval --questions 2" in text
    assert "### 50% of visual FLOPs removed" in text
    for label in ("unpruned", "vtw", "uniform", "topv eps=0.2"):
        assert f"| {label} |" in text
    assert "| topv eps=0.2 (relaxed) |" in text
    found: dict[str, Any] = json.loads(answers.read_text())["answers"]
    assert set(found) == {"unpruned", "vtw@0.5", "uniform@0.5", "topv eps=0.2@0.5"}
    assert [len(found["unpruned"][task]) for task in ("counting", "existence")] == [2, 2]
    assert found["topv eps=0.2@0.5"]["counting"][0]["kept_tokens"] < 144


def test_methods_with_several_pruning_layers(tmp_path: Path) -> None:
    out, answers = tmp_path / "results.md", tmp_path / "answers.json"
    command = ["eval", "--questions", "2", "--tasks", "counting", "--methods", "pyramiddrop:layer=2,sparsevlm,fastv"]
    assert main([*command, "--reductions", "0.5", "--out", str(out), "--json", str(answers)]) == 0
    text, found = out.read_text(), json.loads(answers.read_text())["answers"]
    for label in ("pyramiddrop layer=2", "sparsevlm"):
        ran = found[f"{label}@0.5"]["counting"]
        assert all(abs(answer["visual_flops_reduction"] - 0.5) < 0.002 for answer in ran)
        assert f"| {label} | 144 -> {ran[0]['kept_tokens']} over several layers | -" in text
        # They keep no one share of the tokens, and so stay out of the foreground table.
        assert text.split("### Foreground kept")[1].count(f"| {label} |") == 0
    assert "| fastv |" in text.split("### Foreground kept")[1]


def test_clips_are_asked_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = tmp_path / "answers.json"
    command = ["eval", "--model", "tiled", "--frames", "3", "--questions", "2", "--tasks", "glimpse,existence"]
    command += ["--methods", "topv:budget=sample,framedifference", "--reductions", "0.5", "--json", str(answers)]
    assert main(command) == 0
    written = capsys.readouterr().out
    assert "# Accuracy on clips of 3 frames" in written
    assert "| framedifference minus | at 50% |" in written
    found: dict[str, Any] = json.loads(answers.read_text())["answers"]
    assert set(found) == {"unpruned", "topv budget=sample@0.5", "framedifference@0.5"}
    (asked,) = {answer["visual_tokens"] for task in found["unpruned"].values() for answer in task}
    assert asked == 3 * 80


def test_guesses_without_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, answers, work = tmp_path / "card.md", tmp_path / "answers.json", tmp_path / "work"
    command = ["eval", "--methods", "none", "--blind", "--questions", "4", "--tasks", "recognition,ocr"]
    command += ["--work", str(work), "--out", str(out), "--json", str(answers)]
    assert main(command) == 0
    text, found = out.read_text(), json.loads(answers.read_text())["answers"]
    assert text.strip() in capsys.readouterr().out.replace("\r", "")
    assert set(found) == {"unpruned", "image-blind"}
    assert "| recognition | 4 |" in text
    for task in ("recognition", "ocr"):
        seen, blind = found["unpruned"][task], found["image-blind"][task]
        assert [a["prompt"] for a in seen] == [a["prompt"] for a in blind]
        assert sum(a["score"] for a in seen) > sum(a["score"] for a in blind)
    # What is answered is not asked again.
    kept = work / "answers-0.jsonl"
    kept.write_text(kept.read_text().replace('"score": 1.0', '"score": 0.25'))
    assert main(command) == 0
    assert {a["score"] for task in json.loads(answers.read_text())["answers"]["unpruned"].values() for a in task} <= {
        0.0,
        0.25,
    }


def test_guesses_stand_beside_methods(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "--blind", "--questions", "2", "--tasks", "glimpse", "--frames", "2", "--model", "tiled"]
    assert main([*command, "--methods", "uniform", "--reductions", "0.5"]) == 0
    written = capsys.readouterr().out
    assert "### 50% of visual FLOPs removed" in written
    assert "| glimpse | 2 |" in written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "none"], "at least one method beside the unpruned model"),
        (["--methods", "none", "--blind", "--plot", "curve.png"], "--plot draws methods"),
        (["--methods", "pyramiddrop", "--reductions", "0.9"], "prune from an earlier layer"),
        (["--tasks", "countin"], "Did you mean 'counting'"),
        (["--frames", "2", "--tasks", "ocr"], "unknown task 'ocr'"),
        (["--methods", "topw"], "Did you mean 'topv'"),
        (["--methods", "vtw:layer=3"], "sets the layer of vtw"),
        (["--plot", "curve.xyz"], "expected a file that ends in .png, .svg, .pdf"),
        (["--reductions", "0.99"], "out of reach"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_errors_are_one_clear_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--questions", "1", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "arguments", [["--reductions", "0"], ["--reductions", "x"], ["--reductions", "0.5,0.5"], ["--questions", "0"]]
)
def test_options_out_of_range(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["eval", *arguments])
    assert stopped.value.code == 2
