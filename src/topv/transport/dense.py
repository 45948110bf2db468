"""The solve with each grid's N x N matrices in memory: the reference backend."""

from __future__ import annotations

import torch
from torch import Tensor

from .cost import central_distance, spatial_distance, write_distances
from .distance import slices
from .kernel import CACHED_ENTRIES, LogKernel, ScalingKernel, bounded_, vector_dtype
from .problem import Problem

__all__ = ["MATRIX_BYTES", "dense", "matrix_bytes"]

MATRIX_BYTES = 64 * 2**20
"""What N x N matrices may take before the solve streams instead: up to 2,364 tokens in a grid."""


def matrix_bytes(n: int) -> int:
    """Bytes of the N x N matrices that one grid needs at a time: exponents, their transpose, and a workspace."""
    return 3 * 4 * n * n


def dense(source: Tensor, target: Tensor, coordinates: Tensor, problem: Problem, bonus: Tensor | None = None) -> Tensor:
    """See :class:`Problem`; ``bonus``, (B, N), is log(N b). Memory beyond the inputs does not grow with the number of
    grids: a few are solved at a time, on a CPU as many as stay in its cache."""
    batch, n, _ = source.shape
    device = source.device
    at_once = max(1, CACHED_ENTRIES // (n * n) if device.type == "cpu" else MATRIX_BYTES // matrix_bytes(n))
    value = torch.empty(batch, n, dtype=vector_dtype(device), device=device)
    with torch.autocast(device.type, enabled=False):
        shared = None
        if problem.beta and coordinates.dim() == 2:
            shared = spatial_distance(coordinates, sigma=problem.sigma)
        for part in slices(batch, at_once):
            cells = coordinates if coordinates.dim() == 2 else coordinates[part]
            own = None if bonus is None else bonus[part]
            value[part] = _solve(source[part], target[part], cells, shared, problem, own)
    return value


def _solve(
    source: Tensor, target: Tensor, cells: Tensor, space: Tensor | None, problem: Problem, bonus: Tensor | None
) -> Tensor:
    """The value of a few grids; ``space`` is S where all of them share it."""
    batch, n, _ = source.shape
    cost = torch.empty(batch, n, n, dtype=torch.float32, device=source.device)
    _write_features(cost, source, target, problem)
    if problem.beta:
        cost.add_(spatial_distance(cells, sigma=problem.sigma) if space is None else space, alpha=problem.beta)
    if problem.gamma:
        cost.add_(central_distance(cells)[..., :, None], alpha=problem.gamma)
    exponents = cost.mul_(-1.0 / problem.eps)
    kernel = ScalingKernel(exponents) if problem.scaling_is_safe(source.device) else LogKernel(bounded_(exponents))
    p, q = kernel.iterate(problem.damping, problem.iterations, bonus)
    return kernel.supply(p, q) if problem.supply else p


def _write_features(cost: Tensor, source: Tensor, target: Tensor, problem: Problem) -> None:
    """alpha F of each grid."""
    if not problem.alpha:
        cost.zero_()
        return
    for grid, matrix in enumerate(cost):
        whole = write_distances(source[grid], target[grid], matrix, normalize=problem.normalize, scale=problem.scale)
        matrix.mul_(problem.alpha / whole)
