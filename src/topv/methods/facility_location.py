"""FacilityLocation: keep the set of tokens from which all targets are reached at least cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import transport
from .base import Evidence
from .cost import CostMethod
from .greedy import ranking

__all__ = ["FacilityLocation"]

_LEVELS = 2.0**32
"""Steps into which the range of a grid's costs is divided."""
_EQUAL_BITS = 12
"""Savings are compared without this many low bits: 2^-20 of the largest cost, which is what float32 costs leave."""


@dataclass(frozen=True, kw_only=True)
class FacilityLocation(CostMethod):
    r"""Keep the set of source tokens that supplies all target tokens at the least transport cost.

    `TopV` by coverage makes the cost of the dearest target small, this method the sum over all targets. For a kept
    *set* S, with sources outside S closed and no bound on what an open one supplies, the transport problem

        min over P >= 0 of <P, C>  subject to  P^T 1 = 1/N,  P_ij = 0 for i outside S

    sends each target to its cheapest open source, and costs c(S) = (1/N) sum_j min_{i in S} C_ij: facility location, or
    the k-median. Each pick is the token that lowers c most, which finds at least 1 - 1/e of the best possible saving
    (Nemhauser, Wolsey and Fisher, Mathematical Programming 1978, since the saving is submodular). A copy of a kept
    token saves nothing.

    Ties go to the lower index. The distance from the centre, weighted by `gamma`, is part of the cost here: a source at
    the rim is dear to use. Scores are what each pick saved, out of a start at which every target costs as much as the
    dearest pair of its grid: for grids that share a budget, keeping the highest of them is the greedy choice for the
    sum of their costs, each scaled within its grid.

    This method is topv's own; no paper describes it.
    """

    @torch.no_grad()
    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        source, target = self.problem(evidence)
        cost = transport.cost_matrix(
            source,
            target,
            evidence.coordinates,
            **self.cost_settings,
        )
        if cost.device.type == "cpu" and not torch.compiler.is_compiling():
            return torch.cat([_greedy(grid, count, dense=False) for grid in cost.split(1)])
        return _greedy(cost, count, dense=True)


def _greedy(cost: torch.Tensor, count: int, *, dense: bool) -> torch.Tensor:
    """Scores (G, N) of the greedy choice of `count` rows of `cost` (G, N, N).

    Costs are rounded to 2^-32 of their grid's largest, finer than float32, and counted in whole numbers: then sums are
    exact in any order, and it does not matter how savings are brought up to date. Savings that differ by no more than
    float32 costs can tell are a tie.

    Args:
        cost: float32, rows are sources.
        count: how many to pick.
        dense: whether to sum all savings anew after each pick, which is all that fixed shapes allow, or only those of
            the targets that a pick has made cheaper, which are ever fewer, but need the host to look.
    """
    grids, tokens, _ = cost.shape
    largest = cost.amax((1, 2), keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    price = ((cost / largest) * _LEVELS).round().to(torch.int64)
    across = price if dense else price.transpose(1, 2).contiguous()
    cheapest = price.amax((1, 2)).unsqueeze(1).expand(grids, tokens)
    saving = (cheapest.unsqueeze(1) - price).sum(2)
    taken = torch.zeros(grids, tokens, dtype=torch.bool, device=cost.device)
    picks, values, half = [], [], 1 << (_EQUAL_BITS - 1)
    for _ in range(count):
        pick = ((saving + half) >> _EQUAL_BITS).masked_fill(taken, -1).argmax(1, keepdim=True)
        picks.append(pick.squeeze(1))
        values.append(saving.gather(1, pick).squeeze(1))
        taken = taken.scatter(1, pick, True)
        before = cheapest
        cheapest = torch.minimum(before, price.gather(1, pick.unsqueeze(2).expand(-1, -1, tokens)).squeeze(1))
        if dense:
            saving = (cheapest.unsqueeze(1) - price).clamp_min_(0).sum(2)
            continue
        for grid in range(grids):
            cheaper = (cheapest[grid] < before[grid]).nonzero().squeeze(1)
            prices = across[grid, cheaper]
            was = (before[grid, cheaper].unsqueeze(1) - prices).clamp_min_(0)
            now = (cheapest[grid, cheaper].unsqueeze(1) - prices).clamp_min_(0)
            saving[grid] -= was.sub_(now).sum(0)
    unit = largest.squeeze(2) / (_LEVELS * tokens)
    return ranking(picks, list((torch.stack(values, dim=1) * unit).unbind(1)), tokens)
