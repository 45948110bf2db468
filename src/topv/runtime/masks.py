"""The attention mask of the layers that see a shortened sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask
from transformers.masking_utils import create_causal_mask

from ..errors import UnsupportedError
from .arguments import CACHE, Signature
from .record import own_sizes

__all__ = ["causal_mask", "prompt_mask", "real_columns", "shorten_mask", "visible"]


_MASK_CALL = Signature(create_causal_mask)

_BLOCK = 128
"""Kernels of flex_attention look a mask up in blocks of this size."""


def prompt_mask(mask: Any) -> torch.Tensor | None:
    """The attention mask that says which columns are padding, out of whatever a model was called with.

    Args:
        mask: None, a tensor of 2 or 4 dimensions, or a dict of such by layer type, as generation with a preallocated
            cache makes them.

    Raises:
        UnsupportedError: when it is something else.
    """
    if isinstance(mask, dict):
        held = [m for m in (mask.get("full_attention"), *mask.values()) if m is not None]
        mask = held[0] if held else None
    if mask is None or (isinstance(mask, torch.Tensor) and mask.ndim in (2, 4)):
        return mask
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
        batch: B.
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


@dataclass(frozen=True)
class KeySlots:
    """The keys of one short layer.

    Attributes:
        columns: LongTensor (B, K), the prompt column in each slot (0 where there is none).
        valid: BoolTensor (B, K), false at slots that hold no column.
        offset: the first column that the layer's mask speaks of.
    """

    columns: torch.Tensor
    valid: torch.Tensor
    offset: int


def shorten_mask(mask: Any, keys: KeySlots, rows: torch.Tensor | None) -> Any:
    """The mask that a layer was given, less the queries and keys that were dropped.

    Every rule in it (windows in prompt columns, chunks, images that see themselves) stays what it was.

    Args:
        mask: (B, keys), (B or 1, heads or 1, queries, keys), or a BlockMask, in prompt columns.
        keys: the keys that are left.
        rows: LongTensor (B, Q), the row of each query that is left, or None when no query was dropped.

    Raises:
        UnsupportedError: when the mask is something else.
    """
    if isinstance(mask, BlockMask):
        return _block_mask(mask, keys, rows)
    if not isinstance(mask, torch.Tensor) or mask.ndim not in (2, 4):
        prompt_mask(mask)
        raise UnsupportedError(
            f"a decoder layer was given a {type(mask).__name__} as its mask, which topv cannot shorten."
        )
    index = keys.columns - keys.offset
    inside = keys.valid & (index >= 0) & (index < mask.shape[-1])
    index = index.clamp(0, mask.shape[-1] - 1)
    if mask.ndim == 2:
        return mask.expand(len(index), -1).gather(1, index).masked_fill(~inside, False)
    mask = mask.expand(len(index), -1, -1, -1)
    if rows is not None:
        mask = mask.gather(2, rows[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    index = index[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1)
    return mask.gather(3, index).masked_fill(~inside[:, None, None, :], hidden)


def _block_mask(mask: BlockMask, keys: KeySlots, rows: torch.Tensor | None) -> BlockMask:
    """The rule is looked up in a table: compilers of flex_attention stumble over an index into an index."""
    whole = create_mask(mask.mask_mod, len(keys.columns), None, *mask.seq_lengths, device=str(keys.columns.device))
    short = shorten_mask(whole, keys, rows)[:, 0]
    queries, width = short.shape[1:]
    table = torch.nn.functional.pad(short, (0, -width % _BLOCK, 0, -queries % _BLOCK))

    def visible_now(sample: Any, head: Any, query: Any, key: Any) -> Any:
        return table[sample, query, key]

    return create_block_mask(visible_now, len(table), None, queries, width, device=str(table.device))


def causal_mask(keys: KeySlots, *, config: Any, hidden_states: torch.Tensor, cache: Any, layer: int) -> Any:
    """A mask for a layer that needed none before rows were padded to one length: causal, less the padding.

    Args:
        keys: the keys of the layer.
        config: the text model's config, which names the attention backend.
        hidden_states: (B, Q, D) what enters the layer.
        cache: the KV cache or None.
        layer: the layer's index.
    """
    with own_sizes():
        return create_causal_mask(
            config=config,
            inputs_embeds=hidden_states,
            attention_mask=keys.valid,
            **_MASK_CALL.spell({CACHE: cache}),
            position_ids=None,
            layer_idx=layer,
        )
