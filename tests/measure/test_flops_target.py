"""Budgets for a wanted saving, against a search over every choice."""

from __future__ import annotations

import pytest
import torch

from tiny_models import TOKENS, prompt, shared_llava
from topv.errors import InputError
from topv.measure import keep_for_reduction, layer_for_reduction
from topv.methods import VTW, Uniform
from topv.models import family_of
from topv.runtime import prune


def reduction(model, tokens, kept, layer):
    family = family_of(model)
    depth = len(family.layers)
    whole = sum(family.visual_flops(i, tokens) for i in range(depth))
    return 1 - sum(family.visual_flops(i, tokens if i < layer else kept) for i in range(depth)) / whole


@pytest.mark.parametrize("layer", [0, 1, 2, 4])
@pytest.mark.parametrize("target", [0.0, 0.001, 0.03, 0.1, 0.17, 0.19])
def test_the_nearest_count_is_found(layer, target):
    model = shared_llava()
    kept, achieved = keep_for_reduction(model, 37, target, layer)
    gaps = {k: abs(reduction(model, 37, k, layer) - target) for k in range(1, 38)}
    assert gaps[kept] == pytest.approx(min(gaps.values()), abs=1e-12)
    assert achieved == pytest.approx(reduction(model, 37, kept, layer))


@pytest.mark.parametrize("target", [0.0, 0.2, 0.45, 0.5, 0.79])
def test_the_nearest_layer_is_found(target):
    model = shared_llava()
    layer, achieved = layer_for_reduction(model, TOKENS, target)
    gaps = {i: abs(reduction(model, TOKENS, 0, i) - target) for i in range(1, 5)}
    assert gaps[layer] == pytest.approx(min(gaps.values()), abs=1e-12)
    assert achieved == pytest.approx(1 - layer / 5)


def test_what_is_promised_is_what_the_run_reports():
    model, inputs = shared_llava(), prompt([[3, "image", 4]])
    kept, promised = keep_for_reduction(model, TOKENS, 0.4, 2)
    before, first = keep_for_reduction(model, TOKENS, 0.4, 0)
    layer, withdrawn = layer_for_reduction(model, TOKENS, 0.4)
    for method, expected in (
        (Uniform(keep=kept, layer=2), promised),
        (Uniform(keep=before, layer=0), first),
        (VTW(layer=layer), withdrawn),
    ):
        with prune(model, method) as pruning, torch.inference_mode():
            model(**inputs)
        assert pruning.report().visual_flops_reduction == pytest.approx(expected)


def test_a_tie_goes_to_the_smaller_saving():
    model = shared_llava(layers=4)
    # Leaving after the second of four equal layers saves 0.5, after the third 0.25: 0.375 is midway, and exact.
    assert layer_for_reduction(model, TOKENS, 0.375) == (3, 0.25)
    assert layer_for_reduction(model, TOKENS, 0.376) == (2, 0.5)


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda m: keep_for_reduction(m, TOKENS, 0.7, 2), ["70.0%", "out of reach", "layer 2", "the maximum"]),
        (lambda m: layer_for_reduction(m, TOKENS, 0.81), ["81.0%", "80.0%, the maximum"]),
        (lambda m: keep_for_reduction(m, TOKENS, 1.0, 2), ["reduction=1.0", "[0, 1)"]),
        (lambda m: keep_for_reduction(m, TOKENS, -0.1, 2), ["reduction=-0.1"]),
        (lambda m: keep_for_reduction(m, TOKENS, float("nan"), 2), ["reduction=nan"]),
        (lambda m: keep_for_reduction(m, 0, 0.1, 2), ["visual_tokens=0"]),
        (lambda m: keep_for_reduction(m, TOKENS, 0.1, 5), ["layer=5", "0 to 4"]),
        (lambda m: keep_for_reduction(m, TOKENS, 0.1, -1), ["layer=-1", "0 to 4"]),
    ],
)
def test_what_is_out_of_reach_is_said(call, parts):
    with pytest.raises(InputError) as error:
        call(shared_llava())
    assert all(part in str(error.value) for part in parts), str(error.value)
