"""Where visual tokens sit in a prompt, and which cell of which grid each one fills."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .errors import LayoutError

__all__ = ["GRID_KINDS", "Grid", "Part", "Picture", "VisualLayout", "coordinates"]


GRID_KINDS = ("image", "tile", "thumbnail", "frame")


@dataclass(frozen=True)
class Grid:
    """One spatial grid of visual tokens: an image, a tile, a thumbnail, or a video frame.

    Attributes:
        sample: row of the batch that the grid belongs to.
        ordinal: number of the grid among its sample's grids, in prompt order.
        columns: LongTensor (N,) on the CPU: the prompt columns of the tokens, in raster order.
        rows_and_columns: the grid's shape (h, w), with h * w = N.
        image: number, in its sample, of the image or video that the grid is part of.
        kind: "image", "tile", "thumbnail" or "frame".
        spatial: whether neighbours in the grid are neighbours in the picture. Tokens that each gather from the whole
            picture (a resampler's) have no place: their grid is one row, and no distance may be read off it.
    """

    sample: int
    ordinal: int
    columns: torch.Tensor
    rows_and_columns: tuple[int, int]
    image: int = 0
    kind: str = "image"
    spatial: bool = True

    def __post_init__(self) -> None:
        rows, columns = self.rows_and_columns
        if rows * columns != self.columns.numel() or rows < 1 or columns < 1:
            raise LayoutError(
                f"a grid of {rows} x {columns} cells cannot hold {self.columns.numel()} visual tokens "
                f"(sample {self.sample}, grid {self.ordinal}). Expected rows * columns = tokens."
            )
        if self.kind not in GRID_KINDS:
            raise ValueError(f"kind={self.kind!r}, expected one of {', '.join(GRID_KINDS)}.")

    @property
    def tokens(self) -> int:
        """Number of visual tokens N in the grid."""
        return self.columns.numel()


@dataclass(frozen=True)
class Part:
    """One grid of a picture, before it is known where in a prompt the picture stands.

    Attributes:
        positions: LongTensor (N,) on the CPU: which of the picture's placeholders fill the cells, in raster order.
        rows_and_columns: the grid's shape (h, w).
        kind: as in `Grid`.
        spatial: as in `Grid`.
    """

    positions: torch.Tensor
    rows_and_columns: tuple[int, int]
    kind: str = "image"
    spatial: bool = True


@dataclass(frozen=True)
class Picture:
    """An image or a video as its placeholders stand in a prompt, whatever separators stand between them.

    Attributes:
        tokens: how many placeholders it takes. Those that no part names (a class token, a newline that fills a
            placeholder) are never pruned.
        parts: its grids, in prompt order.
    """

    tokens: int
    parts: tuple[Part, ...]

    @staticmethod
    def filled(rows_and_columns: tuple[int, int], *, skip: int = 0) -> Picture:
        """A picture of one grid, behind `skip` placeholders that are no cells."""
        rows, columns = rows_and_columns
        positions = torch.arange(skip, skip + rows * columns, device="cpu")
        return Picture(skip + rows * columns, (Part(positions, rows_and_columns),))

    @staticmethod
    def stacked(shapes: Sequence[tuple[int, int]], kinds: Sequence[str]) -> Picture:
        """A picture whose grids fill its placeholders one after another, with nothing between them."""
        parts = []
        start = 0
        for (rows, columns), kind in zip(shapes, kinds, strict=True):
            parts.append(Part(torch.arange(start, start + rows * columns, device="cpu"), (rows, columns), kind))
            start += rows * columns
        return Picture(start, tuple(parts))

    @staticmethod
    def placeless(tokens: int) -> Picture:
        """A picture whose tokens have no place in it."""
        return Picture(tokens, (Part(torch.arange(tokens, device="cpu"), (1, tokens), spatial=False),))


def coordinates(rows_and_columns: tuple[int, int]) -> torch.Tensor:
    """Row and column of every cell of an (h, w) grid in raster order: float32 (h * w, 2).

    >>> coordinates((2, 2)).tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    rows, columns = rows_and_columns
    row = torch.arange(rows, dtype=torch.float32, device="cpu").repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float32, device="cpu").repeat(rows)
    return torch.stack([row, column], dim=1)


@dataclass(frozen=True)
class VisualLayout:
    """The visual tokens of one batch of prompts.

    Attributes:
        batch: number of samples B.
        length: padded prompt length T of this forward.
        grids: every grid of every sample, sample by sample, each sample's in prompt order.
    """

    batch: int
    length: int
    grids: tuple[Grid, ...]

    @property
    def visual_tokens(self) -> int:
        """Number of visual tokens over the whole batch."""
        return sum(grid.tokens for grid in self.grids)

    def repeated(self, copies: int) -> VisualLayout:
        """The layout of a batch in which `copies` rows in a row are made of each sample."""
        if copies == 1:
            return self
        grids = [
            replace(grid, sample=sample * copies + copy)
            for sample in range(self.batch)
            for copy in range(copies)
            for grid in self.grids
            if grid.sample == sample
        ]
        return VisualLayout(self.batch * copies, self.length, tuple(grids))

    @staticmethod
    def from_images(placeholders: torch.Tensor, shapes: Sequence[tuple[int, int]], *, skip: int = 0) -> VisualLayout:
        """Deal a batch's placeholder columns out to images of one grid each, in order.

        Args:
            placeholders: BoolTensor (B, T) on the CPU, true where a visual token sits.
            shapes: the (h, w) grid of each image of the batch, sample by sample.
            skip: tokens before each grid that belong to the image but to no cell (a class token); never pruned.

        Raises:
            LayoutError: when the placeholders do not divide into exactly these images.
        """
        return VisualLayout.from_pictures(placeholders, [Picture.filled(shape, skip=skip) for shape in shapes])

    @staticmethod
    def from_pictures(placeholders: torch.Tensor, pictures: Sequence[Picture]) -> VisualLayout:
        """Deal a batch's placeholder columns out to its pictures, in order.

        Args:
            placeholders: BoolTensor (B, T) on the CPU, true where a visual token sits.
            pictures: every image and video of the batch, sample by sample, each sample's in prompt order.

        Raises:
            LayoutError: when the placeholders do not divide into exactly these pictures.
        """
        batch, length = placeholders.shape
        grids: list[Grid] = []
        remaining = iter(pictures)
        for sample in range(batch):
            columns = placeholders[sample].nonzero().squeeze(1)
            start = image = ordinal = 0
            while start < columns.numel():
                picture = next(remaining, None)
                if picture is None or start + picture.tokens > columns.numel():
                    raise LayoutError(_mismatch(placeholders, pictures))
                own = columns[start : start + picture.tokens]
                for part in picture.parts:
                    cells = own[part.positions]
                    grids.append(Grid(sample, ordinal, cells, part.rows_and_columns, image, part.kind, part.spatial))
                    ordinal += 1
                start, image = start + picture.tokens, image + 1
        if next(remaining, None) is not None:
            raise LayoutError(_mismatch(placeholders, pictures))
        return VisualLayout(batch, length, tuple(grids))


def _mismatch(placeholders: torch.Tensor, pictures: Sequence[Picture]) -> str:
    per_sample = placeholders.sum(1).tolist()
    needed = sum(picture.tokens for picture in pictures)
    return (
        f"the prompt holds {sum(per_sample)} image placeholder tokens ({per_sample} per sample), but its "
        f"{len(pictures)} images need {needed}. The placeholders are missing or were truncated: build the "
        "inputs with the model's processor, with one image token per image and without truncation."
    )
