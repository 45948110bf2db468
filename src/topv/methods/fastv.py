"""FastV: keep the visual tokens that the last prompt token attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from .base import Evidence, Method

__all__ = ["FastV"]


@dataclass(frozen=True, kw_only=True)
class FastV(Method):
    """Rank visual tokens by the attention that the last prompt token pays them in layer `layer - 1`.

    Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024 (arXiv 2403.06764). The score is the mean
    over heads of the softmax weights.

    Args:
        attention: "row" computes only the last token's row, so every layer stays on its fast attention path;
            "full" computes the layer's whole attention map, as published. Both give the same ranking.
    """

    attention: Literal["row", "full"] = "row"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention not in ("row", "full"):
            raise ValueError(f"attention={self.attention!r} must be 'row' or 'full'.")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"attention_row" if self.attention == "row" else "attention_map"})

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        if evidence.attention is None:
            raise ValueError("FastV needs evidence.attention (G, N), and got None.")
        return evidence.attention
