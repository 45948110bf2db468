"""Which backend solves a problem."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from .dense import MATRIX_BYTES, matrix_bytes
from .fused import why_not_fused
from .problem import Problem

__all__ = ["Backend", "choose"]

Backend = Literal["auto", "torch", "streaming", "fused"]


def choose(backend: Backend, source: Tensor, target: Tensor, problem: Problem, *, even: bool = True) -> Backend:
    """What "auto" stands for, or the backend asked for; see :func:`importance`. Depends on no values.

    ``even`` says whether every target weighs the same.

    Raises:
        ValueError: the name is not one of the four, or "fused" was asked for and cannot run; says why.
    """
    if backend not in get_args(Backend):
        known = ", ".join(repr(name) for name in get_args(Backend))
        raise ValueError(f"backend={backend!r}; expected one of {known}")
    if backend == "fused":
        obstacle = why_not_fused(source, target, problem)
        if obstacle is not None:
            raise ValueError(f"backend='fused' cannot run: {obstacle}; or leave it to backend='auto'")
    if backend != "auto":
        return backend
    # Explicitly on CUDA: the interpreter, in which any device would do, is for tests. A graph is traced through torch.
    fusable = even and source.device.type == "cuda" and not torch.compiler.is_compiling()
    if fusable and why_not_fused(source, target, problem) is None:
        return "fused"
    return "streaming" if matrix_bytes(source.shape[1]) > MATRIX_BYTES else "torch"
