"""Counted FLOPs against torch's counter, on tiny models of many kinds, unpruned and pruned."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import topv
from kv_caches import with_cache
from module_snapshot import snapshot
from tiny_models import TOKENS, prompt, shared_llava, tiny_llava
from tools.probe.recipes import recipes
from topv.errors import InputError, UnsupportedError
from topv.measure import FlopsCount, count_decoder, count_flops
from topv.models import family_of
from topv.runtime.arguments import output_cache
from topv.runtime.compaction import Choice
from topv.runtime.stage import Stage

SAMPLES = [[3, "image", 4], [2, "image", 9], [7]]
# LLaVA, tiles, windows with M-RoPE, deepstack, mixtures of experts (routed, all run, one for each modality), sliding
# windows with borrowed keys, latent attention with an index, fused qkv, recurrences and convolutions.
MODELS = (
    "llava",
    "internvl",
    "qwen2_5_vl",
    "qwen3_vl_moe",
    "mistral3",
    "glm4v_moe",
    "gemma4",
    "llama4",
    "ernie4_5_vl_moe",
    "mistral_large4",
    "fuyu",
    "lfm2_vl",
    "qwen3_5_moe",
    "nemotron_h_omni",
    "inkling_mm_model",
)
UNCOUNTED = ("glm5_next", "inkling2", "qwen4_exp")


@functools.cache
def model_and_inputs(name: str) -> tuple[Any, dict[str, Any]]:
    recipe = recipes()[name]
    torch.manual_seed(0)
    model = recipe.build().requires_grad_(False)
    return model, recipe.prompt(model, SAMPLES)


def solves(system: Any, right: Any, *_: Any, **__: Any) -> int:
    """A multiplication and an addition for half the entries of each triangle, for every column; torch has none."""
    return torch.Size(right).numel() * system[-1]


def counted_by_torch(model: Any, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """What torch counts of an eager forward, the choice of tokens left out; it misses fused attention on a CPU."""
    model.set_attn_implementation("eager")
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    chosen = 0
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.linalg_solve_triangular: solves})
    choose = Stage.choose

    def apart(self: Stage, hidden_states: torch.Tensor) -> Choice:
        nonlocal chosen
        before = counter.get_total_flops()
        choice = choose(self, hidden_states)
        chosen += counter.get_total_flops() - before
        return choice

    monkeypatch.setattr(Stage, "choose", apart)
    with counter, torch.no_grad():
        model(**inputs, use_cache=False)
    return int(counter.get_total_flops()) - chosen


@pytest.mark.parametrize("name", MODELS)
def test_counts_are_those_of_the_counter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = model_and_inputs(name)
    model.set_attn_implementation("sdpa")
    unpruned = count_flops(model, inputs)
    assert unpruned.total == pytest.approx(counted_by_torch(model, inputs, monkeypatch), rel=1e-3)
    with topv.prune(model, topv.TopV(keep=0.5)) as pruning:
        actual = counted_by_torch(model, inputs, monkeypatch)
        pruned = count_flops(model, inputs, pruning=pruning)
    assert pruned.total == pytest.approx(actual, rel=1e-3)
    assert pruned.total < 0.99 * unpruned.total
    assert pruned.share_of(unpruned) == pruned.total / unpruned.total


@pytest.mark.parametrize("name", UNCOUNTED)
def test_what_cannot_be_counted_is_refused(name: str) -> None:
    model, inputs = model_and_inputs(name)
    with pytest.raises(UnsupportedError, match="cannot be counted"):
        count_flops(model, inputs)
    with topv.prune(model, topv.Random(keep=0.5)) as pruning, torch.no_grad():
        model(**inputs)
    report = pruning.report()
    assert "visual FLOPs       not counted" in str(report)
    assert report.to_dict()["visual_flops_reduction"] is None
    with (
        topv.prune(model, topv.Random(visual_flops=0.3)),
        torch.no_grad(),
        pytest.raises(UnsupportedError, match="kv_share="),
    ):
        model(**inputs)


def test_parts_by_hand() -> None:
    model, inputs = shared_llava(), prompt([[3, "image", 4], ["image", 2]])
    count = count_flops(model, {**inputs, "logits_to_keep": 1})
    batch, columns = inputs["input_ids"].shape
    for layer in count.layers:
        assert layer.projections == batch * columns * 2 * 32 * (32 + 16 + 16 + 32)
        assert layer.products == batch * columns**2 * 4 * 32
        assert layer.mlp == batch * columns * 2 * 3 * 32 * 48
        assert (layer.moe, layer.mixer) == (0, 0)
    assert count.head == batch * 2 * 32 * model.config.text_config.vocab_size
    # Two images; patches and a class token; two layers of 16, of which LLaVA takes the last but one; two linear maps.
    patches = TOKENS + 1
    tower = 2 * TOKENS * 3 * 16 * 16 + 2 * (patches * 2 * (4 * 16 * 16 + 2 * 16 * 32) + patches**2 * 4 * 16)
    assert count.vision == batch * tower
    assert count.projector == batch * TOKENS * 2 * (16 * 32 + 32 * 32)
    assert count.total == count.vision + count.projector + count.other + count.head + count.decoder
    assert count.to_dict()["total"] == count.total
    assert "decoder products" in str(count)


@pytest.mark.parametrize(("name", "active"), [("qwen3_vl_moe", 2), ("llama4", 4)])
def test_of_a_mixture_of_experts_those_that_run_count(name: str, active: int) -> None:
    model, _ = model_and_inputs(name)
    layer: Any = family_of(model).layers[1]
    block = layer.mlp if name == "qwen3_vl_moe" else layer.feed_forward
    expert = (block.experts.gate_up_proj[0].numel() + block.experts.down_proj[0].numel()) * active
    router = (block.gate if name == "qwen3_vl_moe" else block.router).weight.numel()
    shared = sum(p.numel() for n, p in block.named_parameters() if "shared" in n)
    assert family_of(model).layer_flops[1].moe == 2 * (expert + router + shared)
    assert family_of(model).layer_flops[1].mlp == 0


def test_counting_leaves_no_trace() -> None:
    model, inputs = tiny_llava(), prompt([[3, "image", 4]])
    with topv.prune(model, topv.TopV(keep=9)) as pruning, torch.no_grad():
        model(**inputs)
        report = pruning.report()
        count_flops(model, inputs)
        assert pruning.report() == report
    before = snapshot(model)
    count_flops(model, inputs)
    assert snapshot(model) == before


def test_lengths_alone_are_enough() -> None:
    model, inputs = shared_llava(), prompt([[3, "image", 4], [2, "image", 9]])
    with topv.prune(model, topv.TopV(keep=9)) as pruning, torch.no_grad():
        model(**inputs)
    ran = count_flops(model, inputs, pruning=pruning)
    columns = inputs["input_ids"].shape[1]
    planned = count_decoder(model, visual=[TOKENS, TOKENS], columns=columns, layer=2, kept=[9, 9])
    assert planned == FlopsCount(ran.layers, head=ran.head)


@pytest.mark.parametrize(
    ("lengths", "part"),
    [
        ({"visual": 36, "columns": 30}, "visual=36"),
        ({"visual": 36, "columns": 40, "layer": 2}, "give both"),
        ({"visual": 36, "columns": 40, "layer": 2, "kept": 37}, "kept=37"),
        ({"visual": 36, "columns": 40, "layer": 5, "kept": 9}, "0 to 4 of 5"),
    ],
)
def test_lengths_that_do_not_fit(lengths: Any, part: str) -> None:
    with pytest.raises(InputError, match=part):
        count_decoder(shared_llava(), **lengths)


def test_other_inputs_than_those_that_ran() -> None:
    model = shared_llava()
    with topv.prune(model, topv.TopV(keep=9)) as pruning, torch.no_grad():
        model(**prompt([[3, "image", 4]]))
    with pytest.raises(InputError, match="1 x 43"):
        count_flops(model, prompt([[5, "image", 4]]), pruning=pruning)
    with torch.no_grad():
        cache = output_cache(model(**prompt([[3, "image", 4]]), use_cache=True))
    with pytest.raises(InputError, match="KV cache"):
        count_flops(model, {**prompt([[3]]), **with_cache(cache)})
