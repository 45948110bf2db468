"""Budgets and targets of methods with several pruning layers: what they cost in tokens, FLOPs and KV numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import topv
from tiny_models import TOKENS, prompt, shared_llava
from tools.probe.recipes import recipes
from topv.errors import InputError
from topv.evaluate import at_equal_reductions
from topv.measure import count_decoder, count_flops
from topv.methods import Method
from topv.models import Family, family_of
from topv.runtime.arguments import output_cache
from topv.runtime.targets import budget_counts, kept_counts, prefill_cost

METHODS = [topv.PyramidDrop(layer=1), topv.SparseVLM(layer=1)]
GOALS = ("visual_flops", "kv_share")


def family(name: str) -> Family:
    torch.manual_seed(0)
    return family_of(recipes()[name].build())


def by_layer(layers: tuple[int, ...], counts: tuple[int, ...], tokens: int, depth: int) -> list[int]:
    """The visual tokens that each decoder layer sees."""
    return [(tokens, *counts)[sum(at <= index for at in layers)] for index in range(depth)]


@pytest.mark.parametrize("name", ["llava_next", "qwen3_vl_moe", "gemma3", "gemma4"])
def test_cost_is_the_sum_over_layers(name: str) -> None:
    of, tokens, columns = family(name), 37, 45
    depth, layers, counts = len(of.layers), (1, 3), (20, 9)
    seen = by_layer(layers, counts, tokens, depth)
    spent = prefill_cost(of, "visual_flops", layers, tokens=tokens, columns=columns)
    assert spent.spent(counts) == sum(
        of.visual_flops(index, n, keys=seen[of.key_layer(index)]) for index, n in enumerate(seen)
    )
    kept = prefill_cost(of, "kv_share", layers, tokens=tokens, columns=columns)
    held = [n + columns - tokens for n in seen]
    limited = [n if limit is None else min(n, limit) for n, limit in zip(held, of.cache_limits, strict=True)]
    assert kept.spent(counts) == sum(width * n for width, n in zip(of.kv_widths, limited, strict=True))


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_targets_are_met_to_within_one_token(method: Method, goal: str) -> None:
    of = family_of(shared_llava(8))
    layers = method.pruning_layers(8)
    for tokens in (36, 576):
        columns = tokens + 9
        cost = prefill_cost(of, goal, layers, tokens=tokens, columns=columns)
        for wanted in (0.35, 0.44, 0.5, 0.66):
            left = 1 - wanted if goal == "visual_flops" else wanted
            set_to = method.with_budget(**{goal: wanted})
            (counts,) = kept_counts(of, set_to, layers, [tokens], columns)
            assert list(counts) == sorted(counts, reverse=True)
            gap = abs(cost.spent(counts) - left * cost.whole)
            # What a token more in one of the stages costs, where it costs most.
            tops = [cost.spent([k + (at == stage) for at, k in enumerate(counts)]) for stage in range(len(layers))]
            assert gap <= max(tops) - cost.spent(counts)


def test_every_budget_gets_the_same_shares() -> None:
    of, sizes = family_of(shared_llava(8)), [576, 288, 144]
    counts = kept_counts(of, topv.PyramidDrop(visual_flops=0.6, layer=1), (1, 3, 6), sizes, 1200)
    for stage in range(3):
        shares = [own[stage] / size for own, size in zip(counts, sizes, strict=True)]
        assert max(shares) - min(shares) <= 1 / 144


def test_out_of_reach() -> None:
    model = shared_llava(8)
    with pytest.raises(InputError, match="prune from an earlier layer"):
        at_equal_reductions(model, [("pyramiddrop", topv.PyramidDrop())], [0.9], grids=[TOKENS])


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_equal_keep_is_equal_cache(method: Method) -> None:
    """From one first layer, `keep` is the same KV bytes for one pruning layer and for several, to within a token."""
    model, inputs, bytes_ = shared_llava(8), prompt([[3, "image", 4]]), []
    for each in (method.with_budget(keep=0.5), topv.FastV(keep=0.5, layer=1)):
        with topv.prune(model, each) as pruning, torch.no_grad():
            model(**inputs)
        bytes_.append(pruning.report().kv_bytes)
    token = 2 * 2 * 8 * 4
    assert abs(bytes_[0] - bytes_[1]) <= 4 * token


@pytest.mark.parametrize("goal", GOALS)
def test_what_ran_meets_the_target(goal: str) -> None:
    model, inputs = shared_llava(8), prompt([[3, "image", 4], [2, "image", 1, "image", 3], [6]])
    for method in METHODS:
        with topv.prune(model, method.with_budget(**{goal: 0.55})) as pruning, torch.no_grad():
            model(**inputs)
        report = pruning.report()
        assert [share is None for share in report.reached] == [False, False, True]
        assert all(abs(share - 0.55) < 0.01 for share in report.reached if share is not None)


def test_counted_flops_are_those_of_the_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = shared_llava(8), prompt([[3, "image", 4], [2, "image", 9], [7]])
    with topv.prune(model, topv.PyramidDrop(keep=0.4)) as pruning, torch.no_grad():
        cache = output_cache(model(**inputs, use_cache=True))
        counted = count_flops(model, inputs, pruning=pruning)
    layers: Any = pruning.layers
    columns = inputs["input_ids"].shape[1]
    lengths = [layer.keys.shape[2] for layer in cache.layers]
    flops = family_of(model).layer_flops
    assert [layer.total for layer in counted.layers] == [
        3 * one.count(n, keys=n).total for one, n in zip(flops, lengths, strict=True)
    ]
    (first, _, text) = pruning.results.visual_tokens()
    assert text == (0, (0, 0, 0))
    kept = [[k, k, 0] for k in first[1]]
    planned = count_decoder(
        model,
        visual=[TOKENS, TOKENS, 0],
        columns=columns,
        layer=layers,
        kept=kept,
        short=[lengths[at] for at in layers],
    )
    assert planned.decoder == counted.decoder
    with pytest.raises(InputError, match="differ in how many"):
        count_decoder(model, visual=36, columns=40, layer=(1, 2), kept=[[9]])


def test_keep_is_resolved_alike_in_every_place() -> None:
    model, inputs = shared_llava(8), prompt([[3, "image", 4]])
    for method in METHODS:
        with topv.prune(model, method) as pruning, torch.no_grad():
            model(**inputs)
        counts = budget_counts(method, pruning.layers, 8, TOKENS)
        assert tuple(n for _, n in pruning.report().stages) == counts
