"""The settings of the page, as a link can carry them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..methods import METHODS
from ..methods.settings import UNPRUNED
from .limits import Limits

__all__ = ["MAX_RECOVERY", "PICTURES", "Settings"]

PICTURES = 6
"""Number of built-in pictures."""

MAX_RECOVERY = 0.5
"""Largest share of the kept tokens that can be asked to be recovered."""


@dataclass(frozen=True)
class Settings:
    """What a link reopens. An uploaded image is not part of it: it is nobody else's business.

    Attributes:
        picture: number of the built-in picture from 1 on, or 0 for none.
        prompt: the question; None for the picture's own.
        methods: names of the methods.
        keep: the keep ratio.
        recovery: share of the kept tokens that is recovered, under methods that can.
        tokens: longest answer, in tokens.
        measure: whether times are measured.
    """

    picture: int = 1
    prompt: str | None = None
    methods: tuple[str, ...] = (UNPRUNED, "fastv", "topv")
    keep: float = 0.5
    recovery: float = 0.0
    tokens: int = 48
    measure: bool = False

    @classmethod
    def from_query(cls, query: Mapping[str, str], limits: Limits) -> Settings:
        """The settings in a link's query. What is missing, unknown or out of range takes its default."""
        default = cls()
        names = (UNPRUNED, *METHODS)
        methods = tuple(dict.fromkeys(name for name in query.get("methods", "").split(",") if name in names))
        prompt = query.get("prompt", "")
        return cls(
            picture=_whole(query.get("picture"), 0, PICTURES, default.picture),
            prompt=prompt if prompt.strip() and len(prompt) <= limits.prompt_characters else None,
            methods=methods if 1 <= len(methods) <= limits.methods else default.methods,
            keep=_ratio(query.get("keep"), 0.05, 1.0, default.keep),
            recovery=_ratio(query.get("recovery"), 0.0, MAX_RECOVERY, default.recovery),
            tokens=_whole(query.get("tokens"), 1, limits.new_tokens, default.tokens),
            measure=query.get("measure", "1" if default.measure else "0") == "1",
        )


def _whole(text: str | None, low: int, high: int, default: int) -> int:
    try:
        number = int(text or "")
    except ValueError:
        return default
    return number if low <= number <= high else default


def _ratio(text: str | None, low: float, high: float, default: float) -> float:
    try:
        ratio = float(text or "")
    except ValueError:
        return default
    # Not a number is in no range.
    return ratio if low <= ratio <= high else default
