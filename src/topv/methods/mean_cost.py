"""MeanCost: TopV's cost matrix without any transport, as a control."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import transport
from .base import Evidence
from .cost import CostMethod

__all__ = ["MeanCost"]


@dataclass(frozen=True, kw_only=True)
class MeanCost(CostMethod):
    """Rank source tokens by the mean of their row of TopV's cost matrix: far from every target means important.

    What the transport plan adds is what `TopV(importance="demand")` gains over this method.
    """

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        source, target = self.problem(evidence)
        cost = transport.cost_matrix(
            source,
            target,
            evidence.coordinates,
            **(self.cost_settings | {"gamma": 0.0}),
        )
        # As in TopV, the distance from the centre counts against a token, so it stays out of the row's mean.
        return transport.subtract_central(transport.mean_cost(cost), evidence.coordinates, gamma=self.gamma)
