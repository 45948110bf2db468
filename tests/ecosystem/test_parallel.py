"""Tensor parallelism: two processes share every layer, and must drop the same tokens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import topv
from ecosystem.bench import KEEP, Bench, relative_error
from topv.runtime.arguments import output_cache

WORLD = 2
TIMEOUT = 90

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo"),
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the processes found."""
    pytest.importorskip("transformers.distributed", exc_type=ImportError)
    folder = tmp_path_factory.mktemp("shared")
    Bench("qwen2_5_vl").model.save_pretrained(folder)
    tests = Path(__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    command = [sys.executable, str(tests / "ecosystem" / "rank.py"), str(folder)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(WORLD)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def test_generation_equals_the_one_process_model(ranks: list[dict[str, Any]]) -> None:
    tiny = Bench("qwen2_5_vl")
    want = tiny.generate(tiny.prompt())
    tiny.check(want)
    for found in ranks:
        assert torch.equal(found["TopV"], want.kept)
        assert relative_error(found["logits"], want.logits) <= 1e-5
        heads, entries = found["keys"][1:3]
        assert (heads, entries) == (2 // WORLD, output_cache(want.out).layers[-1].keys.shape[2])


def test_every_process_keeps_the_tokens_that_one_would(ranks: list[dict[str, Any]]) -> None:
    tiny = Bench("qwen2_5_vl")
    with torch.no_grad(), topv.prune(tiny.model, topv.FastV(keep=KEEP)) as pruning:
        tiny.model(**tiny.prompt())
        want = pruning.kept_positions[0]
    for found in ranks:
        assert torch.equal(found["FastV"], want)
