"""Two tensor-parallel ranks, each a process of its own, choose the same tokens and answer as transformers does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import topv
from topv.evaluate import bundled_examples
from topv.serve import export_for_vllm

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test-vllm` runs these", allow_module_level=True)

from serve.engines import reference
from serve.prompts import prompts_of

QUESTIONS = 4


def test_two_ranks(tmp_path: Path) -> None:
    model, processor = topv.load_mini()
    export_for_vllm(model, processor, tmp_path)
    here = Path(__file__).parent
    own = {"PYTHONPATH": str(here.parent), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    own["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # lets the test ask each rank who it is
    command = [sys.executable, str(here / "two_ranks.py"), str(tmp_path), str(QUESTIONS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=os.environ | own)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert sorted(rank for rank, _ in found["ranks"]) == [0, 1]
    assert len({process for _, process in found["ranks"]}) == 2
    prompts = prompts_of(processor, bundled_examples("test", QUESTIONS, ("ocr",))["ocr"])
    expected = [
        reference(model, processor, case, topv.TopV(stage="encoder", keep=(0.5, 0.25)[number % 2])).tokens
        for number, case in enumerate(prompts)
    ]
    assert found["tokens"] == expected
