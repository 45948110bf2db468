"""TopV: visual-token pruning posed as an optimal-transport problem."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from .. import transport
from .base import Evidence
from .cost import CostMethod

__all__ = ["TopV"]


@dataclass(frozen=True, kw_only=True)
class TopV(CostMethod):
    """Rank source tokens by what they contribute to a transport plan onto the layer's target tokens.

    Yang et al., "TopV: Compatible Token Pruning with Inference Time Optimization for Fast and Low-Memory Multimodal
    Vision Language Model", CVPR 2025 (arXiv 2503.18278). With P the plan after `iterations` Sinkhorn iterations,
    u its source scaling and f = eps log u, the importance of source token i is one of three readings:

    - "demand": sum_j P_ij under hard marginals, ending on the target side: the demand on i beyond its share.
    - "potential": f_i, the shadow price of i: high where nothing else can replace it.
    - "relaxed": sum_j P_ij under relaxed source marginals (`rho` finite).

    In the first two the central distance is subtracted from the standardised importance, since hard marginals
    cancel it inside the solve.

    Args:
        importance: the reading, see above.
        eps: entropic regularisation of the plan, above 0.
        rho: weight of the relaxed source marginal ("relaxed" only).
        iterations: Sinkhorn iterations, at least 1.
    """

    importance: Literal["demand", "potential", "relaxed"] = "demand"
    eps: float = 0.3
    rho: float = 0.1
    iterations: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.importance not in ("demand", "potential", "relaxed"):
            raise ValueError(f"importance={self.importance!r} must be 'demand', 'potential' or 'relaxed'.")
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

    @property
    def has_mass(self) -> bool:
        return self.recovery == 0

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        source, target = self.problem(evidence)
        return transport.importance(
            self.importance,
            source,
            target,
            evidence.coordinates,
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
            sigma=self.sigma,
            eps=self.eps,
            rho=self.rho,
            iterations=self.iterations,
            normalize=self.normalize,
            scale=self.scale,
            target_weights=self.target_weights(evidence),
        )
