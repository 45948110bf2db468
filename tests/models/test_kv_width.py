"""What a token adds to the KV cache is read off the modules as the cache then holds it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import topv
from architectures import recipe_of
from topv.models import family_of
from topv.runtime.arguments import output_cache

# Grouped queries, heads that differ by layer, borrowed keys, keys that are values too, latent keys, fused qkv,
# recurrent layers, a cache of its own.
MODELS = (
    "llava",
    "step3p7",
    "gemma4",
    "gemma4_unified",
    "dots3_note",
    "kimi_k25",
    "fuyu",
    "qwen3_5",
    "lfm2_vl",
    "nemotron_h_omni",
    "unlimited_ocr",
)


def states(layer: Any) -> list[torch.Tensor]:
    names = ("keys", "values", "prefill_keys", "prefill_values")
    found = (getattr(layer, name, None) for name in names)
    return [state for state in found if isinstance(state, torch.Tensor) and state.numel()]


@pytest.mark.parametrize("name", MODELS)
def test_widths_and_reported_bytes_are_the_caches(name: str) -> None:
    recipe = recipe_of(name)
    torch.manual_seed(0)
    model = recipe.build()
    inputs = recipe.prompt(model, [[3, "image", 4]])
    with torch.no_grad(), topv.prune(model, topv.Random(keep=0.5)) as pruning:
        cache = output_cache(model(**inputs, use_cache=True))
    widths = family_of(model).kv_widths
    for index, width in enumerate(widths):
        held = states(cache.layers[index]) if index < len(cache.layers) else []
        assert sum(state.shape[1] * state.shape[3] for state in held) == width
    report = pruning.report()
    assert report.kv_bytes == sum(s.numel() * s.element_size() for layer in cache.layers for s in states(layer))
    assert report.kv_bytes < report.kv_bytes_unpruned
    with torch.no_grad(), topv.prune(model, topv.Random(keep=0.5)) as pruning:
        model(**inputs, use_cache=False)
    assert pruning.report() == report
