"""Targets are met as nearly as whole tokens allow, sample by sample, and what was reached is reported."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch

import topv
from tiny_models import TOKENS, prompt, shared_llava
from tools.probe.recipes import recipes
from topv.budget import keep_count
from topv.errors import InputError
from topv.methods import Method
from topv.models import Family, family_of
from topv.runtime.targets import kept_counts, layer_for_reduction, prefill_cost

# Grouped queries, two tile shapes, experts, sliding windows, borrowed keys, latent keys, recurrences.
MODELS = ("llava_next", "qwen3_vl_moe", "gemma3", "gemma4", "kimi_k25", "qwen3_5")


@functools.cache
def family(name: str) -> Family:
    torch.manual_seed(0)
    return family_of(recipes()[name].build())


def saved(of: Family, tokens: int, kept: int, layer: int) -> float:
    """The share of visual FLOPs that is saved, by its definition."""
    depth = len(of.layers)

    def length(index: int) -> int:
        return tokens if index < layer else kept

    spent = sum(of.visual_flops(i, length(i), keys=length(of.key_layer(i))) for i in range(depth))
    return 1 - spent / sum(of.visual_flops(i, tokens) for i in range(depth))


def kv_left(of: Family, columns: int, short: int, layer: int) -> float:
    """The share of KV numbers that is left, by its definition."""
    entries = [(w, of.window(i)) for i, w in enumerate(of.kv_widths)]

    def numbers(lengths: list[int]) -> int:
        return sum(
            w * (n if window is None else min(n, window - 1)) for (w, window), n in zip(entries, lengths, strict=True)
        )

    depth = len(of.layers)
    return numbers([columns if i < layer else short for i in range(depth)]) / numbers([columns] * depth)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_nearest_count_is_found(name: str, layer: int) -> None:
    of, tokens, columns = family(name), 37, 45
    for goal in ("visual_flops", "kv_share"):

        def share(kept: int, goal: str = goal) -> float:
            if goal == "visual_flops":
                return saved(of, tokens, kept, layer)
            return kv_left(of, columns, columns - tokens + kept, layer)

        reach = sorted((share(1), share(tokens)))
        if reach[0] == reach[1]:
            # From there on every layer borrows its keys.
            assert (name, goal, layer) == ("gemma4", "kv_share", 3)
            with pytest.raises(InputError, match="the minimum"):
                kept_counts(of, topv.Random(kv_share=0.9), (layer,), [tokens], columns)
            continue
        for step in range(12):
            wanted = min(max(reach[0] + (reach[1] - reach[0]) * step / 11, reach[0] + 1e-9), reach[1] - 1e-9)
            ((kept,),) = kept_counts(of, topv.Random(**{goal: wanted}), (layer,), [tokens], columns)
            gaps = {k: abs(share(k) - wanted) for k in range(1, tokens + 1)}
            assert gaps[kept] == pytest.approx(min(gaps.values()), abs=1e-12)


@pytest.mark.parametrize("sizes", [[36, 36], [36, 24, 10], [7, 1, 576], [5]])
@pytest.mark.parametrize("wanted", [0.0, 0.1, 0.33, 0.5, 0.59])
def test_every_budget_gets_the_same_ratio(sizes: list[int], wanted: float) -> None:
    of, tokens = family_of(shared_llava()), sum(sizes)
    counts = [k for (k,) in kept_counts(of, topv.TopV(visual_flops=wanted), (1,), sizes, tokens + 8)]
    # Every way to round a common ratio, over a grid of ratios finer than any budget.
    ways = {tuple(keep_count(n, k / 4_000) for n in sizes) for k in range(1, 4_001)}
    assert tuple(counts) in ways
    gaps = [abs(saved(of, tokens, sum(way), 1) - wanted) for way in ways]
    assert abs(saved(of, tokens, sum(counts), 1) - wanted) == pytest.approx(min(gaps), abs=1e-12)


def test_a_tie_keeps_more() -> None:
    of = family_of(shared_llava(layers=4))
    # Leaving after the second of four equal layers saves 0.5, after the third 0.25: 0.375 is midway, and exact.
    assert layer_for_reduction(of, TOKENS, 0.375) == 3
    assert layer_for_reduction(of, TOKENS, 0.376) == 2
    # In KV numbers a token is worth as much wherever it stands: midway between two counts, exactly.
    one = prefill_cost(of, "kv_share", (2,), tokens=32, columns=32)
    midway = float((one.share((16,)) + one.share((15,))) / 2)
    assert kept_counts(of, topv.TopV(kv_share=midway), (2,), [32], 32) == [(16,)]


@pytest.mark.parametrize("target", [0.0, 0.2, 0.45, 0.5, 0.79])
def test_the_nearest_layer_is_found(target: float) -> None:
    of = family_of(shared_llava())
    layer = layer_for_reduction(of, TOKENS, target)
    gaps = {i: abs(saved(of, TOKENS, 0, i) - target) for i in range(1, 5)}
    assert gaps[layer] == pytest.approx(min(gaps.values()), abs=1e-12)


BATCH = [[3, "image", 4], [2, "image", 1, "image", 30], [6], ["image", 2]]
METHODS: list[Method] = [
    topv.TopV(visual_flops=0.3),
    topv.TopV(kv_share=0.7, layer=1),
    topv.FastV(visual_flops=0.45, layer=1),
    topv.Random(kv_share=0.8, budget="sample"),
    topv.Uniform(visual_flops=0.2, budget="image"),
    topv.MeanCost(kv_share=0.9),
    topv.Random(kv_share=0.5, compact_early_layers=True),
    topv.Uniform(visual_flops=0.9, layer=0),
]


def one_of(inputs: Any, samples: Any, number: int) -> dict[str, torch.Tensor]:
    """One sample's inputs out of a batch's, without its padding."""
    images = [sample.count("image") for sample in samples]
    real = inputs["attention_mask"][number].bool()
    own = {name: inputs[name][number : number + 1, real] for name in ("input_ids", "attention_mask")}
    first = sum(images[:number])
    return own | ({"pixel_values": inputs["pixel_values"][first : first + images[number]]} if images[number] else {})


def kept(model: Any, method: Method, inputs: Any) -> tuple[list[list[int]], topv.Report]:
    with topv.prune(model, method) as pruning, torch.no_grad():
        model(**inputs, use_cache=True)
    padding = (inputs["attention_mask"] == 0).sum(1).tolist()
    rows = [(columns - pad).tolist() for columns, pad in zip(pruning.kept_positions, padding, strict=True)]
    return rows, pruning.report()


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_sample_keeps_the_same_in_any_batch(method: Method) -> None:
    model = shared_llava()
    inputs = prompt(BATCH)
    together, report = kept(model, method, inputs)
    assert report.target == "{}={:g}".format(*(method.goal or ("", 0)))
    for number in range(len(BATCH)):
        (alone,), own = kept(model, method, one_of(inputs, BATCH, number))
        assert alone == together[number]
        assert own.reached == (report.reached[number],)
    assert report.reached[2] is None


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_what_is_reached_is_what_ran(method: Method) -> None:
    model = shared_llava()
    (columns,), report = kept(model, method, prompt([BATCH[0]]))
    assert method.goal is not None
    goal, wanted = method.goal
    layer = method.pruning_layer(5)
    start = 0 if method.compact_early_layers else layer
    actual = report.visual_flops_reduction if goal == "visual_flops" else report.kv_bytes / report.kv_bytes_unpruned
    assert report.reached == (pytest.approx(actual, abs=1e-12),)
    assert report.kept_tokens == len(columns)
    # One token more or less is further away.
    of, prompt_length = family_of(model), 3 + TOKENS + 4
    for other in (len(columns) - 1, len(columns) + 1):
        share = (
            saved(of, TOKENS, other, layer)
            if goal == "visual_flops"
            else kv_left(of, prompt_length, prompt_length - TOKENS + other, start)
        )
        assert abs(share - wanted) >= abs(actual - wanted) - 1e-12
    assert f"{method.goal[0]}={wanted:g}, reached {actual:.4f}" in str(report)


def test_the_report_says_how_far_samples_differ() -> None:
    _, report = kept(shared_llava(), topv.TopV(visual_flops=0.3), prompt(BATCH))
    shares = sorted(share for share in report.reached if share is not None)
    assert len(set(shares)) > 1
    assert f"reached {shares[0]:.4f} to {shares[-1]:.4f}" in str(report)
    assert report.to_dict()["reached"] == list(report.reached)
    _, plain = kept(shared_llava(), topv.TopV(), prompt(BATCH))
    assert (plain.target, plain.reached) == (None, ())
    assert "reached" not in str(plain)


@pytest.mark.parametrize("method", [topv.TopV(visual_flops=0.0), topv.TopV(kv_share=1.0)], ids=repr)
def test_a_target_of_nothing_changes_no_bit(method: Method) -> None:
    model, inputs = shared_llava(), prompt(BATCH)
    with torch.no_grad():
        untouched = model(**inputs).logits
        with topv.prune(model, method) as pruning:
            assert torch.equal(model(**inputs).logits, untouched)
    report = pruning.report()
    assert report.kept_tokens == report.visual_tokens
    assert [share for share in report.reached if share is not None] == [method.goal[1]] * 3  # type: ignore[index]


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        (topv.TopV(visual_flops=0.7), ["visual_flops=0.7", "1 of 36", "58.7073%", "the maximum"]),
        (topv.FastV(kv_share=0.3), ["kv_share=0.3", "layer 2", "the minimum"]),
    ],
)
def test_what_is_out_of_reach_is_said(method: Method, parts: list[str]) -> None:
    with topv.prune(shared_llava(), method), torch.no_grad(), pytest.raises(InputError) as error:
        shared_llava()(**prompt([[3, "image", 4]]))
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize(
    ("reduction", "tokens", "parts"),
    [(0.81, TOKENS, ["81.0000%", "80.0000%, the maximum"]), (1.0, 9, ["[0, 1)"]), (0.5, 0, ["visual_tokens=0"])],
)
def test_layers_out_of_reach(reduction: float, tokens: int, parts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        layer_for_reduction(family_of(shared_llava()), tokens, reduction)
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize(
    ("settings", "error", "parts"),
    [
        ({"keep": 0.5, "visual_flops": 0.5}, ValueError, ["keep=0.5 and visual_flops=0.5", "with_budget"]),
        ({"keep": 9, "kv_share": 0.5}, ValueError, ["keep=9 and kv_share=0.5"]),
        ({"visual_flops": 0.5, "kv_share": 0.5}, ValueError, ["visual_flops=0.5 and kv_share=0.5"]),
        ({"visual_flops": 1.0}, ValueError, ["visual_flops=1.0", "[0, 1)"]),
        ({"visual_flops": -0.1}, ValueError, ["visual_flops=-0.1"]),
        ({"visual_flops": float("nan")}, ValueError, ["visual_flops=nan"]),
        ({"kv_share": 0.0}, ValueError, ["kv_share=0.0", "(0, 1]"]),
        ({"kv_share": "half"}, TypeError, ["'half'", "str"]),
        ({"visual_flops": True}, TypeError, ["bool"]),
    ],
)
def test_settings_that_do_not_fit(settings: Any, error: type[Exception], parts: list[str]) -> None:
    for method in (topv.TopV, topv.FastV, topv.Random):
        with pytest.raises(error) as raised:
            method(**settings)
        assert all(part in str(raised.value) for part in parts), str(raised.value)


def test_vtw_takes_no_target() -> None:
    with pytest.raises(TypeError, match="visual_flops"):
        topv.VTW(visual_flops=0.5)  # type: ignore[call-arg]


def test_methods_show_the_budget_that_they_have() -> None:
    assert repr(topv.Random()) == "Random(keep=0.5, layer=2, budget='grid', compact_early_layers=False, seed=0)"
    shown = "Random(layer=2, budget='grid', compact_early_layers=False, kv_share=0.6, seed=0)"
    assert repr(topv.Random(kv_share=0.6)) == shown
    assert repr(topv.VTW(layer=3)) == "VTW(layer=3, compact_early_layers=False)"
    assert topv.TopV().keep == 0.5
    assert topv.TopV(kv_share=1) == topv.TopV(kv_share=1.0) == topv.TopV(keep=9).with_budget(kv_share=1.0)
    assert topv.TopV(kv_share=0.5).with_budget(keep=9, kv_share=None) == topv.TopV(keep=9)
    assert replace(topv.TopV(visual_flops=0.5), layer=3) == topv.TopV(visual_flops=0.5, layer=3)
    assert eval(repr(topv.TopV(visual_flops=0.5)), {"TopV": topv.TopV}) == topv.TopV(visual_flops=0.5)
    with pytest.raises(ValueError, match="depends on the model"):
        topv.TopV(visual_flops=0.5).count(36)


def test_protected_positions_stay_inside_a_target() -> None:
    model, inputs = shared_llava(), prompt([[3, "image", 4]])
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, 5] = 7
    with topv.prune(model, topv.Random(visual_flops=0.3)) as pruning, torch.no_grad():
        model(**inputs)
        free = pruning.report()
        model(**inputs, labels=labels)
    assert pruning.report() == free
    assert 4 in pruning.kept_positions[0].tolist()
