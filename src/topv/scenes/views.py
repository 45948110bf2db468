"""How a scene is shown to a model: as one grid of patches, or as tiles and a thumbnail of the whole.

A view fixes the order in which a model gets its visual tokens, and so the order of every target about them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .canvas import HEADS, Canvas
from .geometry import Geometry

__all__ = ["Tiles", "View", "read_view"]


@dataclass(frozen=True)
class View:
    """An image shown whole: every patch becomes a visual token, row by row.

    Attributes:
        geometry: size of a scene and of the tower's patches.
    """

    geometry: Geometry

    @property
    def cells(self) -> Geometry:
        """The grid of visual tokens, laid over the scene."""
        return self.geometry

    @property
    def lines(self) -> int:
        """How many different rows, or columns, a visual token can stand in."""
        return self.cells.grid

    @cached_property
    def parts(self) -> NDArray[np.int64]:
        """The patches that each visual token is made of, from top-left to bottom-right: int64 (tokens, parts)."""
        return np.arange(self.geometry.grid**2)[:, None]

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Row and column of each visual token: int64 (tokens, 2), from 0 to ``lines - 1``."""
        return np.stack(np.divmod(np.arange(self.cells.grid**2), self.cells.grid), axis=1)

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """What the model is given of a scene: uint8 (size, size, 3)."""
        return np.asarray(image, dtype=np.uint8)

    def labels(self, canvas: Canvas, dense: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Dense labels of the tower's patches and of the visual tokens.

        Args:
            canvas: the finished drawing.
            dense: its labels on ``geometry``, int64 (rows, cols, heads), as ``Canvas.measure`` gives them.

        Returns:
            int64 (patches, heads) and int64 (tokens, heads).
        """
        flat = dense.reshape(-1, len(HEADS))
        return flat, flat

    def shows(self, marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which visual tokens show a marked patch.

        Args:
            marked: bool (rows, cols) on ``geometry``.

        Returns:
            bool (tokens,).
        """
        return marked.flatten()

    def token_at(self, point: tuple[float, float]) -> int:
        """The visual token that shows a point (x, y) of the scene, at the finest grid that does."""
        row, column = self.cells.cell(point)
        return row * self.cells.grid + column


@dataclass(frozen=True)
class Tiles(View):
    """An image cut into ``side`` x ``side`` tiles, row by row, then shown once more as a thumbnail of a tile's size.

    Two by two patches become one visual token. The thumbnail's rows and columns count on from those of the tiles.

    >>> view = Tiles(Geometry(224, 14), 2)
    >>> view.tile.size, view.cells.grid, len(view.places), view.lines
    (112, 8, 80, 12)
    """

    side: int = 2

    def __post_init__(self) -> None:
        if self.side < 2 or self.geometry.grid % (2 * self.side):
            raise ValueError(
                f"{self.side} x {self.side} tiles of {self.geometry}: expected at least 2 tiles a side, each of an even"
                " number of patches; choose another image size."
            )

    @property
    def tile(self) -> Geometry:
        """One tile, and the thumbnail."""
        return Geometry(self.geometry.size // self.side, self.geometry.patch)

    @property
    def cells(self) -> Geometry:
        return Geometry(self.geometry.size, 2 * self.geometry.patch)

    @property
    def lines(self) -> int:
        return self.cells.grid + self.tile.grid // 2

    @cached_property
    def parts(self) -> NDArray[np.int64]:
        grids, grid = self.side**2 + 1, self.tile.grid
        patches = np.arange(grids * grid**2).reshape(grids, grid // 2, 2, grid // 2, 2)
        return patches.transpose(0, 1, 3, 2, 4).reshape(-1, 4)

    @cached_property
    def places(self) -> NDArray[np.int64]:
        grid, small = self.cells.grid, self.tile.grid // 2
        whole = np.stack(np.divmod(np.arange(grid**2), grid), axis=1).reshape(grid, grid, 2)
        thumbnail = np.stack(np.divmod(np.arange(small**2), small), axis=1)
        return np.concatenate([self._cut(whole).reshape(-1, 2), grid + thumbnail])

    def _cut(self, whole: NDArray[Any]) -> NDArray[Any]:
        """Something (rows, cols, k) tile by tile: (tiles, rows of a tile, cols of a tile, k)."""
        grid, last = len(whole) // self.side, whole.shape[-1]
        cut = whole.reshape(self.side, grid, self.side, grid, last).transpose(0, 2, 1, 3, 4)
        return cut.reshape(self.side**2, grid, grid, last)

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """The tiles and the thumbnail: uint8 (tiles + 1, tile size, tile size, 3), as the processor cuts them."""
        small = image.resize((self.tile.size, self.tile.size), Image.Resampling.BICUBIC)
        tiles = self._cut(np.asarray(image, dtype=np.uint8))
        return np.concatenate([tiles, np.asarray(small, dtype=np.uint8)[None]])

    def labels(self, canvas: Canvas, dense: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        coarse = canvas.measure(self.cells)[1]
        # A patch of the thumbnail shows `side` by `side` patches of the scene, and a token four times as much.
        shrunk = Geometry(self.geometry.size, self.side * self.geometry.patch)
        small = coarse if shrunk == self.cells else canvas.measure(shrunk)[1]
        tiny = canvas.measure(Geometry(shrunk.size, 2 * shrunk.patch))[1]
        pairs = ((dense, small), (coarse, tiny))
        patches, tokens = (
            np.concatenate([self._cut(whole).reshape(-1, len(HEADS)), thumbnail.reshape(-1, len(HEADS))])
            for whole, thumbnail in pairs
        )
        return patches, tokens

    def shows(self, marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
        small = self.tile.grid
        thumbnail = marked.reshape(small, self.side, small, self.side).any(axis=(1, 3))
        patches = np.concatenate([self._cut(marked[..., None]).reshape(-1), thumbnail.reshape(-1)])
        shown: NDArray[np.bool_] = np.any(patches[self.parts], axis=1)
        return shown

    def token_at(self, point: tuple[float, float]) -> int:
        grid = self.cells.grid // self.side
        (tile_row, row), (tile_column, column) = (divmod(value, grid) for value in self.cells.cell(point))
        return ((tile_row * self.side + tile_column) * grid + row) * grid + column


def read_view(config: Any, processor: Any) -> View:
    """How a saved model, one like the bundled ones, is shown its images.

    Args:
        config: a ``LlavaConfig`` or ``InternVLConfig``.
        processor: the processor saved with it.

    Raises:
        ValueError: for another kind of model.
    """
    vision = config.vision_config
    if config.model_type == "llava":
        return View(Geometry(vision.image_size, vision.patch_size))
    if config.model_type != "internvl":
        raise ValueError(f"A {config.model_type} model; expected a LLaVA or an InternVL like the bundled ones.")
    side = math.isqrt(processor.image_processor.max_patches)
    return Tiles(Geometry(side * vision.image_size[0], vision.patch_size[0]), side)
