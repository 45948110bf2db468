"""`topv bench` from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from topv.measure.bench_rows import read_rows

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--rounds", 2, "--warmup", 0, "--decode-steps", 2)


def test_a_saved_model_is_measured_and_the_rows_read_back(
    topv: Run, model_dir: Path, picture: Path, tmp_path: Path
) -> None:
    out, page, plot = tmp_path / "rows.csv", tmp_path / "page.md", tmp_path / "rows.png"
    command = ["bench", "--model", model_dir, "--image", picture, "--prompt", "w7 w8", "--methods", "topv,vtw:layer=3"]
    code, shown, err = topv(*command, "--keep", 0.5, 9, "--batch", 1, 2, *QUICK, "--attention", "eager", "--out", out)
    assert code == 0, err
    rows = read_rows(out)
    labels = ["none", "topv keep=0.5", "topv keep=9", "vtw layer=3"]
    assert [(row["batch"], row["method"]) for row in rows] == [(b, label) for b in ("1", "2") for label in labels]
    assert [row["kept_tokens"] for row in rows[:4]] == ["36", "18", "9", "0"]
    assert {row["attention"] for row in rows} == {"eager"}
    assert {row["device_type"] for row in rows} == {"cpu"}
    assert json.loads(rows[1]["settings"])["keep"] == 0.5
    assert rows[0]["command"].startswith("topv bench --model")
    for row in rows:
        # The median of two rounds is their mean, so that medians add up as well.
        stages = sum(float(row[f"{stage}_ms"]) for stage in ("encode", "before", "selection", "after", "rest"))
        assert stages == pytest.approx(float(row["prefill_ms"]), rel=1e-3)
    assert "Time, batch 2, 2 tokens after the first" in shown
    code, again, err = topv("bench", "--read", out, "--markdown", page, "--plot", plot)
    assert code == 0, err
    assert again == shown
    assert "| vtw layer=3 | 36 to 0 from layer 3 |" in page.read_text()
    assert plot.stat().st_size > 1000


def test_a_preset(topv: Run, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    preset = ["--preset", "qwen3-vl-cpu", "--layers", 4, "--image-size", 64, 96, "--text-tokens", 5]
    code, _, err = topv("bench", *preset, "--methods", "topv", "--rounds", 1, "--decode-steps", 0, "--out", out)
    assert code == 0, err
    plain, pruned = read_rows(out)
    assert json.loads(plain["config"]) == {"layers": 4, "image_size": [64, 96]}
    assert (plain["prompt_tokens"], plain["visual_tokens"], pruned["kept_tokens"]) == ("13", "6", "3")
    assert plain["decode_ms"] == ""
    assert float(pruned["flops_share"]) < 1


@pytest.mark.slow
def test_the_largest_batch_that_fits(topv: Run, model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    budget = ["--memory-gib", 4, "--max-batch", 3, "--methods", "topv"]
    code, shown, err = topv("bench", "--model", model_dir, "--prompt", "w7", *QUICK, *budget, "--out", out)
    assert code == 0, err
    rows = [row for row in read_rows(out) if row["memory_gib"]]
    assert [(row["method"], row["batch"], row["memory_gib"]) for row in rows] == [
        ("none", "3", "4"),
        ("topv keep=0.5", "3", "4"),
    ]
    assert all(0 < float(row["peak_gib"]) < 4 for row in rows)
    assert "3 (largest tried)" in shown
    code, _, err = topv("bench", "--model", model_dir, "--prompt", "w7", *QUICK, "--memory-gib", 0.00001)
    assert code == 2
    assert "not even one sample of none fits" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "llava"], "Did you mean"),
        (["--preset", "llava-cpu", "--tiles", 3], "cuts no tiles"),
        (["--preset", "llava-cpu", "--prompt", "x"], "do not go with it"),
        (["--tiles", 3], "--tiles shapes a preset"),
        (["--text-tokens", 3], "--text-tokens shapes a preset"),
        (["--methods", "topw"], "Did you mean 'topv'"),
        (["--read", "nowhere.csv"], "nowhere.csv"),
        (["--read", "a.csv", "--out", "b.csv"], "--read measures nothing"),
        (["--attention", "flash_attention_9"], "--attention 'flash_attention_9' cannot be used"),
    ],
)
def test_errors_are_one_clear_line(topv: Run, arguments: list[str], message: str) -> None:
    code, _, err = topv("bench", "--rounds", 1, *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["--memory-gib", "0"], ["--warmup", "-1"], ["--batch", "0"], ["--keep", "2.5"]])
def test_options_out_of_range(topv: Run, arguments: list[str]) -> None:
    assert topv("bench", *arguments)[0] == 2
