"""The shapes and colours of a scene, and how one shape becomes an anti-aliased mask."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw

__all__ = ["COLOURS", "SHAPES", "shape_mask"]

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 28, 34),
    "green": (18, 150, 48),
    "blue": (28, 60, 220),
    "yellow": (250, 224, 30),
    "orange": (250, 132, 12),
    "purple": (134, 30, 170),
    "white": (250, 250, 250),
    "black": (12, 12, 14),
}
_OVERSAMPLE = 4
_TILT = {"square": 8, "triangle": 12, "star": 20, "cross": 10, "heart": 12, "diamond": 8}


def _star() -> list[tuple[float, float]]:
    radii = (1.0, 0.42)
    return [(radii[i % 2] * math.sin(math.pi * i / 5), -radii[i % 2] * math.cos(math.pi * i / 5)) for i in range(10)]


def _heart() -> list[tuple[float, float]]:
    points = []
    for i in range(40):
        t = 2 * math.pi * i / 40
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 17, -(y + 2.5) / 15.5))
    return points


_ARM = 0.34
_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0, -0.95), (1, 0.85), (-1, 0.85)],
    "diamond": [(0, -1), (0.78, 0), (0, 1), (-0.78, 0)],
    "star": _star(),
    "heart": _heart(),
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
}  # fmt: skip


def shape_mask(shape: str, pixels: int, tilt: float = 0.0) -> Image.Image:
    """An anti-aliased mask of a shape.

    Args:
        shape: a name from ``SHAPES``.
        pixels: side of the square mask.
        tilt: rotation from -1 to 1, as a share of what the shape allows without looking like another.

    Returns:
        A mode "L" image of ``pixels`` x ``pixels``.
    """
    if shape not in SHAPES:
        raise ValueError(f"Unknown shape {shape!r}; expected one of {', '.join(SHAPES)}.")
    side = pixels * _OVERSAMPLE
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    middle = (side - 1) / 2
    if shape in ("circle", "ring"):
        radius = 0.96 * middle
        pen.ellipse([middle - radius, middle - radius, middle + radius, middle + radius], fill=255)
        if shape == "ring":
            hole = 0.56 * radius
            pen.ellipse([middle - hole, middle - hole, middle + hole, middle + hole], fill=0)
    else:
        angle = math.radians(tilt * _TILT[shape])
        cos, sin = math.cos(angle), math.sin(angle)
        reach = 0.96 * middle
        pen.polygon(
            [(middle + reach * (x * cos - y * sin), middle + reach * (x * sin + y * cos)) for x, y in _POLYGONS[shape]],
            fill=255,
        )
    return mask.reduce(_OVERSAMPLE)
