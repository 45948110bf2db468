"""Caches of every kind hold a pruned prompt: preallocated, windowed, recurrent, quantized, offloaded, copied."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import StaticLayer
from transformers.utils import is_hqq_available, is_optimum_quanto_available

import topv
from ecosystem.bench import KEEP, STEPS, Bench, bench, relative_error
from kv_caches import with_cache
from topv.runtime.arguments import output_cache
from topv.verify.reference import extended

FAMILIES = ["llava", "llava_next", "qwen2_5_vl", "gemma3", "qwen3_5", "lfm2_vl"]
MIXED = ["gemma3", "qwen3_5", "lfm2_vl"]
TOLERANCE = {"qwen3_5": 2e-5}
"""A recurrent layer in single precision rounds more with every step."""


@pytest.mark.parametrize("name", FAMILIES)
def test_static_cache_by_name(name: str) -> None:
    tiny = bench(name)
    inputs = tiny.prompt()
    run = tiny.generate(inputs, cache_implementation="static")
    assert isinstance(output_cache(run.out), StaticCache)
    tiny.check(run)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("name", FAMILIES)
def test_static_cache_with_short_layers(name: str, backend: str) -> None:
    """Layers past the pruning layer need room for what they hold, and no more."""
    tiny = bench(name, backend)
    inputs = tiny.prompt()
    first = tiny.generate(inputs)
    dropped = int(first.visual.sum()) - len(first.kept)
    # The last generated token is never attended to.
    length = inputs["input_ids"].shape[1] + STEPS - 1
    cache = StaticCache(config=tiny.model.config.get_text_config(), max_cache_len=length)
    short = 0
    for index in range(first.layer, len(cache.layers)):
        if type(cache.layers[index]) is StaticLayer:
            cache.layers[index] = StaticLayer(max_cache_len=length - dropped)
            short += 1
    run = tiny.generate(inputs, **with_cache(cache))
    assert short, "the model has such layers"
    tiny.check(run)
    full = [layer for layer in cache.layers if type(layer) is StaticLayer]
    assert {layer.keys.shape[-2] for layer in full[-short:]} == {length - dropped}


@pytest.mark.parametrize("implementation", [None, "static"])
@pytest.mark.parametrize("sample", [[1, "image", 1], [30, "image", 30]], ids=["fills", "beyond"])
@pytest.mark.parametrize("name", MIXED)
def test_windows_and_states(name: str, sample: list[int | str], implementation: str | None) -> None:
    """A prompt below a window of 24 that generation fills, and one far beyond it."""
    tiny = bench(name)
    inputs = tiny.prompt([sample])
    length = inputs["input_ids"].shape[1]
    steps = 14 if length < 24 else STEPS
    more = {} if implementation is None else {"cache_implementation": implementation}
    run = tiny.generate(inputs, steps=steps, **more)
    assert length + steps > 24 > min(length, 23)
    tiny.check(run, TOLERANCE.get(name, 1e-5))


@pytest.mark.parametrize("name", MIXED)
def test_a_prefix_is_continued_many_times(name: str) -> None:
    """tests/runtime/test_cache.py has this for a decoder whose layers are alike."""
    tiny = bench(name)
    inputs = tiny.prompt()
    generator = torch.Generator().manual_seed(1)
    turns = [torch.randint(32, 192, (1, size), generator=generator) for size in (4, 9, 4)]
    with torch.no_grad(), topv.prune(tiny.model, topv.TopV(keep=KEEP)):
        prefix = output_cache(tiny.model(**inputs, use_cache=True))
        lengths = [layer.get_seq_length() for layer in prefix.layers if hasattr(layer, "get_seq_length")]
        outs = []
        for turn in turns:
            ids = torch.cat([inputs["input_ids"], turn], 1)
            whole = extended(inputs, ids, tiny.recipe.continuation)
            whole = {n: v for n, v in whole.items() if v is None or not n.startswith(("pixel", "image_", "spatial"))}
            out = tiny.model.generate(**whole, **with_cache(copy.deepcopy(prefix)), **tiny.arguments(4))
            outs.append((ids, out))
        assert lengths == [layer.get_seq_length() for layer in prefix.layers if hasattr(layer, "get_seq_length")]
    run = tiny.generate(inputs, steps=1)
    for ids, out in outs:
        run.out = out
        want = tiny.expected(run)[:, -4:]
        assert ids.shape[1] + 4 == out.sequences.shape[1]
        assert relative_error(run.logits, want) <= 1e-5


QUANTIZED = [
    pytest.param({"backend": "fp8"}, 2e-2, id="fp8"),
    pytest.param(
        {"backend": "quanto", "nbits": 4, "q_group_size": 16, "residual_length": 4},
        8e-2,
        id="quanto",
        marks=pytest.mark.skipif(not is_optimum_quanto_available(), reason="needs optimum-quanto"),
    ),
    pytest.param(
        {"backend": "hqq", "nbits": 8, "q_group_size": 16, "residual_length": 4, "axis_key": 1, "axis_value": 1},
        5e-3,
        id="hqq",
        marks=pytest.mark.skipif(not is_hqq_available(), reason="needs hqq"),
    ),
]


@pytest.mark.parametrize(("settings", "tolerance"), QUANTIZED)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_quantized_cache(name: str, settings: dict[str, Any], tolerance: float) -> None:
    tiny = bench(name)
    inputs = tiny.prompt()
    run = tiny.generate(inputs, cache_implementation="quantized", cache_config=settings)
    want = tiny.expected(run)
    assert relative_error(run.logits[:, 0], want[:, 0]) <= 1e-5, "the prefill sees its own keys unquantized"
    assert relative_error(run.logits, want) <= tolerance
    length = inputs["input_ids"].shape[1] + STEPS - 1
    dropped = int(run.visual.sum()) - len(run.kept)
    held = [layer.get_seq_length() for layer in output_cache(run.out).layers]
    assert held == [length - dropped * (index >= run.layer) for index in range(len(held))]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="transformers offloads caches from CUDA devices alone")
@pytest.mark.parametrize("implementation", ["offloaded", "offloaded_static"])
@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_offloaded_cache(name: str, implementation: str) -> None:
    tiny = Bench(name)
    tiny.model.cuda()
    inputs = {n: v.cuda() if isinstance(v, torch.Tensor) else v for n, v in tiny.prompt().items()}
    with torch.no_grad(), topv.prune(tiny.model, topv.TopV(keep=KEEP)):
        want = tiny.model.generate(**inputs, **tiny.arguments(disable_compile=True))
        got = tiny.model.generate(**inputs, **tiny.arguments(cache_implementation=implementation, disable_compile=True))
    assert relative_error(torch.stack(got.logits, 1), torch.stack(want.logits, 1)) <= 1e-4


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA it works")
def test_offloaded_cache_without_cuda_is_transformers_own_refusal() -> None:
    """Pruned or not, the same message; and the next forward is as if nothing had happened."""
    tiny = bench("llava")
    inputs = tiny.prompt()
    with torch.no_grad(), pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
        tiny.model.generate(**inputs, **tiny.arguments(cache_implementation="offloaded"))
    with topv.prune(tiny.model, topv.TopV(keep=KEEP)), torch.no_grad():
        with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
            tiny.model.generate(**inputs, **tiny.arguments(cache_implementation="offloaded"))
        out = tiny.model.generate(**inputs, **tiny.arguments())
    assert torch.equal(out.sequences, tiny.generate(inputs).out.sequences)


def test_a_cache_passed_in_keeps_its_kind() -> None:
    tiny = bench("gemma3")
    cache = DynamicCache(config=tiny.model.config.get_text_config())
    run = tiny.generate(tiny.prompt(), **with_cache(cache))
    assert output_cache(run.out) is cache
    tiny.check(run)
