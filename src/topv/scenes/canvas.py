"""A canvas that remembers, pixel by pixel, what was drawn: the source of every ground truth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .fonts import cap_height, load_font
from .geometry import Geometry
from .shapes import COLOURS, SHAPES, shape_mask
from .words import LETTERS

__all__ = ["HEADS", "IGNORED", "Canvas", "Item"]

IGNORED = -100
SIZES = ("small", "medium", "large")
KINDS = ("nothing", *SHAPES, *LETTERS, "box", "arrow")
MAX_LETTERS = 8
SECTORS = 8
DIAGRAM_CELLS = 3
HEADS: dict[str, int] = {
    "kind": len(KINDS),
    "colour": 1 + len(COLOURS),
    "size": len(SIZES),
    "centre": 2,
    "order": MAX_LETTERS,
    "points_to": 1 + len(LETTERS),
    "pointed_from": 1 + len(LETTERS),
    "leaves": 1 + SECTORS,
    "enters": 1 + SECTORS,
    "to_cell": 1 + DIAGRAM_CELLS**2,
    "from_cell": 1 + DIAGRAM_CELLS**2,
}
"""Dense labels per patch and how many classes each has."""

_HEAD_INDEX = {name: index for index, name in enumerate(HEADS)}
_COLOUR_INDEX = {name: index for index, name in enumerate(COLOURS, start=1)}
_COVER = 0.1


@dataclass(frozen=True)
class Item:
    """Something a question can be about: a shape, a word or a box of a diagram."""

    kind: str
    name: str
    colour: str
    size: str
    box: tuple[int, int, int, int]
    parts: tuple[int, ...]

    @property
    def centre(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass
class Canvas:
    """An image under construction, with an owner for every pixel.

    ``owner`` (size, size) holds 0 for background or the number of the part that covers the pixel; ``labels``
    has one row of dense labels per part, row 0 standing for the background.
    """

    geometry: Geometry
    image: Image.Image
    items: list[Item] = field(default_factory=list)
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.owner_image = Image.new("L", self.image.size)
        self.owner_pen = ImageDraw.Draw(self.owner_image)
        self.pen = ImageDraw.Draw(self.image)
        self.labels: list[list[int]] = [[0, 0, *[IGNORED] * (len(HEADS) - 2)]]
        self.labels[0][_HEAD_INDEX["centre"]] = 0
        self.centres: list[tuple[float, float]] = []

    def new_part(self, kind: str, **labels: int) -> int:
        """Register a part and its dense labels; heads that are not named are ignored there."""
        row = [IGNORED] * len(HEADS)
        row[_HEAD_INDEX["kind"]] = KINDS.index(kind)
        row[_HEAD_INDEX["centre"]] = 0
        for name, value in labels.items():
            row[_HEAD_INDEX[name]] = value
        self.labels.append(row)
        if len(self.labels) > 255:
            raise ValueError("A scene holds at most 254 parts; draw fewer letters or objects.")
        return len(self.labels) - 1

    def label(self, part: int, name: str, value: int) -> None:
        self.labels[part][_HEAD_INDEX[name]] = value

    def is_free(self, box: tuple[int, int, int, int], gap: int) -> bool:
        """Whether a box stays ``gap`` pixels away from all that was drawn."""
        left, top, right, bottom = box
        return all(
            left >= r + gap or right <= l - gap or top >= b + gap or bottom <= t - gap
            for l, t, r, b in self.boxes  # noqa: E741
        )

    def add_shape(
        self, shape: str, colour: str, rgb: tuple[int, int, int], size: str, corner: tuple[int, int], side: int,
        tilt: float,
    ) -> None:  # fmt: skip
        """Draw a shape into the square of ``side`` pixels at ``corner``."""
        mask = shape_mask(shape, side, tilt)
        part = self.new_part(shape, colour=_COLOUR_INDEX[colour], size=SIZES.index(size))
        self.image.paste(rgb, corner, mask)
        self.owner_image.paste(part, corner, mask.point(lambda value: 255 if value > 127 else 0))
        box = (corner[0], corner[1], corner[0] + side, corner[1] + side)
        self.boxes.append(box)
        self.centres.append((corner[0] + side / 2, corner[1] + side / 2))
        self.items.append(Item("shape", shape, colour, size, box, (part,)))

    def add_letters(
        self, text: str, font: str, pixels: int, rgb: tuple[int, int, int], corner: tuple[int, int], spacing: int
    ) -> tuple[int, ...]:  # fmt: skip
        """Write capital letters from the top-left corner of the first one; returns their part numbers."""
        face = load_font(font, pixels)
        height = round(cap_height(font) * pixels)
        x, y = float(corner[0]), corner[1]
        parts = []
        for index, letter in enumerate(text):
            advance = face.getlength(letter)
            self.pen.text((x, y + height), letter, fill=rgb, font=face, anchor="ls")
            part = self.new_part(letter, order=min(index, MAX_LETTERS - 1))
            right = max(x, x + advance - 1)
            self.owner_pen.rectangle([x, y, right, y + height - 1], fill=part)
            x += advance + spacing
            parts.append(part)
        return tuple(parts)

    def word_width(self, text: str, font: str, pixels: int, spacing: int) -> int:
        face = load_font(font, pixels)
        return round(sum(face.getlength(letter) for letter in text) + spacing * (len(text) - 1)) + 1

    def add_word(
        self, text: str, font: str, pixels: int, colour: str, rgb: tuple[int, int, int], size: str,
        corner: tuple[int, int], spacing: int,
    ) -> None:  # fmt: skip
        """Write a word and remember it as an item."""
        parts = self.add_letters(text, font, pixels, rgb, corner, spacing)
        for part in parts:
            self.label(part, "colour", _COLOUR_INDEX[colour])
            self.label(part, "size", SIZES.index(size))
        width = self.word_width(text, font, pixels, spacing)
        height = round(cap_height(font) * pixels)
        box = (corner[0], corner[1], corner[0] + width, corner[1] + height)
        self.boxes.append(box)
        self.items.append(Item("word", text, colour, size, box, parts))

    def _counts(self, geometry: Geometry) -> NDArray[np.int64]:
        """Pixels of each part in each patch: (rows * cols, parts)."""
        parts = len(self.labels)
        owner = np.asarray(self.owner_image, dtype=np.int64)
        line = np.arange(geometry.size) // geometry.patch
        patch = line[:, None] * geometry.grid + line[None, :]
        flat = np.bincount((patch * parts + owner).ravel(), minlength=geometry.grid**2 * parts)
        return flat.reshape(geometry.grid**2, parts)

    def measure(self, geometry: Geometry | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What each patch shows.

        Args:
            geometry: patches of another size on the same image; the canvas's own by default.

        Returns:
            counts (rows * cols, parts) in pixels, and the dense labels (rows, cols, heads).
        """
        geometry = geometry or self.geometry
        counts = self._counts(geometry)
        grid, threshold = geometry.grid, _COVER * geometry.patch**2
        drawn = counts.copy()
        drawn[:, 0] = 0
        best = drawn.argmax(axis=1)
        best[drawn.max(axis=1) < threshold] = 0
        dense = np.asarray(self.labels, dtype=np.int64)[best].reshape(grid, grid, len(HEADS))
        for x, y in self.centres:
            dense[(*geometry.cell((x, y)), _HEAD_INDEX["centre"])] = 1
        return counts, dense

    def foreground(self, counts: NDArray[np.int64], parts: Iterable[int] | None = None) -> NDArray[np.bool_]:
        """Patches at least a tenth covered by some parts (all of them by default): bool (rows, cols)."""
        wanted = list(range(1, counts.shape[1])) if parts is None else sorted(set(parts))
        grid = self.geometry.grid
        cover = counts[:, wanted].sum(axis=1)
        return (cover >= _COVER * self.geometry.patch**2).reshape(grid, grid)
