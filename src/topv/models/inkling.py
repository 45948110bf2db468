"""Inkling: convolutions stand in every layer, and attention is biased by the distance in tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .family import Family

__all__ = ["Inkling", "Inkling2"]


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
