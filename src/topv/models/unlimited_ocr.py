"""Unlimited-OCR: every token sees the whole prompt, and a window of what has been generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

from .decoder import Handle, ShortLayer
from .family import Family

__all__ = ["UnlimitedOcr"]


class UnlimitedOcr(Family):
    """`UnlimitedOcrForConditionalGeneration`. Generation tells each cache layer beforehand how long the prompt is."""

    def pinned(self, cache: Any, layer: int) -> int:
        if cache is None or layer >= len(cache.layers):
            return 0
        return getattr(cache.layers[layer], "prefill_length", None) or 0

    @cached_property
    def cache_limits(self) -> tuple[int | None, ...]:
        return (None,) * len(self.layers)

    def corrections(self, short: Callable[[int], ShortLayer | None]) -> Sequence[Handle]:
        """The prompt of a short layer is as much shorter as columns are dropped from it."""
        layers: Any = self.layers
        return [
            layer.self_attn.register_forward_pre_hook(partial(_shorten_prompt, short, index))
            for index, layer in enumerate(layers)
        ]


def _shorten_prompt(short: Callable[[int], ShortLayer | None], index: int, module: Any, args: Any) -> None:
    now = short(index)
    if now is None or now.cache is None or not now.removed:
        return
    held = now.cache.layers[index]
    announced = getattr(held, "prefill_length", None)
    if announced is not None and held.prefill_cumulative_length < announced:
        held.prefill_length = announced - now.removed
