"""The masks of the layers that see a shortened sequence, made from those that the decoder made for whole ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from .masks import KeySlots, causal_mask, shorten_mask
from .record import mask_sizes

if TYPE_CHECKING:
    from .stage import Stage

__all__ = ["ShortMasks"]


class ShortMasks:
    """The masks of one stage's layers. Layers share masks, so each is made once.

    Args:
        stage: the layers.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._run = stage.run
        self._lent: dict[int, tuple[int, int]] = {}
        self._masks: dict[tuple[int, int, int], tuple[Any, Any]] = {}

    def release(self) -> None:
        """Let go of the stage, which holds these masks: it ends now, not when garbage is next collected."""
        del self._run, self._stage
        self._masks.clear()

    def note_lender(self, hidden_states: torch.Tensor, layer: int) -> None:
        """Remember the sizes of a layer whose keys later layers will borrow."""
        self._lent[layer] = mask_sizes(self._run.cache, hidden_states.shape[1], layer)

    def recurrent(self, mask: Any, hidden_states: torch.Tensor) -> Any:
        """A mask that says which of this forward's own columns are padding, less those that were dropped."""
        return self._known_mask(mask, (0, 0), hidden_states, self._recurrent_mask)

    def attention(self, mask: Any, hidden_states: torch.Tensor, layer: int) -> Any:
        """The mask of decoder layer `layer`, given the one that it got and its shortened hidden states.

        Raises:
            UnsupportedError: when the mask is of no kind that can be shortened.
        """
        recurrent = self._run.family.masks_itself(layer)
        lender = self._run.family.key_layer(layer)
        sizes = (0, 0) if recurrent else (-1, lender)
        if lender == layer and not recurrent:
            sizes = mask_sizes(self._run.cache, hidden_states.shape[1], layer)

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
        if self._stage.compaction is None or (
            mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2)
        ):
            return mask
        if mask is None:
            return None if self._stage.compaction.valid is None else self._stage.compaction.valid.clone()
        columns = self._stage.compaction.to(mask.device).index + (mask.shape[1] - self._run.length)
        kept = mask.expand(self._run.batch, -1).gather(1, columns)
        valid = self._stage.compaction.to(mask.device).valid
        return kept if valid is None else kept.masked_fill(~valid, False)

    def _attention_mask(self, mask: Any, hidden_states: torch.Tensor, layer: int, sizes: tuple[int, int]) -> Any:
        device = mask.device if isinstance(mask, torch.Tensor) else hidden_states.device
        length, let_go = sizes
        columns, valid = (slots[:, let_go:] for slots in self.columns(let_go + length, device))
        offset = self._mask_offset(mask, layer, let_go)
        pinned = self._run.family.pinned(self._run.cache, layer)
        if pinned and mask is not None:
            offset, gone = 0, self._run.past + self._run.length - mask.shape[-1]
            columns, valid = self.columns(let_go + length, device)
            columns = torch.cat([columns[:, :pinned], columns[:, pinned + let_go :] - gone], dim=1)
            valid = torch.cat([valid[:, :pinned], valid[:, pinned + let_go :]], dim=1)
        keys = KeySlots(columns, valid, offset)
        if mask is not None:
            return shorten_mask(
                mask, keys, None if self._stage.compaction is None else self._stage.compaction.to(device).index
            )
        return causal_mask(
            keys, config=self._run.family.text_config, hidden_states=hidden_states, cache=self._run.cache, layer=layer
        )

    def columns(self, width: int, device: torch.device | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The prompt column in each of a short layer's first `width` slots (B, width), and which slots hold one."""
        record = self._stage.after()
        if record is None:
            columns = torch.arange(width, device=device).expand(self._run.batch, -1)
            return columns, torch.ones_like(columns, dtype=torch.bool)
        columns, filled = record.columns(width)
        return (columns, filled) if device is None else (columns.to(device), filled.to(device))

    def _borrowed_keys_mask(self, mask: Any, hidden_states: torch.Tensor, lender: int) -> Any:
        """The mask of a layer that attends to the keys of an earlier one, which may hold every column."""
        record, device = self._stage.after(), hidden_states.device
        ends, queries = self._run.past + self._run.length, hidden_states.shape[1]
        rows = torch.arange(self._run.length, device=device).expand(self._run.batch, -1)
        if self._stage.compaction is not None:
            rows = self._stage.compaction.to(device).index
        rows = rows[:, rows.shape[1] - queries :]
        columns = torch.arange(ends, device=device).expand(self._run.batch, -1)
        member = torch.ones_like(columns, dtype=torch.bool)
        lending = self._run.short(lender)
        if record is not None:
            slots = record.slots.to(device)
            known = member.new_zeros(self._run.batch, record.length + 1)
            known.scatter_(1, torch.where(slots >= 0, slots, record.length), True)
            member[:, : record.length] = known[:, : record.length]
            lent = None if lending is None else lending.masks._lent.get(lender)
            if lending is not None and lent is not None:
                length, let_go = lent
                columns, held = (t[:, let_go:] for t in lending.masks.columns(let_go + length, device))
                known = torch.nn.functional.pad(member, (0, max(0, let_go + length - ends)), value=True)
                member = held & known.gather(1, columns)
        if mask is None:
            seen = (columns[:, None, :] <= (rows + self._run.past)[:, :, None]) & member[:, None, :]
            if self._run.mask is not None and self._run.mask.ndim == 2:
                seen = seen & self._run.mask[:, :ends].bool().to(device).gather(1, columns)[:, None, :]
            return seen[:, None]
        offset = max(0, ends - mask.shape[-1])
        inside = slice(offset, None) if lending is None else slice(None)
        whole_rows = mask.shape[-2] != queries or queries == self._run.length
        keys = KeySlots(columns[:, inside], member[:, inside], offset)
        return shorten_mask(mask, keys, rows if whole_rows and self._stage.compaction is not None else None)

    def _mask_offset(self, mask: Any, layer: int, let_go: int) -> int:
        """The prompt column that a layer's mask begins with: not the first where a window has let go of some."""
        if let_go == 0 and self._run.past == 0:
            return 0
        if isinstance(mask, torch.Tensor) and mask.ndim == 2:
            return 0
        width = mask.shape[-1] if mask is not None else 0
        ends = self._run.past + self._run.length
        window = self._run.family.window(layer)
        return max(0, ends - width) if window is not None and width < ends else 0
