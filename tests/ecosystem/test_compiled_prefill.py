"""The whole prefill as one graph. The "eager" backend compiles nothing, but traces all that a real one would."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import topv
from ecosystem.bench import bench, relative_error
from kv_caches import with_cache
from topv.errors import InputError
from topv.methods import Evidence
from topv.runtime.arguments import output_cache

SINGLE = [[7, "image", 6]]
RAGGED = [[7, "image", 6], [4, "image", 3, "image", 5]]
TOPV = topv.TopV(keep=0.4)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


def graphs() -> int:
    return int(counters["stats"].get("unique_graphs", 0))


def prefill(tiny: Any, inputs: dict[str, Any], method: topv.Method, **options: Any) -> tuple[Any, topv.Pruning]:
    with topv.prune(tiny.model, method) as pruning, torch.no_grad():
        if options:
            pruning.compile_prefill(**options)
        return tiny.model(**inputs, use_cache=True), pruning


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "samples", "method"),
    [
        ("llava", SINGLE, TOPV),
        ("llava", RAGGED, topv.TopV(keep=0.4, beta=0.3, gamma=0.1, recovery=0.25, importance="potential")),
        ("llava", RAGGED, topv.VTW()),
        ("llava", SINGLE, topv.Random(keep=0.4)),
        ("llava", RAGGED, topv.FacilityLocation(keep=0.4)),
        ("llava", SINGLE, topv.DivPrune(keep=0.4, layer=2)),
        ("llava", [[3, "image", "image", 4]], topv.FrameDifference(keep=0.4)),
        ("internvl", RAGGED, topv.TopV(keep=0.4, budget="sample")),
        ("qwen2_5_vl", RAGGED, TOPV),
        ("qwen3_vl", RAGGED, TOPV),
    ],
)
def test_one_graph_is_exact(name: str, samples: list[Any], method: topv.Method) -> None:
    tiny = bench(name)
    inputs = tiny.prompt(samples)
    plain, before = prefill(tiny, inputs, method)
    compiled, after = prefill(tiny, inputs, method, backend="eager")
    assert graphs() == 1
    assert torch.equal(compiled.logits.isnan(), plain.logits.isnan())
    assert relative_error(compiled.logits.nan_to_num(), plain.logits.nan_to_num()) <= 1e-5
    for got, want in zip(output_cache(compiled).layers, output_cache(plain).layers, strict=True):
        assert relative_error(got.keys, want.keys) <= 1e-5
        assert got.values.shape == want.values.shape
    assert after.report() == before.report()
    for got, want in zip(after.kept_positions, before.kept_positions, strict=True):
        assert torch.equal(got, want)
    for got, want in zip(after.importance, before.importance, strict=True):
        assert (got is None) == (want is None)
        assert got is None or torch.allclose(got, want, atol=1e-5)


@pytest.mark.slow
def test_prompts_alike_in_shape_share_a_graph() -> None:
    tiny = bench("llava")
    with topv.prune(tiny.model, TOPV) as pruning, torch.no_grad():
        pruning.compile_prefill(backend="eager")
        kept = []
        for seed in range(3):
            tiny.model(**tiny.prompt(SINGLE, seed=seed))
            kept.append(pruning.kept_positions[0])
        assert graphs() == 1
        assert not torch.equal(kept[0], kept[1]), "the graph holds the choice, not its result"
        tiny.model(**tiny.prompt([[3, "image", 6]]))
        assert graphs() == 2


@pytest.mark.slow
@pytest.mark.parametrize("samples", [SINGLE, RAGGED], ids=["one", "ragged"])
def test_generation_with_a_cache_of_the_right_lengths(samples: list[Any]) -> None:
    tiny = bench("llava")
    inputs = tiny.prompt(samples)
    with topv.prune(tiny.model, TOPV) as pruning, torch.no_grad():
        want = tiny.model.generate(**inputs, **tiny.arguments())
        pruning.compile_prefill(backend="eager")
        cache = pruning.static_cache(inputs, max_new_tokens=6)
        address = cache.layers[0].keys.data_ptr()
        got = tiny.model.generate(**inputs, **tiny.arguments(**with_cache(cache)))
        report = pruning.report()
    assert torch.equal(got.sequences, want.sequences)
    assert relative_error(torch.stack(got.logits), torch.stack(want.logits)) <= 1e-5
    whole, short = inputs["input_ids"].shape[1], output_cache(want).layers[-1].keys.shape[2] - 5
    assert short < whole
    assert [layer.keys.shape[2] for layer in cache.layers] == [whole + 6] * 2 + [short + 6] * (report.depth - 2)
    assert cache.layers[0].keys.data_ptr() == address


@pytest.mark.slow
def test_a_real_backend_is_exact() -> None:
    """Ahead-of-time autograd makes the graph functional, as all compilers see it."""
    tiny = bench("llava")
    inputs = tiny.prompt(RAGGED)
    plain, _ = prefill(tiny, inputs, TOPV)
    compiled, _ = prefill(tiny, inputs, TOPV, backend="aot_eager")
    assert relative_error(compiled.logits.nan_to_num(), plain.logits.nan_to_num()) <= 1e-5


@pytest.mark.slow
def test_what_is_not_pruned_runs_as_ever() -> None:
    tiny = bench("llava")
    text = {"input_ids": torch.arange(40, 50)[None]}
    with torch.no_grad():
        want = tiny.model(**text).logits
        with topv.prune(tiny.model, TOPV) as pruning:
            pruning.compile_prefill(backend="eager")
            assert torch.equal(tiny.model(**text).logits, want)
            assert graphs() == 0
            # A prompt that continues a cache is pruned without the graph.
            cache = output_cache(tiny.model(**text, use_cache=True))
            turn = tiny.prompt(SINGLE)
            turn["attention_mask"] = torch.ones(1, 10 + turn["input_ids"].shape[1], dtype=torch.long)
            again = copy.deepcopy(cache)
            got = tiny.model(**turn, **with_cache(cache)).logits
        with topv.prune(tiny.model, TOPV):
            assert relative_error(got.nan_to_num(), tiny.model(**turn, **with_cache(again)).logits.nan_to_num()) == 0
        assert "forward" not in vars(tiny.model.model.language_model)


def test_a_trace_in_another_thread_is_not_taken_for_ones_own() -> None:
    tiny = bench("llava")
    text = {"input_ids": torch.arange(40, 50)[None]}
    with torch.no_grad():
        want = tiny.model(**text).logits
        with topv.prune(tiny.model, TOPV) as pruning:
            pruning.compile_prefill(backend="eager")
            assert pruning._session.compiled is not None
            # As it stands while another thread is inside the graph.
            pruning._session.compiled.traced = object()  # type: ignore[assignment]
            assert torch.equal(tiny.model(**text).logits, want)


@pytest.mark.slow
def test_nan_is_told() -> None:
    tiny = bench("llava")
    inputs = tiny.prompt(SINGLE)
    inputs["pixel_values"] = inputs["pixel_values"] * float("nan")
    with topv.prune(tiny.model, TOPV) as pruning, torch.no_grad():
        pruning.compile_prefill(backend="eager")
        with pytest.raises(topv.EvidenceError, match="NaN or infinity"):
            tiny.model(**inputs)
        again = tiny.prompt(SINGLE)
        assert bool(tiny.model(**again).logits[:, -1].isfinite().all())


def test_what_cannot_be_one_graph_is_refused() -> None:
    tiny = bench("llava")
    weights = pytest.raises(topv.UnsupportedError, match="FastV reads attention weights")
    with topv.prune(tiny.model, topv.FastV(keep=0.4)) as pruning, weights:
        pruning.compile_prefill()
    text = pytest.raises(topv.UnsupportedError, match="CDPruner reads text, which is read outside")
    with topv.prune(tiny.model, topv.CDPruner(layer=2)) as pruning, text:
        pruning.compile_prefill()
    with topv.prune(bench("gemma3").model, TOPV) as pruning:
        with pytest.raises(topv.UnsupportedError, match="more than shorter tensors"):
            pruning.compile_prefill()
        with pytest.raises(topv.UnsupportedError, match="cache_implementation='static'"):
            pruning.static_cache(bench("gemma3").prompt(SINGLE), max_new_tokens=3)
    with topv.prune(tiny.model, TOPV) as pruning:
        pruning.compile_prefill(backend="eager")
        with pytest.raises(topv.UnsupportedError, match="compiled already"):
            pruning.compile_prefill()
        with pytest.raises(InputError, match="max_new_tokens of at least 1"):
            pruning.static_cache(tiny.prompt(SINGLE), max_new_tokens=0)


@dataclass(frozen=True, kw_only=True)
class First(topv.Method):
    """Keeps the first tokens of each grid."""

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        places = torch.arange(len(evidence.coordinates), dtype=torch.float32)
        return -places.expand(len(evidence.images), -1)


@pytest.mark.slow
def test_positions_whose_next_label_is_scored_stay_in_a_graph() -> None:
    """The last token of a picture foretells the first word behind it."""
    tiny = bench("llava")
    inputs = tiny.prompt(SINGLE)
    ids = inputs["input_ids"]
    inputs["labels"] = ids.masked_fill(torch.arange(ids.shape[1]) < ids.shape[1] - 6, -100)
    _, plain = prefill(tiny, inputs, First(keep=3))
    _, compiled = prefill(tiny, inputs, First(keep=3), backend="eager")
    last = ids.shape[1] - 7
    assert plain.kept_positions[0].tolist() == compiled.kept_positions[0].tolist() == [7, 8, last]
