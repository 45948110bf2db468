"""The masks of the layers that see a shortened sequence, made from those that the decoder made for whole ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .masks import KeySlots, causal_mask, shorten_mask
from .record import mask_sizes
from .slots import Slots

__all__ = ["LentKeys", "ShortMasks"]


@dataclass(frozen=True, eq=False)
class LentKeys:
    """The keys of a short layer that later layers borrow.

    Attributes:
        slots: where its columns stand.
        length: keys that the layer returned.
        let_go: how many it has let go before them.
    """

    slots: Slots
    length: int
    let_go: int


class ShortMasks:
    """The masks of layers that hold the same columns. Layers share masks, so each is made once.

    Args:
        slots: where the layers' columns stand.
        lent: by layer, the keys that were lent in this forward so far; shared by all of its short layers.
    """

    def __init__(self, slots: Slots, lent: dict[int, LentKeys]) -> None:
        self._slots = slots
        self._call = slots.call
        self._lent = lent
        self._masks: dict[tuple[int, int, int], tuple[Any, Any]] = {}

    def note_lender(self, hidden_states: torch.Tensor, layer: int) -> None:
        """Remember the sizes of a layer whose keys later layers will borrow."""
        self._lent[layer] = LentKeys(self._slots, *mask_sizes(self._call.cache, hidden_states.shape[1], layer))

    def recurrent(self, mask: Any, hidden_states: torch.Tensor) -> Any:
        """A mask that says which of this forward's own columns are padding, less those that were dropped."""
        return self._known_mask(mask, (0, 0), hidden_states, self._recurrent_mask)

    def attention(self, mask: Any, hidden_states: torch.Tensor, layer: int) -> Any:
        """The mask of decoder layer `layer`, given the one that it got and its shortened hidden states.

        Raises:
            UnsupportedError: when the mask is of no kind that can be shortened.
        """
        recurrent = self._call.family.masks_itself(layer)
        lender = self._call.family.key_layer(layer)
        sizes = (0, 0) if recurrent else (-1, lender)
        if lender == layer and not recurrent:
            sizes = mask_sizes(self._call.cache, hidden_states.shape[1], layer)

        def make(mask: Any) -> Any:
            if recurrent:
                return self._recurrent_mask(mask)
            if lender != layer:
                return self._borrowed_keys_mask(mask, hidden_states, lender)
            return self._attention_mask(mask, hidden_states, layer, sizes)

        return self._known_mask(mask, sizes, hidden_states, make)

    def _known_mask(
        self, mask: Any, sizes: tuple[int, int], hidden_states: torch.Tensor, make: Callable[[Any], Any]
    ) -> Any:
        """What `make` makes of `mask`, for layers of given key sizes; made once, as layers share masks."""
        known = self._masks.get((id(mask), *sizes))
        if known is None:
            known = self._masks[(id(mask), *sizes)] = (mask, make(mask))
        made = known[1]
        return made.to(hidden_states.device) if isinstance(made, torch.Tensor) else made

    def _recurrent_mask(self, mask: Any) -> Any:
        """A recurrent layer's mask says which of this forward's own columns are padding."""
        if self._slots.compaction is None or (
            mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2)
        ):
            return mask
        if mask is None:
            return None if self._slots.compaction.valid is None else self._slots.compaction.valid.clone()
        columns = self._slots.compaction.to(mask.device).index + (mask.shape[1] - self._call.length)
        kept = mask.expand(self._call.batch, -1).gather(1, columns)
        valid = self._slots.compaction.to(mask.device).valid
        return kept if valid is None else kept.masked_fill(~valid, False)

    def _attention_mask(self, mask: Any, hidden_states: torch.Tensor, layer: int, sizes: tuple[int, int]) -> Any:
        device = mask.device if isinstance(mask, torch.Tensor) else hidden_states.device
        length, let_go = sizes
        columns, valid = (slots[:, let_go:] for slots in self._slots.columns(let_go + length, device))
        offset = self._mask_offset(mask, layer, let_go)
        pinned = self._call.family.pinned(self._call.cache, layer)
        if pinned and mask is not None:
            offset, gone = 0, self._call.past + self._call.length - mask.shape[-1]
            columns, valid = self._slots.columns(let_go + length, device)
            columns = torch.cat([columns[:, :pinned], columns[:, pinned + let_go :] - gone], dim=1)
            valid = torch.cat([valid[:, :pinned], valid[:, pinned + let_go :]], dim=1)
        keys = KeySlots(columns, valid, offset)
        if mask is not None:
            return shorten_mask(
                mask, keys, None if self._slots.compaction is None else self._slots.compaction.to(device).index
            )
        return causal_mask(
            keys, config=self._call.family.text_config, hidden_states=hidden_states, cache=self._call.cache, layer=layer
        )

    def _borrowed_keys_mask(self, mask: Any, hidden_states: torch.Tensor, lender: int) -> Any:
        """The mask of a layer that attends to the keys of an earlier one, which may hold every column."""
        record, device = self._slots.after(), hidden_states.device
        ends, queries = self._call.past + self._call.length, hidden_states.shape[1]
        rows = torch.arange(self._call.length, device=device).expand(self._call.batch, -1)
        if self._slots.compaction is not None:
            rows = self._slots.compaction.to(device).index
        rows = rows[:, rows.shape[1] - queries :]
        columns = torch.arange(ends, device=device).expand(self._call.batch, -1)
        member = torch.ones_like(columns, dtype=torch.bool)
        lent = self._lent.get(lender)
        if record is not None:
            slots = record.slots.to(device)
            known = member.new_zeros(self._call.batch, record.length + 1)
            known.scatter_(1, torch.where(slots >= 0, slots, record.length), True)
            member[:, : record.length] = known[:, : record.length]
            if lent is not None:
                reach = lent.let_go + lent.length
                columns, held = (t[:, lent.let_go :] for t in lent.slots.columns(reach, device))
                known = torch.nn.functional.pad(member, (0, max(0, reach - ends)), value=True)
                member = held & known.gather(1, columns)
        if mask is None:
            seen = (columns[:, None, :] <= (rows + self._call.past)[:, :, None]) & member[:, None, :]
            if self._call.mask is not None and self._call.mask.ndim == 2:
                seen = seen & self._call.mask[:, :ends].bool().to(device).gather(1, columns)[:, None, :]
            return seen[:, None]
        offset = max(0, ends - mask.shape[-1])
        inside = slice(offset, None) if lent is None else slice(None)
        whole_rows = mask.shape[-2] != queries or queries == self._call.length
        keys = KeySlots(columns[:, inside], member[:, inside], offset)
        return shorten_mask(mask, keys, rows if whole_rows and self._slots.compaction is not None else None)

    def _mask_offset(self, mask: Any, layer: int, let_go: int) -> int:
        """The prompt column that a layer's mask begins with: not the first where a window has let go of some."""
        if let_go == 0 and self._call.past == 0:
            return 0
        if isinstance(mask, torch.Tensor) and mask.ndim == 2:
            return 0
        width = mask.shape[-1] if mask is not None else 0
        ends = self._call.past + self._call.length
        window = self._call.family.window(layer)
        return max(0, ends - width) if window is not None and width < ends else 0
