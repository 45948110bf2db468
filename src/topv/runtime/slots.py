"""Where the columns of a prompt stand in layers that see a shortened sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .call import Call
from .compaction import Compaction
from .masks import KeySlots, shorten_mask
from .record import CacheRecord

__all__ = ["Slots"]


@dataclass(eq=False)
class Slots:
    """What the layers from one pruning layer up to the next hold of a call's columns.

    Attributes:
        call: the forward.
        number: how many pruning layers come before.
        layer: the first of these layers.
        record: what they hold in the cache of the columns before this forward, or None if all of them.
        compaction: from their slots to this forward's columns; None while nothing is dropped.
    """

    call: Call
    number: int
    layer: int
    record: CacheRecord | None = None
    compaction: Compaction | None = None

    @property
    def is_short(self) -> bool:
        """Whether these layers see a shortened sequence."""
        return self.compaction is not None or self.record is not None

    @property
    def cache(self) -> Any:
        """The KV cache or None."""
        return self.call.cache

    @property
    def removed(self) -> int:
        """Columns that this forward has dropped, in every row."""
        return 0 if self.compaction is None else self.call.length - self.compaction.index.shape[1]

    @property
    def held(self) -> int:
        """Slots that the layers' caches held before this forward."""
        return self.call.past - (0 if self.record is None else self.record.dropped)

    @property
    def is_ragged(self) -> bool:
        """Whether some slots that were cached before are padding."""
        return self.record is not None and self.record.ragged

    @property
    def hides(self) -> bool:
        """Whether this forward leaves slots that no query may see."""
        return self.compaction is not None and self.compaction.valid is not None

    def queries(self, device: torch.device) -> torch.Tensor:
        """LongTensor (B, Q) on `device`: the prompt column of each query."""
        call = self.call
        if self.compaction is None:
            return torch.arange(call.past, call.past + call.length, device=device).expand(call.batch, -1)
        return self.compaction.to(device).index + call.past

    def columns(self, width: int, device: torch.device | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The prompt column in each of the first `width` slots (B, width), and which slots hold one."""
        record = self.after()
        if record is None:
            columns = torch.arange(width, device=device).expand(self.call.batch, -1)
            return columns, torch.ones_like(columns, dtype=torch.bool)
        columns, filled = record.columns(width)
        return (columns, filled) if device is None else (columns.to(device), filled.to(device))

    def of(self, columns: torch.Tensor) -> torch.Tensor:
        """LongTensor (B, R): the slot of each of this forward's `columns` (B, R); any slot for one that was dropped."""
        if self.compaction is None:
            return columns
        index = self.compaction.to(columns.device).index
        slots = torch.arange(index.shape[1], device=index.device).expand_as(index)
        return index.new_zeros(len(index), self.call.length).scatter(1, index, slots).gather(1, columns)

    def key_mask(self, width: int, device: torch.device) -> torch.Tensor:
        """Which of the first `width` keys hold a column that is not padding: BoolTensor (B, width)."""
        columns, valid = self.columns(width, device)
        mask = self.call.mask
        if mask is None or mask.ndim != 2:
            return valid
        return torch.Tensor.bool(shorten_mask(mask.to(device), KeySlots(columns, valid, 0), None))

    def after(self) -> CacheRecord | None:
        """What the layers hold once this forward is over, or None if every column."""
        call = self.call
        if self.compaction is None or call.plan is None:
            return self.record
        index, valid = self.compaction.index, self.compaction.valid
        now = index + call.past
        if valid is not None:
            now = now.masked_fill(~valid, -1)
        if call.past:
            if self.record is None:
                before = torch.arange(call.past, device=now.device).expand(call.batch, -1)
            else:
                columns, held = self.record.columns(self.held)
                before = columns.masked_fill(~held, -1).to(now.device)
            now = torch.cat([before, now], dim=1)
        return CacheRecord(
            layer=self.layer,
            length=call.past + call.length,
            slots=now,
            ragged=call.plan.ragged(self.number) or self.is_ragged,
            tail=call.plan.tail,
        )
