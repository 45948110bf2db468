"""Where visual tokens sit in a prompt, and which cell of which grid each one fills."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .errors import LayoutError

__all__ = ["Grid", "VisualLayout"]


@dataclass(frozen=True)
class Grid:
    """One spatial grid of visual tokens: an image, a tile, or a video frame.

    Attributes:
        sample: row of the batch that the grid belongs to.
        image: position of the grid among its sample's grids, in prompt order.
        columns: LongTensor (N,) on the CPU: the prompt columns of the tokens, in raster order.
        rows_and_columns: the grid's shape (h, w), with h * w = N.
    """

    sample: int
    image: int
    columns: torch.Tensor
    rows_and_columns: tuple[int, int]

    def __post_init__(self) -> None:
        rows, columns = self.rows_and_columns
        if rows * columns != self.columns.numel() or rows < 1 or columns < 1:
            raise LayoutError(
                f"a grid of {rows} x {columns} cells cannot hold {self.columns.numel()} visual tokens "
                f"(sample {self.sample}, image {self.image}). Expected rows * columns = tokens."
            )

    @property
    def tokens(self) -> int:
        """Number of visual tokens N in the grid."""
        return self.columns.numel()


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

    @staticmethod
    def from_images(placeholders: torch.Tensor, shapes: Sequence[tuple[int, int]], *, skip: int = 0) -> VisualLayout:
        """Deal a batch's placeholder columns out to its images, in order.

        Args:
            placeholders: BoolTensor (B, T) on the CPU, true where a visual token sits.
            shapes: the (h, w) grid of each image of the batch, sample by sample.
            skip: tokens before each grid that belong to the image but to no cell (a class token); never pruned.

        Raises:
            LayoutError: when the placeholders do not divide into exactly these images.
        """
        batch, length = placeholders.shape
        grids: list[Grid] = []
        image = 0
        for sample in range(batch):
            columns = placeholders[sample].nonzero().squeeze(1)
            start = ordinal = 0
            while start < columns.numel():
                if image >= len(shapes):
                    raise LayoutError(_mismatch(placeholders, shapes, skip))
                rows, width = shapes[image]
                end = start + skip + rows * width
                if end > columns.numel():
                    raise LayoutError(_mismatch(placeholders, shapes, skip))
                grids.append(Grid(sample, ordinal, columns[start + skip : end].clone(), (rows, width)))
                start, ordinal, image = end, ordinal + 1, image + 1
        if image != len(shapes):
            raise LayoutError(_mismatch(placeholders, shapes, skip))
        return VisualLayout(batch, length, tuple(grids))


def _mismatch(placeholders: torch.Tensor, shapes: Sequence[tuple[int, int]], skip: int) -> str:
    per_sample = placeholders.sum(1).tolist()
    needed = sum(skip + rows * columns for rows, columns in shapes)
    return (
        f"the prompt holds {sum(per_sample)} image placeholder tokens ({per_sample} per sample), but its "
        f"{len(shapes)} images need {needed}. The placeholders are missing or were truncated: build the "
        "inputs with the model's processor, with one image token per image and without truncation."
    )
