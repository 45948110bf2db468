"""What a pruned KV cache must remember about itself: which prompt columns its short layers hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import CacheError

__all__ = ["CacheRecord", "read_record", "write_record"]

_ATTRIBUTE = "_topv_record"


@dataclass(frozen=True)
class CacheRecord:
    """The columns that layers from `layer` on hold, out of the first `length` columns of the sequence.

    It says nothing about tokens that came after, so it stays true while they are generated or cropped.

    Attributes:
        layer: first decoder layer that is short.
        length: number of columns that the record covers.
        slots: LongTensor (B, S), the column in each slot of a short layer, -1 where a slot is only padding.
        ragged: whether any slot is padding.
        tail: number of last columns that every row holds in its last slots.
    """

    layer: int
    length: int
    slots: torch.Tensor
    ragged: bool
    tail: int

    @property
    def dropped(self) -> int:
        """By how many entries a short layer is shorter than a whole one."""
        return self.length - self.slots.shape[1]

    def crop(self, length: int) -> CacheRecord:
        """The record of a cache that was cropped to `length` columns.

        Raises:
            CacheError: when the crop went past the columns that all layers share.
        """
        if length >= self.length:
            return self
        removed = self.length - length
        if removed > self.tail:
            raise CacheError(
                f"the cache was cropped to {length} columns, into the pruned part of the prompt: only the last "
                f"{self.tail} of its first {self.length} columns are held by every layer. Crop less, or prefill again."
            )
        return replace(self, length=length, slots=self.slots[:, :-removed], tail=self.tail - removed)

    def expand(self, batch: int) -> CacheRecord:
        """The record for a batch of `batch` rows that all continue the one recorded row.

        Raises:
            CacheError: when several rows were recorded and their number changed.
        """
        rows = self.slots.shape[0]
        if rows == batch:
            return self
        if rows != 1:
            raise CacheError(
                f"the cache was pruned for a batch of {rows} and is continued with a batch of {batch}. Prefill the "
                "new batch, or continue a cache of one sample."
            )
        return replace(self, slots=self.slots.expand(batch, -1))

    def columns(self, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The column in each of the first `width` slots, later tokens included: LongTensor (B, width) of columns
        (0 where there is none) and BoolTensor (B, width) of slots that hold one."""
        batch, known = self.slots.shape
        later = torch.arange(known, max(width, known), device=self.slots.device) + self.dropped
        columns = torch.cat([self.slots, later.expand(batch, -1)], dim=1)[:, :width]
        return columns.clamp(min=0), columns >= 0


def read_record(cache: Any, *, length: int, batch: int) -> CacheRecord | None:
    """The record on `cache`, brought up to date with how it was cropped or reset since, or None.

    Args:
        cache: a transformers cache or None.
        length: the cache's length in its whole layers.
        batch: rows that continue it.

    Raises:
        CacheError: when the cache no longer agrees with the record.
    """
    record: CacheRecord | None = getattr(cache, _ATTRIBUTE, None)
    if record is None:
        return None
    short = int(cache.get_seq_length(record.layer))
    if length == 0:
        # The cache was reset since.
        delattr(cache, _ATTRIBUTE)
        return None
    record = record.crop(length).expand(batch)
    if short != length - record.dropped:
        raise CacheError(
            f"layer {record.layer} of the cache holds {short} entries where {length - record.dropped} were "
            f"expected ({length} columns less {record.dropped} pruned). It was changed outside of topv."
        )
    return record


def write_record(cache: Any, record: CacheRecord) -> None:
    """Put `record` on `cache`, so that it travels with copies of it."""
    setattr(cache, _ATTRIBUTE, record)
