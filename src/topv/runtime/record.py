"""What a pruned KV cache must remember about itself: which prompt columns its short layers hold."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch

from ..errors import CacheError

__all__ = [
    "CacheRecord",
    "entry_bytes",
    "held",
    "mask_sizes",
    "own_sizes",
    "read_records",
    "record_at",
    "records_of",
    "write_records",
]

_ATTRIBUTE = "_topv_records"
_own_sizes: ContextVar[bool] = ContextVar("topv_own_sizes", default=False)


@dataclass(frozen=True)
class CacheRecord:
    """The columns that layers from `layer` on, up to the next record's, hold of the sequence's first `length` columns.

    It says nothing about tokens that came after, so it stays true while they are generated or cropped.

    Attributes:
        layer: the first of these decoder layers.
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


def read_records(cache: Any, *, length: int, batch: int) -> tuple[CacheRecord, ...]:
    """The records on `cache`, by ascending layer, brought up to date with how it was cropped or reset since.

    Args:
        cache: a transformers cache or None.
        length: the cache's length in its whole layers.
        batch: rows that continue it.

    Raises:
        CacheError: when the cache no longer agrees with a record.
    """
    records = records_of(cache)
    if records and length == 0:
        # The cache was reset since.
        delattr(cache, _ATTRIBUTE)
        for name in _LOGICAL:
            vars(cache).pop(name, None)
        return ()
    records = tuple(record.crop(length).expand(batch) for record in records)
    for record in records:
        layer = _first_attention(cache, record.layer)
        if layer is None or record_at(records, layer) is not record:
            continue
        short = held(cache, layer)
        if short != length - record.dropped:
            raise CacheError(
                f"layer {record.layer} of the cache holds {short} entries where {length - record.dropped} were "
                f"expected ({length} columns less {record.dropped} pruned). It was changed outside of topv."
            )
    return records


def records_of(cache: Any) -> tuple[CacheRecord, ...]:
    """The records on `cache` as they were written, by ascending layer; none on a cache that nothing was pruned in."""
    records: tuple[CacheRecord, ...] = getattr(cache, _ATTRIBUTE, ())
    return records


def record_at(records: tuple[CacheRecord, ...], layer: int) -> CacheRecord | None:
    """The one of `records` that speaks of decoder layer `layer`, or None where it holds every column."""
    return next((record for record in reversed(records) if record.layer <= layer), None)


def write_records(cache: Any, records: tuple[CacheRecord, ...], *, logical: bool) -> None:
    """Put `records` on `cache`, so that they travel with copies of it.

    Args:
        cache: a transformers cache.
        records: what its short layers hold, by ascending layer.
        logical: let the cache answer for its short layers with lengths in prompt columns. Models whose layers differ
            in kind size masks and positions by the first layer of each kind, which may be a short one.
    """
    setattr(cache, _ATTRIBUTE, records)
    if logical:
        for name, function in _LOGICAL.items():
            setattr(cache, name, MethodType(function, cache))


def held(cache: Any, layer: int) -> int:
    """Columns that passed through layer `layer` of `cache`, as the layer itself counts them; 0 where it keeps none."""
    if cache is None:
        return 0
    layers = getattr(cache, "layers", None)
    if layers is None:
        return int(cache.get_seq_length(layer))
    if layer >= len(layers) or not hasattr(layers[layer], "get_seq_length"):
        return 0
    return int(layers[layer].get_seq_length())


def entry_bytes(cache: Any, layer: int) -> int:
    """Bytes that one column takes in a layer of a cache, over the batch; 0 where it does not hold plain tensors."""
    layers = getattr(cache, "layers", ())
    total = 0
    for name in ("keys", "values"):
        states = getattr(layers[layer], name, None) if layer < len(layers) else None
        if not isinstance(states, torch.Tensor) or states.ndim != 4:
            return 0
        total += states.shape[0] * states.shape[1] * states.shape[3] * states.element_size()
    return total


def mask_sizes(cache: Any, queries: int, layer: int) -> tuple[int, int]:
    """Keys that layer `layer` will return for `queries` more columns, and how many it has let go before them."""
    if cache is None:
        return queries, 0
    with own_sizes():
        length, offset = cache.get_mask_sizes(queries, layer)
    return int(length), int(offset)


@contextmanager
def own_sizes() -> Iterator[None]:
    """Inside, caches answer with the lengths that each of their layers really has."""
    token = _own_sizes.set(True)
    try:
        yield
    finally:
        _own_sizes.reset(token)


def _first_attention(cache: Any, start: int) -> int | None:
    """The first layer from `start` on that keeps keys, or None."""
    layers = getattr(cache, "layers", None)
    if layers is None:
        return start
    return next((i for i in range(start, len(layers)) if hasattr(layers[i], "get_seq_length")), None)


def _dropped(cache: Any, layer: int) -> tuple[int, int]:
    """The layer that answers for `layer`, and by how many columns it is short of the prompt."""
    answering = layer
    if layer < len(cache.layers) and not hasattr(cache.layers[layer], "get_seq_length"):
        answering = _first_attention(cache, 0) or 0
    record = None if _own_sizes.get() else record_at(records_of(cache), answering)
    return answering, 0 if record is None else record.dropped


def _seq_length(cache: Any, layer_idx: int = 0) -> Any:
    length = type(cache).get_seq_length(cache, layer_idx)
    # Nothing is short in a cache that was reset.
    return length + _dropped(cache, layer_idx)[1] * (length > 0)


def _mask_sizes(cache: Any, query_length: int, layer_idx: int) -> Any:
    answering, dropped = _dropped(cache, layer_idx)
    length, offset = type(cache).get_mask_sizes(cache, query_length, layer_idx)
    layer = cache.layers[answering] if answering < len(cache.layers) else None
    if not dropped or layer is None:
        return length, offset
    if not getattr(layer, "is_sliding", False):
        preallocated = getattr(layer, "is_compileable", False)
        return (length, offset) if preallocated or not held(cache, answering) else (length + dropped, offset)
    whole = copy.copy(layer)
    for name in ("cumulative_length", "cumulative_length_int"):
        if isinstance(count := getattr(layer, name, None), int) and count:
            setattr(whole, name, count + dropped)
    return whole.get_mask_sizes(query_length)


_LOGICAL: dict[str, Callable[..., Any]] = {"get_seq_length": _seq_length, "get_mask_sizes": _mask_sizes}
