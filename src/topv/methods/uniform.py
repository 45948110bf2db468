"""Uniform: an evenly spread subset of each grid, whatever the image shows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch

from .base import Evidence, Method

__all__ = ["Uniform"]


@dataclass(frozen=True, kw_only=True)
class Uniform(Method):
    """Keep cells in the order of a Bayer matrix, so that any number of kept cells covers the grid evenly.

    The order of cell (r, c) interleaves the reversed bits of `r xor c` and `r` (Bayer 1973, ordered dithering).
    """

    has_importance: ClassVar[bool] = False

    @property
    def uses_places(self) -> bool:
        return True

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        order = bayer_order(evidence.rows_and_columns).to(evidence.coordinates.device, non_blocking=True)
        # Relative to the grid, so that grids of any size that share a budget lose the same share.
        return (-order.float() / order.numel()).expand(len(evidence.images), -1)


@lru_cache(maxsize=64)
def bayer_order(rows_and_columns: tuple[int, int]) -> torch.Tensor:
    """The rank of every cell in Bayer's order: LongTensor (h * w,), raster order, lower ranks first.

    >>> bayer_order((2, 2)).tolist()
    [0, 2, 3, 1]
    """
    rows, columns = rows_and_columns
    row = torch.arange(rows, device="cpu").unsqueeze(1).expand(rows, columns)
    column = torch.arange(columns, device="cpu").unsqueeze(0).expand(rows, columns)
    mixed = row ^ column
    order = torch.zeros(rows, columns, dtype=torch.long, device="cpu")
    bits = max(rows - 1, columns - 1, 1).bit_length()
    for bit in range(bits):
        order = (order << 2) | (((mixed >> bit) & 1) << 1) | ((row >> bit) & 1)
    return order.flatten().argsort(stable=True).argsort(stable=True)
