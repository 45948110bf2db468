"""Inkling: convolutions stand in every layer, and attention is biased by the distance in tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from .decoder import Handle, ShortLayer
from .family import Family

__all__ = ["Inkling", "Inkling2"]

_DISTANCE = "relative_distance"


class Inkling(Family):
    """`InklingForConditionalGeneration`."""

    @property
    def asks_for_slots(self) -> bool:
        return True


class Inkling2(Inkling):
    """`Inkling2ForConditionalGeneration`. Its decoder keeps the states between layers, whole, for later layers."""

    @property
    def rejoins(self) -> bool:
        return True

    def rejoined(self, inputs: Mapping[str, Any]) -> frozenset[int]:
        return frozenset(range(len(self.layers)))

    def corrections(self, short: Callable[[int], ShortLayer | None]) -> Sequence[Handle]:
        """The decoder counts the distances between queries and keys once for all layers of a kind (since transformers
        5.24; before, each layer did), by what the first of them holds."""
        return [
            layer.register_forward_pre_hook(partial(_measure_anew, partial(short, index), index), with_kwargs=True)
            for index, layer in enumerate(self.layers)
        ]


def _measure_anew(
    short: Callable[[], ShortLayer | None], index: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """A short layer's arguments with the distances, in slots, between its own queries and keys."""
    now = short()
    if now is None or not isinstance(kwargs.get(_DISTANCE), torch.Tensor):
        return None
    queries = (args[0] if args else kwargs["hidden_states"]).shape[1]
    if now.cache is None:
        keys, first_key, first_query = queries, 0, 0
    else:
        keys, first_key = now.cache.get_mask_sizes(queries, index)
        first_query = now.cache.get_query_offset(index)
    device = kwargs[_DISTANCE].device
    places = torch.arange(queries, device=device) + first_query
    distance = places[:, None] - (torch.arange(keys, device=device) + first_key)[None, :]
    return args, {**kwargs, _DISTANCE: distance}
