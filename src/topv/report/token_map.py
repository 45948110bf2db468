"""Pictures of which visual tokens stayed, drawn on the image as the model saw it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..errors import InputError

__all__ = ["draw_heat_map", "draw_token_map", "enlarge", "outline_token", "seen_image"]

RECOVERED = (255, 140, 0)
"""Outline of recovered tokens."""

CHOSEN = (0, 229, 255)
"""Outline of the token that is looked at."""

_PRUNED_TOWARDS = 48
_UNJUDGED = 118.0
_PRUNED_BLEND = 0.72
_HEAT_BLEND = 0.68
_HEAT_RANGE = (2.0, 98.0)
# matplotlib's "magma" at nine even steps (CC0).
_MAGMA = np.array(
    [
        (0, 0, 4),
        (28, 16, 68),
        (79, 18, 123),
        (129, 37, 129),
        (181, 54, 122),
        (229, 80, 100),
        (251, 135, 97),
        (254, 194, 135),
        (252, 253, 191),
    ],
    dtype=np.float64,
)


def seen_image(pixel_values: torch.Tensor, image_processor: Any) -> Image.Image:
    """One image as the model saw it: resized, cropped and padded by its processor, with the normalisation undone.

    Args:
        pixel_values: (3, H, W), one image of what the processor returned.
        image_processor: the processor, whose `image_mean`, `image_std` and `rescale_factor` were applied.

    Raises:
        InputError: when `pixel_values` is not one image of three channels.
    """
    if pixel_values.ndim != 3 or pixel_values.shape[0] != 3:
        raise InputError(
            f"pixel_values of shape {tuple(pixel_values.shape)} is not one image: expected (3, height, width)."
        )
    pixels = pixel_values.detach().float().cpu().numpy().transpose(1, 2, 0)
    if getattr(image_processor, "do_normalize", True):
        pixels = pixels * np.asarray(image_processor.image_std) + np.asarray(image_processor.image_mean)
    if getattr(image_processor, "do_rescale", True):
        pixels = pixels / image_processor.rescale_factor
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8), "RGB")


def enlarge(image: Image.Image, grid: tuple[int, int], *, side: int = 504) -> Image.Image:
    """Scale a small image up by a whole factor until its longer side is about `side`, so that outlines stay fine.

    The factor is whole so that a cell of the grid covers whole pixels wherever it did before.
    """
    rows, columns = grid
    factor = max(1, round(side / max(image.size)), math.ceil(4 * max(rows, columns) / max(image.size)))
    if factor == 1:
        return image
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)


def draw_token_map(
    image: Image.Image,
    grid: tuple[int, int],
    kept: Collection[int],
    recovered: Collection[int] = (),
) -> Image.Image:
    """The image with pruned tokens greyed and dimmed, kept ones untouched, and recovered ones outlined as well.

    Args:
        image: the image as the model saw it.
        grid: the shape (h, w) of its visual tokens.
        kept: cells of the tokens that stayed, recovered ones included: row * w + column.
        recovered: cells of the tokens that were recovered.

    Raises:
        InputError: when a cell is outside the grid, or a recovered one was not kept.
    """
    rows, columns = grid
    kept, recovered = set(kept), set(recovered)
    outside = [cell for cell in kept | recovered if not 0 <= cell < rows * columns]
    if outside or not recovered <= kept:
        raise InputError(
            f"cells {sorted(outside or recovered - kept)[:5]} are not kept cells of a {rows} x {columns} grid: "
            f"expected kept cells in 0 .. {rows * columns - 1}, and recovered cells among them."
        )
    colour = np.asarray(image.convert("RGB"))
    dimmed = _blend(_grey(image), _PRUNED_TOWARDS, _PRUNED_BLEND)
    alive = np.zeros(rows * columns, dtype=bool)
    alive[list(kept)] = True
    mask = _to_pixels(alive.reshape(grid), image.size)
    drawn = Image.fromarray(np.where(mask[..., None], colour, dimmed).astype(np.uint8), "RGB")
    pen = ImageDraw.Draw(drawn)
    for cell in recovered:
        left, top, right, bottom = _box(cell, grid, image.size)
        width = max(1, (right - left) // 10)
        pen.rectangle((left, top, right - 1, bottom - 1), outline=RECOVERED, width=width)
    return drawn


def draw_heat_map(image: Image.Image, grid: tuple[int, int], importance: Sequence[float]) -> Image.Image:
    """The image under the importance of its tokens: dark violet is least, pale yellow most important.

    The colours span the 2nd to the 98th percentile; tokens that were not judged (NaN) stay grey.

    Args:
        image: the image as the model saw it.
        grid: the shape (h, w) of its visual tokens.
        importance: one number per token in raster order.

    Raises:
        InputError: when the numbers do not fill the grid.
    """
    values = np.asarray(importance, dtype=np.float64)
    if values.shape != (grid[0] * grid[1],):
        raise InputError(f"{values.size} importance values do not fill a grid of {grid[0]} x {grid[1]}.")
    judged = np.isfinite(values)
    level = np.full(values.shape, 0.5)
    if judged.any():
        low, high = np.percentile(values[judged], _HEAT_RANGE)
        if high > low:
            level[judged] = ((values[judged] - low) / (high - low)).clip(0, 1)
    colours = np.where(judged[:, None], _magma(level), _UNJUDGED)
    heat = _to_pixels(colours.reshape(*grid, 3), image.size)
    return Image.fromarray(_blend(_grey(image), heat, _HEAT_BLEND).astype(np.uint8), "RGB")


def outline_token(image: Image.Image, grid: tuple[int, int], cell: int) -> Image.Image:
    """The image with one token outlined.

    Args:
        image: the image as the model saw it.
        grid: the shape (h, w) of its visual tokens.
        cell: the token: row * w + column.

    Raises:
        InputError: when the cell is outside the grid.
    """
    if not 0 <= cell < grid[0] * grid[1]:
        raise InputError(f"cell {cell} is outside a grid of {grid[0]} x {grid[1]}.")
    drawn = image.copy()
    left, top, right, bottom = _box(cell, grid, image.size)
    ImageDraw.Draw(drawn).rectangle((left - 1, top - 1, right, bottom), outline=CHOSEN, width=3)
    return drawn


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("L").convert("RGB"))


def _blend(base: NDArray[np.uint8], towards: NDArray[np.float64] | float, share: float) -> NDArray[np.float64]:
    blended: NDArray[np.float64] = np.rint(base * (1 - share) + np.asarray(towards) * share)
    return blended


def _magma(level: NDArray[np.float64]) -> NDArray[np.float64]:
    steps = np.linspace(0, 1, len(_MAGMA))
    return np.stack([np.interp(level, steps, _MAGMA[:, channel]) for channel in range(3)], axis=-1)


def _edges(cells: int, pixels: int) -> list[int]:
    return [round(index * pixels / cells) for index in range(cells + 1)]


def _box(cell: int, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    row, column = divmod(cell, grid[1])
    across, down = _edges(grid[1], size[0]), _edges(grid[0], size[1])
    return across[column], down[row], across[column + 1], down[row + 1]


def _to_pixels(cells: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Every pixel's cell value: (h, w, ...) to (height, width, ...)."""
    width, height = size
    rows, columns = cells.shape[:2]
    down = np.repeat(np.arange(rows), np.diff(_edges(rows, height)))
    across = np.repeat(np.arange(columns), np.diff(_edges(columns, width)))
    return cells[down][:, across]
