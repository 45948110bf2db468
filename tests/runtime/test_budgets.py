"""Budgets that grids share: exact in number, and given to the tokens that score highest among all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import topv
from exactness_settings import uncompiled
from tiny_models import IMAGE_TOKEN, TOKENS, prompt, shared_llava
from tools.probe.recipes import recipes
from topv.budget import keep_count
from topv.verify.reference import masked_logits, relative_error

SAMPLES = [[3, "image", 2, "image", 4], [2, "image", 5], [6]]


def run(model: Any, inputs: dict[str, Any], method: topv.Method) -> tuple[Any, topv.Pruning]:
    with torch.no_grad(), topv.prune(model, method) as pruning:
        return model(**inputs), pruning


@pytest.mark.parametrize("keep", [0.5, 0.3, 7])
@pytest.mark.parametrize("budget", ["grid", "image", "sample"])
def test_counts_are_exact(budget: Any, keep: float | int) -> None:
    _, pruning = run(shared_llava(), prompt(SAMPLES), topv.TopV(keep=keep, budget=budget))
    shared = {"grid": [TOKENS, TOKENS], "image": [TOKENS, TOKENS], "sample": [2 * TOKENS]}[budget]
    assert len(pruning.kept_positions[0]) == sum(keep_count(tokens, keep) for tokens in shared)
    assert len(pruning.kept_positions[1]) == keep_count(TOKENS, keep)
    assert len(pruning.kept_positions[2]) == 0
    assert pruning.report().kept_tokens == sum(map(len, pruning.kept_positions))


def test_a_shared_budget_goes_to_the_highest_scores() -> None:
    inputs = prompt(SAMPLES)
    _, pruning = run(shared_llava(), inputs, topv.TopV(importance="demand", keep=0.3, budget="sample"))
    scores = pruning.importance[0]
    assert scores is not None
    visual = (inputs["input_ids"][0] == IMAGE_TOKEN).nonzero().squeeze(1)
    best = visual[scores.topk(keep_count(2 * TOKENS, 0.3)).indices].sort().values
    assert torch.equal(pruning.kept_positions[0], best)
    per_image = [(best < visual[TOKENS]).sum().item(), (best >= visual[TOKENS]).sum().item()]
    assert per_image[0] != per_image[1], "this seed should share unevenly, or the test shows nothing"


@pytest.mark.parametrize("budget", ["grid", "image", "sample"])
@pytest.mark.parametrize(
    "method", [topv.TopV, topv.MeanCost, topv.FacilityLocation, topv.Random, topv.Uniform, topv.FastV]
)
def test_every_method_is_exact_on_tiles_and_a_thumbnail(method: type[topv.Method], budget: Any) -> None:
    recipe = recipes()["internvl"]
    torch.manual_seed(0)
    model = recipe.build()
    model.set_attn_implementation("eager")
    inputs = recipe.prompt(model, [[4, "wide", 3, "image", 5]])
    with uncompiled():
        out, pruning = run(model, inputs, method(keep=0.4, budget=budget))
    grids = pruning.results.plan.layout.grids
    assert len({grid.image for grid in grids}) == 2
    assert len(grids) > 2
    shared: dict[Any, int] = {}
    for grid in grids:
        owner = {"grid": grid.ordinal, "image": grid.image, "sample": 0}[budget]
        shared[owner] = shared.get(owner, 0) + grid.tokens
    assert len(pruning.kept_positions[0]) == sum(keep_count(tokens, 0.4) for tokens in shared.values())
    visual = torch.zeros(inputs["input_ids"].shape[1], dtype=torch.bool)
    for grid in grids:
        visual[grid.columns] = True
    want = masked_logits(model, topv.models.family_of(model), inputs, pruning.kept_positions[0], visual, 2)
    stays = ~visual
    stays[pruning.kept_positions[0]] = True
    assert relative_error(out.logits[:, stays], want[:, stays]) <= 1e-5


def test_one_grid_alone_is_the_same_under_every_budget() -> None:
    inputs = prompt([[3, "image", 4]])
    kept = [run(shared_llava(), inputs, topv.TopV(keep=0.4, budget=b))[1].kept_positions[0] for b in ("grid", "sample")]  # type: ignore[arg-type]
    assert torch.equal(*kept)


def test_other_budgets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"budget='batch'.*'sample'"):
        topv.TopV(budget="batch")  # type: ignore[arg-type]
