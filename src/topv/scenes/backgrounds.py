"""Backgrounds: muted, textured, varied; never as strong as what is drawn on them.

A background is a scalar field in [0, 1] that blends two muted colours, with grain on top. The test split
may also use the kinds in ``HELD_OUT_BACKGROUNDS``, which training never sees.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .randomness import Stream

__all__ = ["BACKGROUNDS", "HELD_OUT_BACKGROUNDS", "TRAIN_BACKGROUNDS", "draw_background"]

_STEPS = 2.0**20
Field = NDArray[np.floating[Any]]


@lru_cache(maxsize=4)
def _axes(size: int) -> tuple[Field, Field]:
    """Coordinates in [0, 1): x of shape (1, size), y of shape (size, 1)."""
    line = (np.arange(size, dtype=np.float64) + 0.5) / size
    return line[None, :], line[:, None]


def _smooth(stream: Stream, size: int, cells: int) -> Field:
    """Smooth value noise with ``cells`` bumps along a side: (size, size)."""
    coarse = Image.fromarray(stream.bytes(cells * cells).reshape(cells, cells))
    fine = coarse.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(fine, dtype=np.float64) / 255


def _gradient(stream: Stream, size: int) -> Field:
    x, y = _axes(size)
    angle = stream.uniform(0, 2 * np.pi)
    return 0.5 + 0.6 * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle))


def _radial(stream: Stream, size: int) -> Field:
    x, y = _axes(size)
    return np.sqrt((x - stream.uniform()) ** 2 + (y - stream.uniform()) ** 2)


def _stripes(stream: Stream, size: int) -> Field:
    x, y = _axes(size)
    angle, waves = stream.uniform(0, np.pi), stream.uniform(3, 14)
    return 0.5 + 0.5 * np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)))


def _noise(stream: Stream, size: int) -> Field:
    return _smooth(stream, size, stream.between(3, 24))


def _clouds(stream: Stream, size: int) -> Field:
    return 0.6 * _smooth(stream, size, 4) + 0.3 * _smooth(stream, size, 10) + 0.2 * _smooth(stream, size, 28)


def _blobs(stream: Stream, size: int) -> Field:
    level = _smooth(stream, size, stream.between(5, 10))
    return np.clip((level - stream.uniform(0.35, 0.6)) * 6 + 0.5, 0, 1)


def _checks(stream: Stream, size: int) -> Field:
    x, y = _axes(size)
    count = stream.between(3, 12)
    return ((np.floor(x * count) + np.floor(y * count)) % 2).astype(np.float64) * 0.8


def _landscape(stream: Stream, size: int) -> Field:
    x, y = _axes(size)
    field = 0.35 * y
    for layer in range(stream.between(2, 3)):
        base, swing = 0.4 + 0.2 * layer + stream.uniform(-0.08, 0.08), stream.uniform(0.03, 0.1)
        ridge = base + swing * np.sin(2 * np.pi * (stream.uniform(0.7, 2.5) * x + stream.uniform()))
        field = np.where(y > ridge, 0.45 + 0.25 * layer, field)
    return field + 0.15 * _smooth(stream, size, 12)


def _waves(stream: Stream, size: int) -> Field:
    x, y = _axes(size)
    bend = stream.uniform(0.02, 0.06) * np.sin(2 * np.pi * stream.uniform(2, 4) * x)
    return 0.5 + 0.5 * np.sin(2 * np.pi * stream.uniform(5, 10) * (y + bend))


def _bricks(stream: Stream, size: int) -> Field:
    x, y = _axes(size)
    rows = stream.between(6, 12)
    shifted = x * rows / 2 + 0.5 * (np.floor(y * rows) % 2)
    mortar = ((y * rows) % 1 < 0.14) | (shifted % 1 < 0.07)
    return np.where(mortar, 0.9, 0.2 + 0.25 * _smooth(stream, size, rows))


def _rays(stream: Stream, size: int) -> Field:
    x, y = _axes(size)
    angle = np.arctan2(y - stream.uniform(-0.2, 1.2), x - stream.uniform(-0.2, 1.2))
    return 0.5 + 0.5 * np.sin(stream.between(8, 20) * angle)


TRAIN_BACKGROUNDS: dict[str, Callable[[Stream, int], Field]] = {
    "gradient": _gradient,
    "radial": _radial,
    "stripes": _stripes,
    "noise": _noise,
    "clouds": _clouds,
    "blobs": _blobs,
    "checks": _checks,
    "landscape": _landscape,
}
HELD_OUT_BACKGROUNDS: dict[str, Callable[[Stream, int], Field]] = {
    "waves": _waves,
    "bricks": _bricks,
    "rays": _rays,
}
BACKGROUNDS = TRAIN_BACKGROUNDS | HELD_OUT_BACKGROUNDS


def _muted(stream: Stream, level: float) -> Field:
    """A greyish colour around a brightness: (3,), in 0..255."""
    tint = [stream.uniform(-18, 18) for _ in range(3)]
    return np.array([level + t for t in tint], dtype=np.float64)


def draw_background(stream: Stream, kind: str, size: int) -> Image.Image:
    """Draw a background of a known kind: an RGB image of ``size`` x ``size`` pixels."""
    if kind not in BACKGROUNDS:
        raise ValueError(f"Unknown background {kind!r}; expected one of {', '.join(BACKGROUNDS)}.")
    level, contrast = stream.uniform(105, 155), stream.uniform(12, 46)
    low, high = _muted(stream, level - contrast / 2), _muted(stream, level + contrast / 2)
    # Processors differ in the last bits of sines: rounded off, so that a pixel is the same on each.
    field = np.round(np.broadcast_to(BACKGROUNDS[kind](stream, size), (size, size)) * _STEPS) / _STEPS
    grain = stream.bytes(size * size).reshape(size, size, 1).astype(np.float64) - 127.5
    pixels = low + (high - low) * field[:, :, None] + grain * (stream.uniform(0, 14) / 127.5)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
