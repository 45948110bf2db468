"""Where a prompt's visual tokens stand without a break: images and their tiles, told apart by what is between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..layout import Picture

__all__ = ["run_lengths", "runs", "tiled"]


def runs(marks: torch.Tensor) -> list[tuple[int, int]]:
    """First and one past the last column of each unbroken run of true entries in the BoolTensor (T,), on the CPU.

    >>> runs(torch.tensor([True, True, False, True]))
    [(0, 2), (3, 4)]
    """
    columns = marks.nonzero().flatten().tolist()
    starts = [at for i, at in enumerate(columns) if i == 0 or columns[i - 1] != at - 1]
    ends = [at + 1 for i, at in enumerate(columns) if i == len(columns) - 1 or columns[i + 1] != at + 1]
    return list(zip(starts, ends, strict=True))


def run_lengths(marks: torch.Tensor) -> list[int]:
    """Lengths of the unbroken runs of true entries in each row of the BoolTensor (B, T), row by row.

    >>> run_lengths(torch.tensor([[True, True, False, True], [True, False, False, False]]))
    [2, 1, 1]
    """
    return [end - start for row in marks for start, end in runs(row)]


def tiled(shapes: Sequence[tuple[int, int]]) -> Picture:
    """A picture that is one grid, or tiles and, last, the whole of it made smaller.

    Args:
        shapes: the (h, w) of each grid, at least one.
    """
    if len(shapes) == 1:
        return Picture.filled(shapes[0])
    return Picture.stacked(shapes, ["tile"] * (len(shapes) - 1) + ["thumbnail"])
