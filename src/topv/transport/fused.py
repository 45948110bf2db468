r"""The whole of :func:`importance` in a few Triton kernels, without the host ever waiting for the device.

============  =======================================================  ========================
launch        what it does                                             programs
============  =======================================================  ========================
row_squares   squared length of each token                             B N / 2
centres       common centre (float32 tokens only)                      B D / 64
distances     N x N distances by tensor cores, largest or sum by tile  B (N / 64)^2
iterate       p of some rows, their share of every column's sum        B N / (rows at a time)
columns       q from those shares                                      B N / 32
iterate       what each row supplies ("potential": not launched)       as above
finish        standardise, subtract gamma E                            B
============  =======================================================  ========================

``iterate`` and ``columns`` are launched once per iteration, so 16-bit tokens and 3 iterations take 10 launches. In a
prefill the host is ahead of the device, and a launch costs the device about a microsecond; where the host is not ahead,
capture the caller in a CUDA graph: nothing here waits or depends on values. One launch for all iterations would need a
barrier across programs, which deadlocks when other work keeps some of them from starting, and one program per grid
would read the distances through a single multiprocessor.

Accuracy. Products of 16-bit tokens are exact in float32 and enter as they are; sums keep their roundings (TwoSum), so
:math:`d^2` should be off by about 2e-7 of :math:`\|s_i\|^2 + \|t_j\|^2` (tensor cores truncate inside a block of 64).
No centre is taken off: in bfloat16 a component cannot be further from zero than 256 times the least difference it can
express. float32 tokens are centred first and multiplied with three TF32 products for one, about 5e-7. Either way a
distance below 1e-3 of the largest drowns, as on the torch backend of an accelerator. Squared lengths must be in
float32's range: tokens between 1e-18 and 1e18 long, which is not checked.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from .dense import MATRIX_BYTES, matrix_bytes
from .distance import slices
from .problem import Problem

__all__ = ["fused_importance", "fused_or_none", "interpreted", "why_not_fused"]

DISTANCE_BYTES = 2**28
"""Distances of as many grids as fit are in memory at a time."""

MOST_PARTS = 256
"""Into so many parts, at most, are the rows of a grid cut, so that ``columns`` adds them up in one block."""


def why_not_fused(source: Tensor, target: Tensor, problem: Problem) -> str | None:
    """Why the kernels cannot run on these tokens, or None if they can. Never looks at values."""
    if _failure is not None:
        return f"they failed before ({_failure})"
    if find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if not interpreted():
        if source.device.type != "cuda":
            return f"the tokens are on {source.device}; expected a CUDA device (or TRITON_INTERPRET=1, for tests)"
        if _capability(source.device) < (8, 0):
            return f"the device has compute capability {_capability(source.device)}; expected at least (8, 0)"
    if source.dtype != target.dtype or source.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"source is {source.dtype} and target {target.dtype}; expected the same of float32, bfloat16, float16"
    n = source.shape[1]
    if matrix_bytes(n) > MATRIX_BYTES:
        return f"a grid has {n} tokens; expected at most {int((MATRIX_BYTES / matrix_bytes(1)) ** 0.5)}"
    if problem.eps < 1e-30:
        return f"eps={problem.eps}; expected at least 1e-30"
    return None


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def interpreted() -> bool:
    """Whether triton interprets its kernels, on any device, as the tests have it."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def fused_importance(
    source: Tensor, target: Tensor, coordinates: Tensor, problem: Problem, *, gamma: float | None
) -> Tensor:
    """Importance of each source, (B, N), float32.

    With ``gamma``, the value of :class:`Problem` standardised within each grid, less gamma E; without, its share 1/N.
    """
    batch, n, _ = source.shape
    importance = torch.empty(batch, n, dtype=torch.float32, device=source.device)
    source, target = (x if x.stride(-1) == 1 else x.contiguous() for x in (source, target))
    cells = coordinates.to(torch.float32).contiguous()
    for part in slices(batch, max(1, DISTANCE_BYTES // (4 * n * n))):
        places = cells if cells.dim() == 2 else cells[part]
        _launch(source[part], target[part], places, problem, gamma, importance[part])
    return importance


_failure: str | None = None


def fused_or_none(
    source: Tensor, target: Tensor, coordinates: Tensor, problem: Problem, *, gamma: float | None
) -> Tensor | None:
    """The same, for who has another way: None, and from then on a reason not to try, if the kernels do not compile."""
    global _failure
    try:
        return fused_importance(source, target, coordinates, problem, gamma=gamma)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler that is missing or at odds with the driver raises what it likes
        _failure = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"topv's Triton kernels failed and selection falls back to torch ({_failure}). Pass "
            "backend='fused' to topv.transport.importance to see the whole error.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _launch(
    source: Tensor, target: Tensor, cells: Tensor, problem: Problem, gamma: float | None, importance: Tensor
) -> None:
    from triton import cdiv, next_power_of_2

    from . import fused_kernels as kernels

    batch, n, d = source.shape

    def vector(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=source.device)

    tiles = cdiv(n, 64)
    parts, distance = vector(batch, tiles * tiles), vector(batch, n, n, dtype=torch.float32)
    largest = problem.scale == "max"
    if problem.alpha:
        centred = source.dtype == torch.float32
        squares, centre = vector(2, batch, n), vector(batch, d if centred else 1, dtype=torch.float32)
        shape = (batch, n, d, source.stride(0), source.stride(1), target.stride(0), target.stride(1))
        kernels.row_squares[(cdiv(n, 4), batch, 2)](
            source, target, squares, *shape, ROWS=4, BLOCK_D=min(512, next_power_of_2(d)), num_warps=4
        )
        if centred:
            kernels.centres[(cdiv(d, 64), batch)](
                source, target, squares, centre, *shape,
                NORMALIZE=problem.normalize, BLOCK_N=32, BLOCK_D=64, num_warps=4,
            )  # fmt: skip
        kernels.distances[(tiles, tiles, batch)](
            source, target, squares, centre, distance, parts, *shape,
            NORMALIZE=problem.normalize, CENTRED=centred, LARGEST=largest, INTERPRETED=interpreted(),
            BLOCK_M=64, BLOCK_N=64, BLOCK_K=32 if centred else 64, num_warps=4, num_stages=3,
        )  # fmt: skip

    block = next_power_of_2(n)
    rows = max(1, 4096 // block)
    steps = cdiv(n, rows * MOST_PARTS)
    count = cdiv(n, rows * steps)
    scaling = problem.scaling_is_safe(source.device)
    p, q, level, value = vector(batch, n), vector(batch, n), vector(batch), vector(batch, n)
    totals = vector(batch, count, n)
    highest = vector(batch, 1 if scaling else count, n, dtype=torch.float32)
    cells_batch = 0 if cells.dim() == 2 else 2 * n

    def iterate(*, first: bool, supply: bool) -> None:
        kernels.iterate[(count, batch)](
            distance, parts, cells, q, level, p, highest, totals, value,
            n, tiles * tiles, cells_batch, problem.alpha, problem.beta, problem.gamma,
            1.0 / max(problem.sigma, 1e-6), 1.0 / problem.eps, problem.damping,
            FEATURES=bool(problem.alpha), LARGEST=largest, SPACE=bool(problem.beta), CENTRAL=bool(problem.gamma),
            SCALING=scaling, FIRST=first, SUPPLY=supply,
            BLOCK_T=next_power_of_2(tiles * tiles), BLOCK_N=block, ROWS=rows, STEPS=steps, num_warps=8,
        )  # fmt: skip

    for step in range(problem.iterations if problem.damping else 1):
        iterate(first=step == 0, supply=False)
        kernels.columns[(cdiv(n, 32), batch)](
            q, level, highest, totals, n, count,
            SCALING=scaling, BLOCK_P=next_power_of_2(count), BLOCK_N=32, num_warps=8,
        )  # fmt: skip
    if problem.supply:
        iterate(first=False, supply=True)
    kernels.finish[(batch,)](
        value if problem.supply else p, cells, importance, n, cells_batch, gamma or 0.0,
        STANDARDISE=gamma is not None, CENTRAL=bool(gamma), BLOCK_N=block, num_warps=8,
    )  # fmt: skip
