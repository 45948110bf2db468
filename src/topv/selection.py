"""Which visual tokens stay, under an exact budget: the most important, and an even sample of the others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Selection", "select"]


class Selection(NamedTuple):
    """What is kept of G grids of N tokens.

    Attributes:
        indices: LongTensor (G, K), kept tokens of each grid, ascending, each at most once.
        recovered: BoolTensor (G, K), which of them were recovered from the pruned ones, rather than chosen by
            importance.
    """

    indices: Tensor
    recovered: Tensor


@torch.no_grad()
def select(importance: Tensor, count: int, recovered: int = 0) -> Selection:
    r"""Keep ``count`` tokens of each grid: the most important, and ``recovered`` evenly spaced others.

    With K = ``count`` and r = ``recovered``, the K - r tokens of highest importance are chosen (equal
    importance: the lower index first). The other R = N - K + r, in raster order, give back the tokens at
    positions :math:`\lfloor (2k + 1) R / 2r \rfloor`, k = 0 .. r - 1: an even stride that starts half a
    stride in. All shapes follow from the arguments alone, so nothing waits for the device.

    Args:
        importance: (G, N), higher is kept first. Must be free of NaN, which has no order
            (:func:`topv.transport.check_finite`).
        count: K, tokens kept of each grid, from :func:`topv.budget.keep_count`.
        recovered: r, how many of the K are recovered, from :func:`topv.budget.recovered_count`.

    Returns:
        Selection: indices (G, K), ascending, and which of them were recovered (G, K).

    Examples:
        >>> import torch
        >>> importance = torch.tensor([[0.0, 9.0, 0.0, 8.0, 0.0, 0.0, 0.0, 0.0]])
        >>> select(importance, count=4, recovered=2)
        Selection(indices=tensor([[1, 2, 3, 6]]), recovered=tensor([[False,  True, False,  True]]))
    """
    if importance.dim() != 2 or not importance.is_floating_point():
        raise ValueError(
            f"importance has shape {tuple(importance.shape)} and dtype {importance.dtype}; expected a "
            "floating-point (G, N), one row per grid"
        )
    n = importance.shape[1]
    if not 1 <= count <= n:
        raise ValueError(f"count={count}; expected 1 .. N={n}: take it from topv.budget.keep_count")
    if not 0 <= recovered <= count:
        raise ValueError(
            f"recovered={recovered}; expected 0 .. count={count}, since recovery is inside the budget: take "
            "it from topv.budget.recovered_count"
        )
    top = count - recovered
    order = torch.sort(importance, dim=1, descending=True, stable=True).indices
    if recovered:
        rest = order[:, top:].sort(dim=1).values
        stride = torch.arange(recovered, device=importance.device)
        positions = (2 * stride + 1) * (n - top) // (2 * recovered)
        chosen = torch.cat([order[:, :top], rest[:, positions]], dim=1)
    else:
        chosen = order[:, :top]
    indices, place = chosen.sort(dim=1)
    return Selection(indices, place >= top)
