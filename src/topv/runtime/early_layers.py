"""Dropping pruned tokens from the KV cache of the layers that saw them, once the prefill is over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from ..errors import UnsupportedError
from ..models import Family
from .record import CacheRecord

__all__ = ["compact_early_layers", "refuse_early_compaction"]


def refuse_early_compaction(family: Family, layer: int) -> None:
    """Raise if the layers below `layer` do not keep plain keys and values of every column.

    Raises:
        UnsupportedError: when they do not.
    """
    plain = all(family.keeps_keys(index) and family.window(index) is None for index in range(layer))
    if family.mixed or family.lends_keys or not plain:
        raise UnsupportedError(
            f"compact_early_layers=True needs decoder layers that all keep the keys and values of every column; those "
            f"of {type(family.model).__name__} have windows, carry a state or share keys. Leave it out."
        )


def compact_early_layers(cache: Any, record: CacheRecord) -> CacheRecord:
    """Keep in the layers below `record.layer` of `cache` the columns that the later layers hold.

    Returns:
        The record of a cache whose layers are all short.

    Raises:
        UnsupportedError: when a layer of the cache is preallocated, quantized or offloaded. The cache is unchanged.
    """
    layers = cache.layers[: record.layer]
    for layer in layers:
        if type(layer) is not DynamicLayer or getattr(cache, "offloading", False):
            raise UnsupportedError(
                f"compact_early_layers=True cannot drop columns from a {type(cache).__name__} of "
                f"{type(layer).__name__}. Use a DynamicCache that is not offloaded, or leave it out."
            )
    for layer in layers:
        layer.keys = _take(layer.keys, record.slots)
        layer.values = _take(layer.values, record.slots)
    return replace(record, layer=0)


def _take(states: Any, slots: torch.Tensor) -> torch.Tensor:
    """Columns `slots` (B, S) of states (B, H, T, D); any column where a slot is -1."""
    index = slots.clamp(min=0).to(states.device)[:, None, :, None]
    return torch.Tensor.gather(states, 2, index.expand(-1, states.shape[1], -1, states.shape[3]))
