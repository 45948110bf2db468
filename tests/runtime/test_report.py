"""What is reported is what ran."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

import topv
from kv_caches import with_cache
from tiny_models import TOKENS, prompt, shared_llava, tiny_llava
from topv.runtime.arguments import output_cache

BATCH = [[3, "image", 4], [2, "image", 1, "image", 3], [6], ["image", 2]]


def cache_bytes(cache: Any) -> int:
    return sum(
        tensor.numel() * tensor.element_size() for layer in cache.layers for tensor in (layer.keys, layer.values)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("samples", [[[3, "image", 4]], BATCH])
@pytest.mark.parametrize(
    "method", [topv.TopV(keep=0.5), topv.VTW(), topv.FastV(keep=3, layer=3), topv.Random(keep=1.0)]
)
def test_kv_bytes_are_the_caches(method: topv.Method, samples: Any, dtype: torch.dtype) -> None:
    model, inputs = tiny_llava(dtype=dtype), prompt(samples, dtype=dtype)
    with torch.no_grad():
        unpruned = cache_bytes(output_cache(model(**inputs, use_cache=True)))
        with topv.prune(model, method) as pruning:
            pruned = cache_bytes(output_cache(model(**inputs, use_cache=True)))
            turn = pruning.report()
    assert turn.kv_bytes == pruned
    assert turn.kv_bytes_unpruned == unpruned
    assert turn.prompt_tokens == int(inputs["attention_mask"].sum())


def test_kv_bytes_of_a_second_image() -> None:
    model, inputs = shared_llava(), prompt([[3, "image", 4]])
    turn = prompt([[1, "image", 2]], seed=1)
    del turn["attention_mask"]
    with torch.no_grad():
        cache = DynamicCache(config=model.config.text_config)
        model(**inputs, **with_cache(cache))
        model(**turn, **with_cache(cache))
        unpruned = cache_bytes(cache)
        with topv.prune(model, topv.TopV(keep=0.25)) as pruning:
            cache = DynamicCache(config=model.config.text_config)
            model(**inputs, **with_cache(cache))
            model(**turn, **with_cache(cache))
            report = pruning.report()
    assert report.kv_bytes == cache_bytes(cache)
    assert report.kv_bytes_unpruned == unpruned


def test_counts_by_hand() -> None:
    model, inputs = shared_llava(), prompt(BATCH)
    with topv.prune(model, topv.TopV(keep=0.25, layer=2)) as pruning, torch.no_grad():
        model(**inputs)
    report = pruning.report()
    assert (report.visual_tokens, report.kept_tokens) == (4 * TOKENS, 4 * 9)
    assert [len(kept) for kept in pruning.kept_positions] == [9, 18, 0, 9]
    assert [None if s is None else len(s) for s in pruning.importance] == [TOKENS, 2 * TOKENS, None, TOKENS]
    # One layer: q, k, v, o of 32 x (32 + 16 + 16 + 32), MLP 3 x 32 x 48; attention 4 n^2 x 4 heads x 8.
    weights = 32 * 96 + 3 * 32 * 48

    def layer(tokens: int) -> int:
        return 2 * tokens * weights + 4 * tokens**2 * 32

    whole, short = 2 * layer(36) + layer(72), 2 * layer(9) + layer(18)
    assert report.visual_flops_reduction == pytest.approx(1 - (2 * whole + 3 * short) / (5 * whole), abs=1e-12)


def test_kept_positions_follow_the_importance() -> None:
    model, inputs = shared_llava(), prompt([[3, "image", 4]])
    with topv.prune(model, topv.TopV(keep=10)) as pruning, torch.no_grad():
        model(**inputs)
    (importance,), (kept,) = pruning.importance, pruning.kept_positions
    assert importance is not None
    assert importance.dtype == torch.float32
    assert set((kept - 3).tolist()) == set(importance.argsort(descending=True, stable=True)[:10].tolist())


def test_recovered_positions_are_part_of_the_budget() -> None:
    model, inputs = shared_llava(), prompt([[3, "image", 4]])
    with topv.prune(model, topv.TopV(keep=12, recovery=0.25)) as pruning, torch.no_grad():
        model(**inputs)
    kept, recovered = pruning.kept_positions[0], pruning.recovered_positions[0]
    assert (len(kept), len(recovered)) == (12, 3)
    assert set(recovered.tolist()) < set(kept.tolist())


def test_methods_without_importance() -> None:
    model, inputs = shared_llava(), prompt([[3, "image", 4]])
    for method in (topv.Random(), topv.Uniform(), topv.VTW()):
        with topv.prune(model, method) as pruning, torch.no_grad():
            model(**inputs)
        assert pruning.importance == [None]


def test_report_prints_and_converts() -> None:
    model, inputs = shared_llava(), prompt(BATCH)
    with topv.prune(model, topv.TopV(keep=0.5)) as pruning, torch.no_grad():
        model(**inputs)
    report = pruning.report()
    assert "144 -> 72" in str(report)
    assert report.to_dict()["kept_tokens"] == 72
