"""SparseVLM: text tokens that are relevant to the image rate the visual tokens, at several layers."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch

from .base import Evidence
from .greedy import double
from .staged import StagedMethod

__all__ = ["SparseVLM"]

_PLACES = (Fraction(0), Fraction(4, 30), Fraction(13, 30))
_SCHEDULE = (300, 200, 110)


@dataclass(frozen=True, kw_only=True)
class SparseVLM(StagedMethod):
    r"""Keep the visual tokens that relevant text tokens attend to most, fewer at each pruning layer.

    Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML 2025
    (arXiv 2410.04417). Where visual tokens v_j and text tokens q_i enter the decoder, text token i has the relevance

        R_i = mean over j of softmax_i( v_j . q_i ),

    and the raters are those with R_i above the mean of R. At each pruning layer visual tokens are ranked by the
    attention that they get from the raters in the layer before, averaged over raters and heads.

    Where this differs from the paper: pruned tokens are not recycled (merged into new ones). How many stay is a fixed
    schedule scaled to the budget, instead of following from the rank of the attention map: the proportions 300 : 200 :
    110 that the paper's code takes for LLaVA at 192 tokens, none above what there is. Pruning layers are the paper's 2,
    6 and 15 of 32, in proportion where the decoder is deeper or shallower. Text tokens are those behind the last
    visual token, since no other sees all of them; where there are none the last token rates alone. If all text tokens
    are equally relevant, all rate.
    """

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"attention_raters"})

    def places(self, depth: int) -> tuple[Fraction, ...]:
        return _PLACES

    def shares(self, ratio: Fraction, stages: int) -> tuple[Fraction, ...]:
        last = _SCHEDULE[stages - 1]
        return tuple(min(Fraction(1), ratio * Fraction(share, last)) for share in _SCHEDULE[:stages])

    @torch.no_grad()
    def raters(
        self, visual: torch.Tensor, visual_mask: torch.Tensor, text: torch.Tensor, text_mask: torch.Tensor
    ) -> torch.Tensor:
        # In float32 a sum's order, and so the batch, could decide who is above the mean.
        dtype = double(visual.device)
        with torch.autocast(visual.device.type, enabled=False):
            likeness = visual.to(dtype) @ text.to(dtype).transpose(1, 2)
        likeness = likeness.masked_fill(~text_mask.unsqueeze(1), -torch.inf)
        share = likeness.softmax(2) * visual_mask.unsqueeze(2)
        relevance = share.sum(1) / visual_mask.sum(1, keepdim=True).clamp(min=1)
        mean = relevance.sum(1, keepdim=True) / text_mask.sum(1, keepdim=True)
        rates = (relevance > mean) & text_mask
        rates = torch.where(rates.any(1, keepdim=True), rates, text_mask).float()
        return rates / rates.sum(1, keepdim=True)

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        if evidence.attention is None:
            raise ValueError("SparseVLM needs evidence.attention (G, N), and got None.")
        return evidence.attention
