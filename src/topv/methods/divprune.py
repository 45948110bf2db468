"""DivPrune: keep visual tokens that are as far from one another as can be."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import Evidence, Method
from .greedy import cosine_similarity, ranking

__all__ = ["DivPrune"]

_SAME = 1e-12
"""Cosine distances below this are 0: what is left of two equal tokens after rounding."""


@dataclass(frozen=True, kw_only=True)
class DivPrune(Method):
    r"""Keep a set of visual tokens whose smallest distance to one another is large.

    Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025 (arXiv
    2503.02175). With d(i, j) = 1 - cos(v_i, v_j) over the visual tokens v that enter the decoder, the max-min diversity
    problem

        max over S with |S| = K of min over i != j in S of d(i, j)

    is solved greedily: first the token whose nearest other token is farthest, then, until K are picked, the token whose
    nearest picked token is farthest. The text plays no part.

    Where the paper leaves a choice: ties go to the lower index; each grid (image, tile, frame) is a problem of its own.

    A token's score is its distance to the nearest token picked before it (2, the largest there is, for the first), so
    that grids that share a budget each keep a token and then those that add most diversity within their own grid.
    Distances between grids are not looked at.

    Args:
        layer: number of decoder layers that see every token; 0, the published choice, prunes before the decoder.
            Otherwise the distances are taken between the tokens that enter layer `layer - 1`.
    """

    layer: int | None = 0

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"source"})

    @torch.no_grad()
    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        source = evidence.source
        if source is None:
            raise ValueError("DivPrune needs evidence.source (G, N, D), and got None.")
        distance = 1.0 - cosine_similarity(source)
        # In float32 distances that differ by the rounding of their product alone are equal, and ties are ties.
        distance = torch.where(distance < _SAME, 0.0, distance).float()
        grids, tokens, _ = distance.shape
        itself = torch.eye(tokens, dtype=torch.bool, device=source.device)
        nearest = distance.masked_fill(itself, torch.inf).amin(2)
        picks = [nearest.argmax(1)]
        values = [nearest.new_full((grids,), 2.0)]
        nearest = torch.full_like(nearest, torch.inf)
        while len(picks) < count:
            last = picks[-1].unsqueeze(1)
            reached = distance.gather(1, last.unsqueeze(2).expand(-1, -1, tokens)).squeeze(1)
            nearest = torch.minimum(nearest, reached).scatter(1, last, -torch.inf)
            picks.append(nearest.argmax(1))
            values.append(nearest.gather(1, picks[-1].unsqueeze(1)).squeeze(1))
        return ranking(picks, values, tokens)
