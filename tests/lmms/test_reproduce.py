"""A recipe on a checkpoint, through the stock lmms-eval."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

import topv
from topv.evaluate import answer_examples, bundled_examples
from topv.mini import load_mini

if find_spec("lmms_eval") is None:
    pytest.skip("lmms-eval is not installed: `make test-lmms` runs these", allow_module_level=True)

from lmms.scenes import run, write_tasks

QUESTIONS = 4


def test_a_recipe_runs_through_the_bridge(tmp_path: Path) -> None:
    model, processor = load_mini()
    checkpoint = tmp_path / "checkpoints" / "LLaVA-v1.5-7B"
    model.save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    examples = bundled_examples("test", QUESTIONS, ("ocr",))
    write_tasks(tmp_path, examples)
    figure = {"model": "LLaVA-v1.5-7B", "method": "TopV", "quantity": "topv_ocr", "value": 61.5, "where": "by hand"}
    (tmp_path / "figures.json").write_text(json.dumps([figure]))
    command = ["topv", "reproduce", "llava", "--tasks", "topv_ocr", "--include-path", str(tmp_path / "tasks")]
    command += ["--questions", str(QUESTIONS), "--device", "cpu", "--published", "figures.json"]
    command += ["--out", "page.md", "--json", "page.json"]
    run(command, tmp_path)
    record = json.loads((tmp_path / "page.json").read_text())
    assert record["ran_on"] == "checkpoints"
    found = record["measured"]["LLaVA-v1.5-7B"]
    assert list(found) == ["Baseline", "FastV", "VTW", "TopV", "TopV, topv's defaults"]
    methods = {
        "Baseline": None,
        "FastV": topv.FastV(visual_flops=0.51),
        "VTW": topv.VTW(),
        "TopV": topv.TopV.paper().with_budget(visual_flops=0.51),
    }
    for label, method in methods.items():
        answers = answer_examples(model, processor, examples["ocr"], method, batch_size=1)
        assert found[label] == {"topv_ocr": pytest.approx(sum(a.score for a in answers) / QUESTIONS)}
    page = (tmp_path / "page.md").read_text()
    assert f"| TopV | {found['TopV']['topv_ocr']:.4g} (61.5) |" in page
    assert "What ran: the paper's checkpoints." in page
    # A second time finds everything there.
    logs = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("log.txt")}
    assert len(logs) == 5
    run(command, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("log.txt")} == logs
