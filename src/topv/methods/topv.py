"""TopV: visual-token pruning posed as an optimal-transport problem."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from .. import transport
from .base import Evidence
from .cost import CostMethod

__all__ = ["TopV"]


@dataclass(frozen=True, kw_only=True)
class TopV(CostMethod):
    """Keep the source tokens that supply a layer's target tokens best: an optimal-transport problem.

    Yang et al., "TopV: Compatible Token Pruning with Inference Time Optimization for Fast and Low-Memory Multimodal
    Vision Language Model", CVPR 2025 (arXiv 2503.18278). With C the cost of supplying target token j from source token
    i, tokens are ranked in one of four ways:

    - "coverage", the default: the kept tokens are chosen as a set. With all other sources closed each target is
      supplied by its cheapest kept one, and the dearest of these costs, max_j min_{i kept} C_ij, is made small, one
      source at a time (`topv.transport.coverage`). Of two tokens alike one stays. This choice is topv's own.
    - "demand", "potential", "relaxed": each token for itself, from P, the plan after `iterations` Sinkhorn iterations.
      With u its source scaling and f = eps log u: sum_j P_ij under hard marginals, ending on the target side, which is
      the demand on i beyond its share; f_i, the shadow price of i, high where nothing else can replace it; and
      sum_j P_ij under relaxed source marginals (`rho` finite). The paper does not say which it means.

    Under "demand" and "potential" the central distance is subtracted from the standardised importance, since hard
    marginals cancel it inside the solve; in the other two it is part of the cost.

    Args:
        importance: how tokens are ranked, see above.
        eps: entropic regularisation of the plan, above 0. "coverage" solves for no plan and reads none of these three.
        rho: weight of the relaxed source marginal ("relaxed" only).
        iterations: Sinkhorn iterations, at least 1.
    """

    importance: Literal["coverage", "demand", "potential", "relaxed"] = "coverage"
    eps: float = 0.3
    rho: float = 0.1
    iterations: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.importance not in ("coverage", *get_args(transport.Reading)):
            raise ValueError(
                f"importance={self.importance!r} must be 'coverage', 'demand', 'potential' or 'relaxed': how tokens "
                "are ranked."
            )
        if not math.isfinite(self.eps) or self.eps <= 0:
            raise ValueError(f"eps={self.eps!r} must be a finite number above 0.")
        if math.isnan(self.rho) or self.rho < 0:
            raise ValueError(f"rho={self.rho!r} must be at least 0.")
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 1:
            raise ValueError(f"iterations={self.iterations!r} must be an integer of at least 1.")

    @classmethod
    def paper(cls, *, keep: float | int = 0.5, layer: int = 2) -> TopV:
        """The setting nearest the paper's text: layer 2, Post-LN targets, all three cost terms, 3 iterations, a
        uniformly recovered share. The paper gives no values for the weights; these are ours."""
        return cls(
            keep=keep,
            layer=layer,
            target="post_norm",
            importance="demand",
            alpha=1.0,
            beta=1.0,
            gamma=0.01,
            sigma=10.0,
            eps=0.1,
            iterations=3,
            recovery=0.25,
        )

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        source, target = self.problem(evidence)
        if self.importance == "coverage":
            return transport.coverage(
                source,
                target,
                evidence.coordinates,
                # Grids that share a budget may be asked for more than one of them has.
                min(count, source.shape[1]),
                **self.cost_settings,
            )
        return transport.importance(
            self.importance,
            source,
            target,
            evidence.coordinates,
            eps=self.eps,
            rho=self.rho,
            iterations=self.iterations,
            **self.cost_settings,
        )
