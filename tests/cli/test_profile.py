"""`topv profile` from end to end on a tiny model."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tiny_models import TOKENS
from topv.cli.main import main
from topv.cli.resident_worker import measure_resident
from topv.errors import InputError
from topv.loading import load_model
from topv.measure import static_bytes

LAYERS, ENTRY = 5, 2 * 2 * 8 * 4
COLUMNS = {
    "image", "prompt", "arm", "step", "static_bytes", "dynamic_bytes", "kv_bytes", "peak_bytes", "source",
    "resident_bytes", "resident_peak_bytes", "resident_once_bytes", "resident_source", "model", "class", "dtype",
    "attention", "logits", "device", "topv", "torch", "transformers", "date",
}  # fmt: skip


@pytest.fixture
def profile(topv, model_dir, picture, tmp_path):
    """Profiles the picture, and returns what was printed and the rows of the CSV by arm."""

    def run(*arguments):
        folder = tmp_path / "out"
        code, out, err = topv(
            "profile", "--model", model_dir, "--image", picture, "--prompt", "w8 w9", "--device", "cpu",
            "--max-new-tokens", 3, "--no-resident", "--out", folder, *arguments,
        )  # fmt: skip
        assert code == 0, err
        with (folder / "memory.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        arms = {row["arm"]: [r for r in rows if r["arm"] == row["arm"]] for row in rows}
        return out, arms

    return run


def test_rows_of_every_arm_and_token(profile, model_dir):
    _, arms = profile("--keep", "0.25")
    assert list(arms) == ["none", "fastv keep=0.25 attention=full", "fastv keep=0.25", "topv keep=0.25"]
    model, _ = load_model(model_dir, device="cpu")
    length = 5 + TOKENS - 1
    for label, rows in arms.items():
        assert all(set(row) == COLUMNS for row in rows)
        assert [int(row["step"]) for row in rows] == [1, 2, 3]
        assert {int(row["static_bytes"]) for row in rows} == {static_bytes(model)}
        entries = LAYERS * length - (0 if label == "none" else 3 * (TOKENS - TOKENS // 4))
        assert [int(row["kv_bytes"]) for row in rows] == [(entries + LAYERS * step) * ENTRY for step in range(3)]
        assert all(int(row["kv_bytes"]) < int(row["dynamic_bytes"]) <= int(row["peak_bytes"]) for row in rows)
        assert {(row["source"], row["logits"], row["torch"]) for row in rows} == {
            ("live tensors", "last", torch.__version__)
        }


def test_the_table_says_how_far_memory_fell(profile, tmp_path):
    out, arms = profile("--methods", "topv,fastv", "--keep", "0.25", "--largest", "2")
    assert list(arms) == ["none", "topv keep=0.25", "fastv keep=0.25"], "the unpruned model is always there"
    ours, whole, fastv = (
        int(arms[label][-1]["dynamic_bytes"]) for label in ("topv keep=0.25", "none", "fastv keep=0.25")
    )
    page = (tmp_path / "out" / "memory.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith("| topv keep=0.25 |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    header = [cell.strip() for cell in page.split("| arm |")[1].splitlines()[0].strip("|").split("|")]
    row = dict(zip(header, cells[1:], strict=False))
    assert row["visual tokens"] == "36 → 9"
    to_none, to_fastv = (cells[1 + i] for i, name in enumerate(header) if name.startswith("to ") and i > 3)
    assert to_none == f"−{100 * (1 - ours / whole):.1f} %"
    assert to_fastv.lstrip("−+") == f"{100 * abs(1 - ours / fastv):.1f} %"
    fell = 3 * (TOKENS - TOKENS // 4) * ENTRY
    assert row["KV by formula"] == f"−{100 * fell / (LAYERS * (4 + TOKENS) * ENTRY):.1f} %"
    assert row["fall / KV's"] == f"{(whole - ours) / fell:.3f}"
    assert "`topv profile --model" in page
    assert "the largest at the peak of topv keep=0.25" in out
    assert "made by aten." in out


def test_full_logits_in_every_arm(profile):
    last = profile("--methods", "none,topv")[1]
    full = profile("--methods", "none,topv", "--full-logits")[1]
    for arm, rows in full.items():
        assert {row["logits"] for row in rows} == {"full"}
        more = int(rows[0]["dynamic_bytes"]) - int(last[arm][0]["dynamic_bytes"])
        assert more == (4 + TOKENS - 1) * 96 * 4


def test_a_plot(profile, tmp_path):
    out, _ = profile("--plot", "--methods", "none,topv,random")
    picture = tmp_path / "out" / "memory.png"
    assert f"Wrote {picture}" in out
    assert Image.open(picture).size > (400, 400)


def test_the_papers_figures(topv, model_dir, tmp_path):
    folder = tmp_path / "figures"
    code, out, err = topv(
        "profile", "--model", model_dir, "--device", "cpu", "--paper-figures", "--out", folder, "--max-new-tokens", 2,
        "--no-resident",
    )  # fmt: skip
    assert code == 0, err
    names = {f"figure-{number}.png" for number in (3, 6, 7, 8, 9, 10, 11)}
    assert {path.name for path in folder.iterdir()} == {"memory.csv", "memory.md", *names}
    sizes = {Image.open(folder / name).size for name in names - {"figure-3.png"}}
    assert len(sizes) == 1
    page = (folder / "memory.md").read_text(encoding="utf-8")
    for published in ("45.6 %", "52.7 %", "43.2 %", "43.7 %", "1.8 GB to 0.98 GB", "49-61 %", "AI2D", "OCRBench"):
        assert published in page
    assert "task diagram" in out
    assert "task ocr" in out
    for name, share in (("topv", 0.48), ("fastv", 0.47)):
        assert f"{name} visual_flops={share}" in out


def test_published_reductions_follow_from_the_published_memory():
    from topv.report.memory_paper import BENCHMARKS

    for benchmark in BENCHMARKS:
        for name, share in benchmark.reductions.items():
            assert 1 - benchmark.gigabytes["topv"] / benchmark.gigabytes[name] == pytest.approx(share, abs=1e-3)


def test_resident_memory_of_a_fresh_process(model_dir, picture):
    found = measure_resident(
        {
            "model": str(model_dir), "dtype": "auto", "image": str(picture), "prompt": "w8", "method": "topv:keep=0.25",
            "new_tokens": 3, "full_logits": False, "threads": 1,
        }
    )  # fmt: skip
    assert [step for step, *_ in found["samples"]] == [1, 2, 3]
    kv = [kv for _, _, kv, _ in found["samples"]]
    assert kv == [(LAYERS * (3 + TOKENS) - 3 * 27 + LAYERS * step) * ENTRY for step in range(3)]
    # A tiny model's own memory drowns in pages; what libraries keep from the first run does not.
    assert 2**20 < found["once"] < 2**28
    assert all(abs(dynamic) < 2**24 for _, dynamic, _, _ in found["samples"])


def test_a_failed_process_is_one_clear_message(monkeypatch):
    done = SimpleNamespace(returncode=3, stdout="", stderr="first\nno room left")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: done)
    with pytest.raises(InputError, match=r"'topv' could not be measured.* 3 \(no room left\).*--no-resident"):
        measure_resident({"method": "topv"})


def test_resident_memory_reaches_the_table(topv, model_dir, picture, tmp_path, monkeypatch):
    jobs = []

    def measured(job):
        jobs.append(job)
        return {"static": 1, "once": 2 * 2**20, "source": "resident memory", "samples": [(1, 5, 3, 3 * 2**20)]}

    monkeypatch.setattr("topv.cli.resident_worker.measure_resident", measured)
    code, out, err = topv(
        "profile", "--model", model_dir, "--image", picture, "--prompt", "w8", "--max-new-tokens", 1, "--device", "cpu",
        "--methods", "fastv:attention=full,layer=3", "--keep", "8", "--out", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    assert "3.0 MiB + 2.0 MiB once" in out
    assert jobs[0]["method"] == "none"
    name, settings = jobs[1]["method"].split(":")
    assert name == "fastv"
    assert {"keep=8", "layer=3", "attention=full"} <= set(settings.split(","))
    assert f",3145728,{2 * 2**20},resident memory," in (tmp_path / "memory.csv").read_text()
    json.dumps(jobs)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--plot"], "--plot needs --out"),
        (["--paper-figures"], "--paper-figures needs --out"),
        (["--paper-figures", "--out", "x", "--prompt", "w8"], "leave out --image"),
        (["--paper-figures", "--out", "x", "--methods", "topv"], "add fastv"),
        (["--samples", "2", "--image", "x.png"], "--samples"),
        (["--memory-history", "--out", "x", "--samples", "1"], "CUDA"),
        (["--out", "/dev/null"], "cannot be written"),
        (["--methods", "topw"], "Did you mean 'topv'"),
        (["--max-new-tokens", "0"], "at least 1"),
    ],
)
def test_bad_input_is_one_clear_message(topv, model_dir, arguments, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = topv("profile", "--model", model_dir, "--device", "cpu", "--no-resident", *arguments)
    assert code == 2
    assert out == ""
    assert part in err.splitlines()[-1]
    assert "Traceback" not in err


def test_without_matplotlib(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["profile", "--plot", "--out", str(tmp_path)]) == 2
    assert "pip install 'topv[plot]'" in capsys.readouterr().err
