"""What methods share that compare tokens by their angle, or choose them one after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["cosine_similarity", "double", "mean_cosine", "ranking"]


def double(device: torch.device) -> torch.dtype:
    """float64, except on Apple's devices, which have none."""
    return torch.float32 if device.type == "mps" else torch.float64


@torch.no_grad()
def cosine_similarity(tokens: torch.Tensor) -> torch.Tensor:
    """Cosine of the angle between any two tokens of a grid: (G, N, N), in `double`; 0 for a token that is zero.

    Grid by grid, since a batched product may be blocked by the size of the batch, and a choice made step by step
    passes a difference of one rounding on to every later step.

    Args:
        tokens: (G, N, D), any floating dtype.
    """
    grids, count, _ = tokens.shape
    dtype = double(tokens.device)
    similarity = torch.empty(grids, count, count, dtype=dtype, device=tokens.device)
    with torch.autocast(tokens.device.type, enabled=False):
        for grid in range(grids):
            unit = _unit(tokens[grid].to(dtype))
            similarity[grid] = unit @ unit.T
    return similarity


@torch.no_grad()
def mean_cosine(tokens: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean cosine of each token with the text tokens of its sample: (G, N), in `double`; 0 where there is no text.

    Args:
        tokens: (G, N, D).
        text: (G, M, D), padded on the left with zeros.
        mask: BoolTensor (G, M), false at padding.
    """
    dtype = double(tokens.device)
    # The mean of cosines is the product with the mean of unit vectors. Padding is zero and adds nothing.
    direction = _unit(text.to(dtype)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    return (_unit(tokens.to(dtype)) * direction.unsqueeze(1)).sum(2)


def _unit(tokens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(tokens, dim=-1, eps=1e-30)


def ranking(picks: Sequence[torch.Tensor], values: Sequence[torch.Tensor], tokens: int) -> torch.Tensor:
    """Scores that keep picks in the order of their values, above every token that was not picked.

    Args:
        picks: for each step LongTensor (G,), what it picked.
        values: for each step (G,), what the pick was worth. A value above an earlier one, which only rounding can
            cause, is lowered to it.
        tokens: number of tokens N in each grid.

    Returns:
        float32 (G, N): a pick's value, and just less than the last pick's for all that were not picked.

    >>> ranking([torch.tensor([2]), torch.tensor([0])], [torch.tensor([3.0]), torch.tensor([1.0])], 3)
    tensor([[1.0000, 1.0000, 3.0000]])
    """
    worth = torch.stack(tuple(values), dim=1).to(torch.float32).cummin(dim=1).values
    last = worth[:, -1:]
    below = last - 1e-6 * last.abs().clamp_min(1e-20)
    return below.expand(-1, tokens).scatter(1, torch.stack(tuple(picks), dim=1), worth)
