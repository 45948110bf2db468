"""The settings of a transport problem, as every backend takes them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .cost import Scale
from .kernel import SCALING_RANGE, vector_dtype

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """What to solve, and which of its results to return; checked by who makes it.

    A backend is a function ``(source, target, coordinates, problem) -> value`` of (B, N, D), (B, N, D) and (N, 2) or
    (B, N, 2). Its value, (B, N), is N P 1, what each source supplies over the even share, if ``supply``; else p, the
    potential of each source over eps, up to a constant per grid."""

    alpha: float
    beta: float
    gamma: float
    sigma: float
    normalize: bool
    scale: Scale
    eps: float
    damping: float
    iterations: int
    supply: bool

    @property
    def range(self) -> float:
        """No entry of C / eps is below 0, and none above this, whatever the tokens; infinite under scale="mean"."""
        if self.alpha and self.scale == "mean":
            return math.inf
        return (self.alpha + self.beta + self.gamma) / self.eps

    def scaling_is_safe(self, device: torch.device) -> bool:
        """Whether exp(-C / eps) can be summed as it is: see ``kernel.py``."""
        return self.range <= SCALING_RANGE and vector_dtype(device) == torch.float64
