"""Tiny random models through vLLM answer as transformers does with the same method, chunked, mixed and warm."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import topv

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test-vllm` runs these", allow_module_level=True)

from serve.checkpoints import FAMILIES, save_tiny
from serve.engines import FirstTokens, ask, drawn, engine, reference
from topv.methods.cost import Stage

SHAPES = ([(40, 40)], [(70, 30)], [(30, 70)], [(64, 30), (40, 40)])
KEEPS = (0.5, 0.2, 1.0)


PROJECTED = [(name, "projector") for name in ("llava", "llava_next", "internvl", "qwen3_vl")]


@pytest.mark.parametrize(("model_type", "stage"), [*((name, "encoder") for name in FAMILIES), *PROJECTED])
def test_as_transformers(model_type: str, stage: Stage, tmp_path: Path) -> None:
    model, processor = save_tiny(model_type, tmp_path)
    # transformers leaves several images of LLaVA-OneVision whole, and vLLM cuts each into tiles.
    shapes = SHAPES[:3] if model_type == "llava_onevision" else SHAPES
    cases = [drawn(processor, sizes, seed=number) for number, sizes in enumerate(shapes) for _ in KEEPS]
    keeps = [keep for _ in shapes for keep in KEEPS]
    pairs = list(zip(cases, keeps, strict=True))
    expected = [reference(model, processor, case, topv.TopV(stage=stage, keep=keep)) for case, keep in pairs]
    controls = [reference(model, processor, case, FirstTokens(layer=0, keep=keep)) for case, keep in pairs]
    # No prompt fits into one step, so prefills are cut into chunks, and one step holds several ratios.
    # What vLLM takes for the largest image of LLaVA-OneVision is not that of a tiny one.
    step = 200 if model_type == "llava_onevision" else 48
    with engine(tmp_path, {"keep": 0.5, "stage": stage}, max_num_batched_tokens=step) as llm:
        cold = ask(llm, cases, keeps)
        warm = ask(llm, cases, keeps)
        defaults = ask(llm, cases[:1], [None])
    for keep, found, again, wanted, control in zip(keeps, cold, warm, expected, controls, strict=True):
        assert found.prompt == wanted.prompt
        assert found.tokens == wanted.tokens
        torch.testing.assert_close(found.logprobs, wanted.logprobs, atol=2e-4, rtol=0)
        assert again.tokens == found.tokens
        torch.testing.assert_close(again.logprobs, found.logprobs, atol=2e-4, rtol=0)
        assert again.cached == (found.prompt - 1) // 32 * 32
        if keep < 1:
            assert (control.logprobs - found.logprobs).abs().max() > 5e-3
    assert defaults[0].tokens == cold[0].tokens
