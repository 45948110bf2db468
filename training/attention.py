"""Attention for training on a processor: plain matrix products, split at the image prefix.

On a processor the fused kernel's backward pass costs four times what the plain products do at these lengths, and
the prefix never needs the columns behind it. Inference uses transformers' own attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["TRAINING_ATTENTION", "attend", "register"]

TRAINING_ATTENTION = "topv_mini_training"


def _block(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Attention of (B, heads, L, d) queries over (B, kv heads, n, d) keys; mask (B or 1, 1, L, n)."""
    rows, heads, length, width = query.shape
    shared, columns = key.shape[1:3]
    grouped = query.reshape(rows, shared, heads // shared * length, width)
    scores = (grouped @ key.transpose(2, 3)).view(rows, shared, heads // shared, length, columns)
    scores = scores * scaling if mask is None else torch.add(mask[:, :, None], scores, alpha=scaling)
    weights = scores.softmax(-1).view(rows, shared, heads // shared * length, columns)
    return (weights.to(value.dtype) @ value).view(rows, heads, length, width)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    prefix: int = 0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function for transformers' registry.

    Args:
        query: (B, heads, S, d); key and value: (B, kv heads, S, d).
        attention_mask: additive (B or 1, 1, S, S), or None where everything sees everything.
        prefix: leading positions that attend to nothing behind the prefix; computed apart.

    Returns:
        (B, S, heads, d) and no weights.
    """
    if attention_mask is None and getattr(module, "is_causal", False):
        raise ValueError(
            f"{TRAINING_ATTENTION} got no mask in a causal layer; it expects a 4-D additive one. For inference call"
            " model.set_attn_implementation('sdpa')."
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is None or not prefix:
        mixed = _block(query, key, value, attention_mask, scaling)
    else:
        front = _block(
            query[:, :, :prefix],
            key[:, :, :prefix],
            value[:, :, :prefix],
            attention_mask[:, :, :prefix, :prefix],
            scaling,
        )
        back = _block(query[:, :, prefix:], key, value, attention_mask[:, :, prefix:], scaling)
        mixed = torch.cat([front, back], dim=2)
    return mixed.transpose(1, 2).contiguous(), None


def register() -> None:
    """Make ``TRAINING_ATTENTION`` known to transformers under its own name."""
    from transformers import AttentionInterface

    AttentionInterface.register(TRAINING_ATTENTION, attend)
