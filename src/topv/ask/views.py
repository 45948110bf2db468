"""What each grid of visual tokens shows: the picture to draw its tokens on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..report import enlarge, seen_image
from .case import Asked

__all__ = ["GridView", "grid_views"]


@dataclass(frozen=True)
class GridView:
    """One grid of a prompt.

    Attributes:
        name: such as "picture", "tile 2" or "thumbnail".
        grid: its shape (h, w).
        picture: what the model saw there, enlarged for drawing; None where the model's patches cannot be placed.
    """

    name: str
    grid: tuple[int, int]
    picture: Image.Image | None


def grid_views(asked: Asked, processor: Any) -> tuple[GridView, ...]:
    """The views of a question's grids, in prompt order."""
    grids = asked.layout.grids
    pictures: list[Image.Image | None] = [asked.subject.image if len(grids) == 1 else None] * len(grids)
    pixels = asked.inputs.get("pixel_values")
    if pixels is not None and pixels.ndim == 5 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels is not None and pixels.ndim == 4 and pixels.shape[:2] == (len(grids), 3):
        pictures = [seen_image(part, processor.image_processor) for part in pixels]
    views = []
    for number, (grid, picture) in enumerate(zip(grids, pictures, strict=True), start=1):
        name = "picture" if len(grids) == 1 else grid.kind if grid.kind == "thumbnail" else f"{grid.kind} {number}"
        shape = grid.rows_and_columns
        views.append(GridView(name, shape, None if picture is None or not grid.spatial else enlarge(picture, shape)))
    return tuple(views)
