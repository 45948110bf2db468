"""What a scene was meant to show, which its questions ask about."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Plan"]


@dataclass
class Plan:
    """What the composer meant to draw: the theme that counting asks about, the diagram's arrows."""

    kind: str
    theme: tuple[str, str] | None = None
    arrows: tuple[tuple[str, str], ...] = ()
