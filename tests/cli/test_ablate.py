"""`topv ablate` from the command line, and the sweeps by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

import topv
from topv.cli.main import main
from topv.errors import InputError
from topv.evaluate import SWEEPS, nearest, sweep


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_varies_what_it_is_named_after(name: str) -> None:
    variants = sweep(name, topv.TopV(beta=0.5))
    labels = [label for label, _ in variants]
    assert len(set(labels)) == len(labels) >= 2
    assert len({repr(method) for _, method in variants}) == len(variants)
    if name in ("recovery", "beta", "sigma", "layer", "target"):
        others = {
            repr(method.with_budget(keep=0.5)).replace(f"{name}={getattr(method, name)!r}", "")
            for _, method in variants
        }
        assert len(others) == 1, "nothing else differs"


def test_the_stage_brings_its_layer() -> None:
    assert [method.layer for _, method in sweep("stage", topv.TopV())] == [2, 0, 0]


@pytest.mark.parametrize(
    ("name", "reads", "label"),
    [("eps", {"importance": "demand"}, "demand, eps=0.05"), ("sigma", {"beta": 1.0}, "beta=1, sigma=0.5")],
)
def test_what_the_base_does_not_read_is_varied_where_it_is_read(
    name: str, reads: dict[str, object], label: str
) -> None:
    variants = sweep(name, topv.TopV())
    assert variants[0][0] == label
    for _, method in variants:
        assert {key: getattr(method, key) for key in reads} == reads
    told = sweep(name, topv.TopV(**reads))
    assert [method for _, method in told] == [method for _, method in variants]
    assert told[0][0] == label.split(", ")[1]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("layer", "layer=2"),
        ("reading", "coverage"),
        ("stage", "stage=decoder"),
        ("eps", "demand, eps=0.3"),
        ("sigma", "beta=1, sigma=3"),
    ],
)
def test_differences_are_taken_to_the_variant_nearest_the_base(name: str, label: str) -> None:
    assert nearest(sweep(name, topv.TopV()), topv.TopV()) == label


def test_unknown_sweeps_are_told() -> None:
    with pytest.raises(InputError, match="Did you mean 'sigma'"):
        sweep("sigm", topv.TopV())


def test_a_base_that_a_sweep_cannot_vary_is_told_with_both() -> None:
    with pytest.raises(InputError, match=r"sweep 'stage' cannot start from TopV\(.*target='mlp'"):
        sweep("stage", topv.TopV(target="mlp"))


def test_tables_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ablations.md"
    base = "topv:beta=1.0,recovery=0.3"
    command = ["ablate", "recovery", "--questions", "2", "--tasks", "existence", "--base", base]
    assert main([*command, "--out", str(out), "--plot", str(tmp_path), "--work", str(tmp_path / "work")]) == 0
    text = out.read_text()
    assert text.strip() in capsys.readouterr().out
    assert "## recovery" in text
    assert "Questions: 2 of the validation split" in text
    assert text.count("| recovery=") == 6
    assert "| mean - recovery=0.3 |" in text
    without = [
        line.split(" | ")[0] for line in text.splitlines() if line.startswith("| recovery=") and " |  | " in line
    ]
    assert without == ["| recovery=0.3"]
    assert "![mini: recovery](ablation-recovery.png)" in text
    assert (tmp_path / "ablation-recovery.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recoveri"], "Did you mean 'recovery'"),
        (["beta", "--base", "fastv"], "expected one topv"),
        (["beta", "--reduction", "1.5"], "between 0 and 1"),
        (["beta", "--base", "topv:keep=0.1"], "--reduction sets the budget"),
        (["all", "beta", "--plot", "/proc/version"], "cannot be a folder to write in"),
    ],
)
def test_errors_are_one_clear_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_answers_to_other_questions_are_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ablate", "normalize", "--work", str(tmp_path), "--tasks"]
    assert main([*command, "existence,recognition", "--questions", "1"]) == 0
    assert main([*command, "existence", "--questions", "2"]) == 2
    error = capsys.readouterr().err
    assert "tasks: ['existence', 'recognition'] there, ['existence'] now" in error
