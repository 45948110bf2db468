"""Where a prompt's visual tokens stand without a break: the tiles of a picture, told apart by what is between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..layout import Picture

__all__ = ["runs", "tiled"]


def runs(marks: torch.Tensor) -> list[tuple[int, int]]:
    """First and one past the last column of each unbroken run of true entries in (T,).

    >>> runs(torch.tensor([True, True, False, True]))
    [(0, 2), (3, 4)]
    """
    columns = marks.nonzero().flatten().tolist()
    starts = [at for i, at in enumerate(columns) if i == 0 or columns[i - 1] != at - 1]
    ends = [at + 1 for i, at in enumerate(columns) if i == len(columns) - 1 or columns[i + 1] != at + 1]
    return list(zip(starts, ends, strict=True))


def tiled(shapes: Sequence[tuple[int, int]]) -> Picture:
    """A picture that is one grid, or tiles and, last, the whole of it made smaller."""
    if len(shapes) == 1:
        return Picture.filled(shapes[0])
    return Picture.stacked(shapes, ["tile"] * (len(shapes) - 1) + ["thumbnail"])
