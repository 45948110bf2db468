"""The attention mask of the layers that see a shortened sequence."""

from __future__ import annotations

from typing import Any

import torch
from transformers.masking_utils import create_causal_mask

from ..errors import UnsupportedError

__all__ = ["check_mask", "real_columns", "short_mask", "visible"]


def check_mask(mask: Any) -> None:
    """Refuse an attention mask that cannot be shortened.

    Raises:
        UnsupportedError: unless `mask` is None or a tensor of 2 or 4 dimensions.
    """
    if mask is None or (isinstance(mask, torch.Tensor) and mask.ndim in (2, 4)):
        return
    shown = f"a tensor of {mask.ndim} dimensions" if isinstance(mask, torch.Tensor) else type(mask).__name__
    raise UnsupportedError(
        f"the attention mask is {shown}, which topv cannot shorten. Pass None, a (batch, length) mask, or a "
        "(batch, 1, query, key) mask."
    )


def visible(mask: torch.Tensor) -> torch.Tensor:
    """Whether each entry of a boolean or additive mask lets a query see a key."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def real_columns(mask: torch.Tensor | None, *, batch: int, past: int, length: int) -> torch.Tensor:
    """Which of this forward's columns are not padding: BoolTensor (batch, length) on the CPU.

    Args:
        mask: None, (B, past + length) or (B, 1, length, keys).
        past: columns already in the cache.
        length: columns of this forward.

    Raises:
        UnsupportedError: when a two-dimensional mask does not cover past and present columns.

    A wider two-dimensional mask, as long as a preallocated cache, is read up to the present columns.
    """
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool)
    if mask.ndim == 4:
        seen = visible(mask)[:, 0, :, : past + length]
        # Rows of padding that would see nothing are often opened to every key, which says nothing about the keys.
        opened = seen.all(-1)
        opened[:, -1] = False
        return (seen & ~opened.unsqueeze(2)).any(1)[:, past:].cpu().expand(batch, -1).clone()
    if mask.shape[0] != batch or mask.shape[1] < past + length:
        raise UnsupportedError(
            f"the attention mask has shape {tuple(mask.shape)}, expected ({batch}, {past + length}): one column for "
            f"each of the {past} cached and {length} new positions."
        )
    return mask[:, past : past + length].bool().cpu()


def short_mask(
    mask: torch.Tensor | None,
    *,
    config: Any,
    hidden_states: torch.Tensor,
    cache: Any,
    layer: int,
    columns: torch.Tensor,
    valid: torch.Tensor,
    rows: torch.Tensor | None,
    needed: bool,
) -> Any:
    """The mask for layers from `layer` on, in whatever form the model's attention backend takes.

    Args:
        mask: the mask that the language model was given: None, (B, keys) or (B, 1, queries, keys).
        config: the text model's config, which names the attention backend.
        hidden_states: (B, Q, D) what enters layer `layer`.
        cache: the KV cache or None.
        layer: a layer whose cache has the short length.
        columns: LongTensor (B, keys of a short layer) of full-sequence columns.
        valid: BoolTensor of the same shape, false at slots that hold no column.
        rows: LongTensor (B, Q), the column in this forward of each query, or None when no query was dropped.
        needed: false when it is known that no key is hidden, so that the backend may take its maskless path.
    """
    if mask is not None and mask.ndim == 4:
        return _gather_mask(mask, columns, valid, rows)
    keys = None
    if needed:
        keys = valid
        if mask is not None:
            keys = keys & mask.bool().gather(1, columns)
    return create_causal_mask(
        config=config,
        inputs_embeds=hidden_states,
        attention_mask=keys,
        past_key_values=cache,
        position_ids=None,
        layer_idx=layer,
    )


def _gather_mask(
    mask: torch.Tensor, columns: torch.Tensor, valid: torch.Tensor, rows: torch.Tensor | None
) -> torch.Tensor:
    batch = columns.shape[0]
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    mask = mask.expand(batch, -1, -1, -1)
    if rows is not None:
        mask = mask.gather(2, rows[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    inside = valid & (columns < mask.shape[3])
    index = columns.clamp(max=mask.shape[3] - 1)[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1)
    return mask.gather(3, index).masked_fill(~inside[:, None, None, :], hidden)
