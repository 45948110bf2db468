"""CDPruner: keep visual tokens that are diverse, given what the prompt asks for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import Evidence, Method
from .greedy import cosine_similarity, mean_cosine, ranking

__all__ = ["CDPruner"]

_EXHAUSTED = 1e-9
"""A token whose share of new volume is below this lies in the span of what was picked, to rounding."""


@dataclass(frozen=True, kw_only=True)
class CDPruner(Method):
    r"""Keep the most likely set of a determinantal point process conditioned on the prompt.

    Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs", NeurIPS
    2025 (arXiv 2506.10967). With L_ij = cos(v_i, v_j) over the visual tokens v, r_i their relevance to the text scaled
    to [0, 1] within the grid, and

        L~ = diag(r) L diag(r),      log det(L~_S) = sum over i in S of log r_i^2 + log det(L_S),

    the set S of K tokens that maximises det(L~_S) is sought greedily, each pick by the volume d_i^2 that it adds,
    updated by one row of a Cholesky factor (Chen et al., NeurIPS 2018, arXiv 1709.05135).

    Where this differs from the paper: for LLaVA the paper takes relevance from CLIP's own text encoder and projections,
    which models loaded here do not carry, and its code negates it, a quirk that its authors report of CLIP alone. Here
    r_i is the mean cosine of v_i with the prompt's text tokens where both enter the decoder, as the paper does for
    models without a text encoder, not negated. All of the prompt's text counts, the chat template's included; a prompt
    without text gives every token the same relevance, which leaves plain diversity.

    Where the paper leaves a choice: ties go to the lower index; each grid is a problem of its own; once the picked
    tokens span all others (K above the rank of L), the rest follow by relevance.

    Scores are d_i^2 at the time of the pick, which grids that share a budget compare: log det of a kernel that is
    block-diagonal over grids is their sum. Relevance is scaled within each grid and does not say which grid matters.

    Args:
        layer: number of decoder layers that see every token; 0, the published choice, prunes before the decoder.
            Otherwise tokens are compared where they enter layer `layer - 1`.
        theta: None for the kernel above; or a weight in [0, 1) of relevance against diversity, with exp(a r), a =
            theta / (2 (1 - theta)), in place of r: 0 is plain diversity.
    """

    layer: int | None = 0
    theta: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.theta is not None and not 0 <= self.theta < 1:
            raise ValueError(f"theta={self.theta!r} must be None or in [0, 1): the weight of relevance.")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"source", "text"})

    @torch.no_grad()
    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        source, text, mask = evidence.source, evidence.text, evidence.text_mask
        if source is None or text is None or mask is None:
            raise ValueError("CDPruner needs evidence.source (G, N, D) and evidence.text (G, M, D), and got None.")
        relevance = _relevance(source, text, mask)
        weight = relevance if self.theta is None else (relevance * (self.theta / (2 - 2 * self.theta))).exp()
        kernel = cosine_similarity(source).mul_(weight.unsqueeze(2)).mul_(weight.unsqueeze(1))
        grids, tokens, _ = kernel.shape
        volume = kernel.diagonal(dim1=1, dim2=2).clone()
        least = volume * _EXHAUSTED
        factor = kernel.new_zeros(grids, count, tokens)
        taken = torch.zeros(grids, tokens, dtype=torch.bool, device=source.device)
        picks, values = [], []
        for step in range(count):
            # In float32 volumes that differ by rounding alone are equal, and ties are ties.
            worth = torch.where(volume > least, volume, relevance - 2.0).float().masked_fill(taken, -torch.inf)
            pick = worth.argmax(1, keepdim=True)
            picks.append(pick.squeeze(1))
            values.append(worth.gather(1, pick).squeeze(1))
            taken = taken.scatter(1, pick, True)
            everywhere = pick.unsqueeze(2)
            row = kernel.gather(1, everywhere.expand(-1, -1, tokens)).squeeze(1)
            before = factor[:, :step]
            own = before.gather(2, everywhere.expand(-1, step, 1))
            # Once all is exhausted this is rounding or NaN, neither of which is above `least` ever again.
            factor[:, step] = (row - (own.transpose(1, 2) @ before).squeeze(1)) / volume.gather(1, pick).sqrt()
            volume = volume - factor[:, step].square()
        return ranking(picks, values, tokens)


def _relevance(source: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean cosine of each visual token with the text tokens, scaled to [0, 1] within its grid: (G, N), in `double`.

    1 everywhere in a grid whose tokens are all as relevant.
    """
    cosine = mean_cosine(source, text, mask)
    lowest, highest = cosine.amin(1, keepdim=True), cosine.amax(1, keepdim=True)
    spread = highest - lowest
    flat = spread < 1e-12
    return torch.where(flat, 1.0, (cosine - lowest) / torch.where(flat, 1.0, spread))
