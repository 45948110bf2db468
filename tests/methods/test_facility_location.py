"""FacilityLocation, on a case worked by hand and against its definition."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from topv import transport
from topv.layout import coordinates
from topv.methods import Evidence, FacilityLocation
from topv.methods.facility_location import _greedy
from topv.selection import select


def evidence(source: torch.Tensor, target: torch.Tensor, shape: tuple[int, int]) -> Evidence:
    return Evidence(shape, coordinates(shape), tuple(range(len(source))), source=source, target=target)


def test_a_case_worked_by_hand() -> None:
    """Five tokens on a line at 0, 1, 4, 5 and 9 that are their own targets; costs are distances over 9.

    Sums of distances: 19, 16, 13, 14, 26, so token 2, and the targets cost 4, 3, 0, 1, 5. Then token 0 saves 4 + 2 = 6,
    token 1 saves 3 + 3 = 6, token 3 saves 1 + 1, token 4 saves 5: a tie, so token 0. Costs 0, 1, 0, 1, 5: token 4 saves
    5, token 3 saves 2, token 1 saves 1. Then tokens 1 and 3 save 1 each. The first saves 5 * 9 - 13 = 32 of the start.
    """
    places = torch.tensor([0.0, 1.0, 4.0, 5.0, 9.0]).view(1, 5, 1)
    method = FacilityLocation(normalize=False)
    scores = method.score(evidence(places, places, (1, 5)), 5)
    assert torch.allclose(scores * 45, torch.tensor([[6.0, 1.0, 32.0, 1.0, 5.0]]), atol=1e-5)
    for count, kept in ((1, [2]), (2, [0, 2]), (3, [0, 2, 4]), (4, [0, 1, 2, 4])):
        scores = method.score(evidence(places, places, (1, 5)), count)
        assert select(scores, count).indices[0].tolist() == kept


def random(grids: int = 2, tokens: int = 30) -> Evidence:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(grids, tokens, 8, generator=generator)
    noise = 0.3 * torch.randn(source.shape, generator=generator)
    shape = (5, tokens // 5)
    return Evidence(
        shape,
        coordinates(shape),
        tuple(range(grids)),
        source=source,
        target=source + noise,
    )


@pytest.mark.parametrize("gamma", [0.0, 0.4])
def test_each_pick_lowers_the_cost_most(gamma: float) -> None:
    seen = random()
    method = FacilityLocation(beta=0.3, gamma=gamma)
    assert seen.source is not None
    assert seen.target is not None
    cost = transport.cost_matrix(
        seen.source, seen.target, seen.coordinates, alpha=1.0, beta=0.3, gamma=gamma, sigma=3.0, normalize=True
    ).double()
    scores = method.score(seen, 12)
    for grid in range(2):
        picked: list[int] = []
        for _ in range(12):
            rest = [i for i in range(30) if i not in picked]
            picked.append(min(rest, key=lambda i: float(cost[grid, [*picked, i]].amin(0).sum())))
        assert scores[grid].topk(12).indices.tolist() == picked
        saved = cost[grid].max() - cost[grid, picked].amin(0).mean()
        assert float(scores[grid, picked].sum()) == pytest.approx(float(saved), rel=1e-5)


def test_the_choice_is_near_the_best_there_is() -> None:
    seen = random(1, 10)
    assert seen.source is not None
    assert seen.target is not None
    cost = transport.cost_matrix(
        seen.source, seen.target, seen.coordinates, alpha=1.0, beta=0.0, gamma=0.0, sigma=3.0, normalize=True
    )[0]
    kept = select(FacilityLocation().score(seen, 4), 4).indices[0]
    best = min(float(cost[list(some)].amin(0).mean()) for some in itertools.combinations(range(10), 4))
    start = float(cost.max())
    saved = start - float(cost[kept].amin(0).mean())
    assert saved >= (1 - 1 / math.e) * (start - best)


def test_grids_that_share_a_budget_lower_the_sum_of_their_costs() -> None:
    """The ten highest scores of two grids are what greed picks from both together, from the same start."""
    seen = random()
    assert seen.source is not None
    assert seen.target is not None
    cost = transport.cost_matrix(
        seen.source, seen.target, seen.coordinates, alpha=1.0, beta=0.0, gamma=0.0, sigma=3.0, normalize=True
    ).double()
    served = cost.amax((1, 2)).unsqueeze(1).expand(2, 30).clone()
    picked: list[int] = []
    for _ in range(10):
        saved = (served.unsqueeze(1) - cost).clamp(min=0).sum(2).flatten()
        picked.append(int(saved.argmax()))
        grid, token = divmod(picked[-1], 30)
        served[grid] = torch.minimum(served[grid], cost[grid, token])
    scores = FacilityLocation().score(seen, 10).view(1, -1)
    assert select(scores, 10).indices[0].tolist() == sorted(picked)
    assert {token // 30 for token in picked} == {0, 1}


def test_copies_are_not_kept_twice() -> None:
    """Six copies of one token, and two tokens alone: the greatest mean cost belongs to the two, and each stays once."""
    one = torch.eye(3)
    source = torch.stack([one[0]] * 6 + [one[1], one[2]])[None]
    scores = FacilityLocation().score(evidence(source, source, (2, 4)), 4)
    assert select(scores, 3).indices[0].tolist() == [0, 6, 7]
    assert select(scores, 4).indices[0].tolist() == [0, 1, 6, 7]


@pytest.mark.parametrize("count", [1, 13, 30])
def test_both_ways_to_keep_savings_up_to_date_agree_to_the_bit(count: int) -> None:
    cost = torch.rand(3, 30, 30, generator=torch.Generator().manual_seed(1))
    cost[1] = (cost[1] * 4).round()  # many ties
    cost[2] = 0.0
    assert torch.equal(_greedy(cost, count, dense=True), _greedy(cost, count, dense=False))


def test_a_share_may_be_recovered() -> None:
    seen = random(1)
    method = FacilityLocation(recovery=0.5)
    assert method.recovered(10, 30) == 5
    kept: Any = select(method.score(seen, 10), 10, 5)
    ranked = kept.indices[0][~kept.recovered[0]]
    assert torch.equal(ranked, select(FacilityLocation().score(seen, 5), 5).indices[0])
