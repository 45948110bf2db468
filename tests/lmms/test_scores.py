"""The stock lmms-eval, told to prune, gives the scores and the answers of `topv eval`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from topv.evaluate import bundled_examples
from topv.mini import load_mini

if find_spec("lmms_eval") is None:
    pytest.skip("lmms-eval is not installed: `make test-lmms` runs these", allow_module_level=True)

from lmms.scenes import Outcome, lmms_eval, topv_eval, write_tasks

TASKS = ("ocr", "counting", "caption")
QUESTIONS = 8
REDUCTION = 0.7


@dataclass(frozen=True)
class Reference:
    """What `topv eval` found, and where."""

    folder: Path
    outcomes: dict[str, dict[str, Outcome]]
    kept: int


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("lmms")
    model, processor = load_mini()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    write_tasks(folder, bundled_examples("test", QUESTIONS, TASKS))
    outcomes, kept = topv_eval(folder, TASKS, QUESTIONS, REDUCTION)
    return Reference(folder, outcomes, kept)


@pytest.mark.parametrize("form", ["chat", "simple"])
def test_pruned(reference: Reference, form: str) -> None:
    found, backend, written = evaluate(reference, form, f"method=topv,keep={reference.kept}")
    prompts = QUESTIONS * len(TASKS)
    assert backend == f"topv.evaluate.lmms_models.PrunedLlavaHf ({form})"
    assert f"kept {prompts * reference.kept:,} of {prompts * 144:,} visual tokens" in written
    assert found == reference.outcomes["topv"]
    assert found != reference.outcomes["unpruned"]


@pytest.mark.parametrize("form", ["chat", "simple"])
def test_unpruned(reference: Reference, form: str) -> None:
    found, backend, written = evaluate(reference, form, "method=none")
    assert backend == f"lmms_eval.models.{form}.llava_hf.LlavaHf ({form})"
    assert "visual tokens" not in written
    assert found == reference.outcomes["unpruned"]


def evaluate(reference: Reference, form: str, method: str) -> tuple[dict[str, Outcome], str, str]:
    options = ["--force_simple"] if form == "simple" else []
    name = f"{method.partition(',')[0]}-{form}"
    return lmms_eval(reference.folder, TASKS, f"base=llava_hf,{method}", name=name, options=options)
