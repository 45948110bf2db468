"""VTW: all visual tokens leave the decoder at a middle layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from .base import Evidence, Method

__all__ = ["VTW"]


@dataclass(frozen=True, kw_only=True)
class VTW(Method):
    """Withdraw every visual token at layer `layer` (half the depth by default).

    Lin et al., "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference",
    AAAI 2025 (arXiv 2405.05803). A visual token that is the prompt's last position, or that a label scores, stays.

    The layer decides alone what is saved, so it takes no `keep` and no target.

    Args:
        layer: number of decoder layers that see the visual tokens; None means half the decoder's depth.
    """

    keep: float | int | None = field(default=1.0, init=False, repr=False)
    layer: int | None = None
    budget: Literal["grid", "image", "sample"] = field(default="grid", init=False, repr=False)
    visual_flops: float | None = field(default=None, init=False, repr=False)
    kv_share: float | None = field(default=None, init=False, repr=False)
    has_importance: ClassVar[bool] = False

    @property
    def can_precede_decoder(self) -> bool:
        # Without a layer that sees visual tokens the answer would be blind.
        return False

    def count(self, tokens: int) -> int:
        return 0

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        return evidence.coordinates.new_zeros(len(evidence.images), evidence.coordinates.shape[0])
