"""The greedy choice of ``coverage.py`` in one launch, without the host.

Each step needs the last one's result, so as torch operations a step costs the launches of a few of them. Here one
program makes a grid's whole choice, with what the targets pay in registers: a step is one row of the costs from the
cache, and a reduction within the program."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import torch
from torch import Tensor

from .fused import interpreted

__all__ = ["open_in_one_launch"]

_failed = False


def open_in_one_launch(
    price: Tensor, supplier: Tensor, first: Tensor, count: int, *, unpaid: int, paid: int
) -> tuple[Tensor, Tensor] | None:
    """What targets pay in the end, and what was paid for each opened source: int32 (B, N) each; or None where the
    kernel cannot run, or did not compile.

    Args:
        price: int32 (B, N, N), rows are sources.
        supplier: int64 (B, N), the cheapest source of each target.
        first: int64 (B, 1), the target that asks first.
        count: how many sources to open.
        unpaid: what a target pays at first.
        paid: what a target counts as paying whose supplier is open; also marks sources that were not opened.
    """
    global _failed
    runs = price.device.type == "cuda" or (interpreted() and not torch.compiler.is_compiling())
    if _failed or not runs or find_spec("triton") is None:
        return None
    try:
        return _launch(price, supplier.contiguous(), first.contiguous(), count, unpaid, paid)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler that is missing or at odds with the driver raises what it likes
        _failed = True
        warnings.warn(
            f"topv's Triton kernel failed and selection falls back to torch, which is slower "
            f"({type(error).__name__}: {error}).",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _launch(
    price: Tensor, supplier: Tensor, first: Tensor, count: int, unpaid: int, paid: int
) -> tuple[Tensor, Tensor]:
    from triton import next_power_of_2

    from .coverage_kernel import open_sources

    batch, n, _ = price.shape
    near, values = price.new_empty(batch, n), price.new_empty(batch, n)
    open_sources[(batch,)](
        price, supplier, first, near, values, n, count,
        UNPAID=unpaid, PAID=paid, BLOCK_N=next_power_of_2(n), num_warps=4 if n <= 1024 else 8,
    )  # fmt: skip
    return near, values
