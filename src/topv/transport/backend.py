"""Which backend solves a problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

from .dense import MATRIX_BYTES, dense, matrix_bytes
from .problem import Problem
from .streaming import streaming

__all__ = ["Backend", "solver"]

Backend = Literal["auto", "torch", "streaming", "fused"]

Solver = Callable[[Tensor, Tensor, Tensor, Problem], Tensor]


def solver(backend: Backend, source: Tensor, problem: Problem) -> Solver:
    """The function for ``backend``; see :func:`importance`. Depends on shapes and settings, never on values.

    Raises
    ------
    ValueError
        The name is not one of the four, or "fused" was asked for and cannot run.
    """
    if backend not in get_args(Backend):
        known = ", ".join(repr(name) for name in get_args(Backend))
        raise ValueError(f"backend={backend!r}; expected one of {known}")
    if backend == "torch":
        return dense
    if backend == "streaming" or matrix_bytes(source.shape[1]) > MATRIX_BYTES:
        return streaming
    return dense
