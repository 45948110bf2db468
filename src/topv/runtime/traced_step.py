"""One step of decoding while a compiler traces it: nothing here leaves the graph or depends on the step's number."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..models import Family
from .arguments import CACHE, HIDDEN_STATES, MASK
from .masks import KeySlots, shorten_mask
from .record import record_at, records_of

__all__ = ["TracedStep", "can_trace", "is_traced_step"]


def can_trace(family: Family) -> bool:
    """Whether a decoder's steps need no more than shorter masks, so that they can be traced in one graph."""
    plain = type(family).corrections is Family.corrections and not family.asks_for_slots and family.generator is None
    return plain and not (family.mixed or family.lends_keys)


def is_traced_step(states: Any) -> bool:
    """Whether a compiler traces a forward of one token, given its ids or states (B, T, ...)."""
    return torch.compiler.is_compiling() and isinstance(states, torch.Tensor) and states.shape[1] == 1


class TracedStep:
    """A decoder that takes one more token on a pruned cache. It has no state but the cache's."""

    def concerns(self, index: int) -> bool:
        """The cache says, which is among the layer's arguments."""
        return True

    def before_layer(self, index: int, arguments: dict[str, Any]) -> dict[str, Any]:
        """The mask of a short layer, as short as its keys."""
        cache: Any = arguments.get(CACHE)
        record = record_at(records_of(cache), index)
        if record is None:
            return {}
        mask = arguments.get(MASK)
        if mask is None and not record.ragged:
            return {}
        held = cache.layers[index]
        keys = held.keys.shape[-2] + (0 if held.is_compileable else 1)
        batch = arguments[HIDDEN_STATES].shape[0]
        columns, valid = record.expand(batch).columns(keys)
        if mask is None:
            return {MASK: valid[:, None, None, :]}
        slots = KeySlots(columns.to(mask.device), valid.to(mask.device), 0)
        return {MASK: shorten_mask(mask, slots, None)}

    def after_layer(self, index: int, output: Any) -> Any:
        """Nothing: a step adds no pictures."""

    def reader(self, stage: int) -> None:
        """Nobody: nothing is chosen."""

    def leave(self, module: nn.Module, inputs: dict[str, Any], output: Any) -> Any:
        """Nothing: the cache's record stays true."""
