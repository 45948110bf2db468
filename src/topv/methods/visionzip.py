"""VisionZip: keep what the vision tower attends to, and an even sample of the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..budget import recovered_count
from .base import Evidence, Method

__all__ = ["VisionZip"]


@dataclass(frozen=True, kw_only=True)
class VisionZip(Method):
    """Keep the tokens whose patches get most attention in the vision tower, and context from the others.

    Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025 (arXiv
    2412.04467). Of the K tokens that stay, the *dominant* ones rank by the attention of the class token, or the mean
    attention of all patches in a tower that has no class token, averaged over heads, in the block whose output feeds
    the projector. The *contextual* ones are sampled uniformly among the rest. The text plays no part.

    Where this differs from the paper: there each contextual token is the average of the tokens most similar to it by
    attention key; here **nothing is merged**, and a contextual token stays as it is, because topv selects tokens and
    never changes them. The class token, which the published code counts among the dominant ones, is not among a
    model's visual tokens here. Where the paper leaves a choice: the uniform sample takes an even stride over the
    remaining tokens in raster order, from half a stride in; each grid is a problem of its own.

    Attention sums to one over a grid's patches, so scores of grids that share a budget say how concentrated each
    grid's attention is, not which grid the tower attends to.

    Args:
        layer: number of decoder layers that see every token; 0, the published choice, prunes before the decoder.
        contextual: share in [0, 1) of the kept tokens that are contextual. The paper keeps 54 dominant and 10
            contextual tokens of 64, 108 and 20 of 128, and 162 and 30 of 192.
    """

    layer: int | None = 0
    contextual: float = 0.15625

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.contextual < 1:
            raise ValueError(f"contextual={self.contextual!r} must be in [0, 1): a share of the kept tokens.")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"encoder_weights"})

    def recovered(self, count: int, tokens: int) -> int:
        return recovered_count(count, tokens, self.contextual)

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        if evidence.encoder_attention is None:
            raise ValueError("VisionZip needs evidence.encoder_attention (G, N), and got None.")
        return evidence.encoder_attention
