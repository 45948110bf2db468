"""Whose attention says which visual tokens matter: the prompt's last token, or text tokens that a method weighs."""

from __future__ import annotations

import torch

from ..methods import Method
from .attention_row import Raters
from .plan import PrefillPlan

__all__ = ["gather_marked", "last_token", "weighed_text"]


def last_token(plan: PrefillPlan) -> Raters:
    """The last real token of each sample."""
    return Raters(_last(plan).unsqueeze(1))


@torch.no_grad()
def weighed_text(plan: PrefillPlan, method: Method, hidden_states: torch.Tensor) -> Raters:
    """The text behind each sample's last visual token, which sees all of them, as `method` weighs it; the last real
    token where there is none.

    Args:
        plan: the prefill's plan.
        method: weighs the text tokens.
        hidden_states: (B, T, D), what enters the decoder.
    """
    visual = torch.zeros_like(plan.real)
    for grid in plan.layout.grids:
        visual[grid.sample, grid.columns] = True
    columns = torch.arange(visual.shape[1], device="cpu")
    behind = columns > torch.where(visual, columns, -1).amax(1, keepdim=True)
    text = plan.real & behind
    text |= ~text.any(1, keepdim=True) & (columns == _last(plan).unsqueeze(1))
    tokens, is_text = gather_marked(hidden_states, text)
    pictures, is_visual = gather_marked(hidden_states, visual)
    weights = method.raters(pictures, is_visual, tokens, is_text)
    return Raters(_marked(text)[0].to(hidden_states.device, non_blocking=True), weights)


def gather_marked(hidden_states: torch.Tensor, marks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The marked tokens (B, M, D) of every sample, padded on the left with zeros, and where they are (B, M).

    Args:
        hidden_states: (B, T, ...).
        marks: BoolTensor (B, T) on the CPU.
    """
    index, mask = (tensor.to(hidden_states.device, non_blocking=True) for tensor in _marked(marks))
    index = index.unsqueeze(2)
    tokens = hidden_states.flatten(2).gather(1, index.expand(-1, -1, hidden_states.shape[2:].numel()))
    return tokens.masked_fill(~mask.unsqueeze(2), 0.0), mask


def _marked(marks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The marked columns of each row on the right: LongTensor (B, M), and which of them are marked."""
    most = int(marks.sum(1).max())
    index = marks.to(torch.uint8).argsort(dim=1, stable=True)[:, marks.shape[1] - most :]
    return index, marks.gather(1, index)


def _last(plan: PrefillPlan) -> torch.Tensor:
    """LongTensor (B,), the column of each sample's last real token."""
    return torch.where(plan.real, torch.arange(plan.real.shape[1], device="cpu"), -1).amax(1)
