r"""The solve for one large grid, in which nothing of size N x N ever exists.

A row of the kernel is all that the source update of its token needs, and once p_i is known, that row's share of every
column sum can be taken too. So one pass over blocks of rows does one whole iteration, X = -C / eps:

.. math::
    p_i \leftarrow -\lambda \log \frac{1}{N} \sum_j e^{q_j + X_{ij}}, \qquad
    m_j \leftarrow \max_i (p_i + X_{ij}), \quad z_j \leftarrow \sum_i e^{p_i + X_{ij} - m_j}, \qquad
    q_j = -(m_j + \log z_j - \log N)

with m and z kept up as rows come in: when a block raises m_j, z_j is scaled down by the difference (as in an online
softmax [1]_). Where C / eps is known to be small, K = exp(X) itself is summed instead, as in ``kernel.py``. Distances
are made anew in each pass, from tokens converted a block at a time. There is one pass for the scale of F, one per
iteration, and one for the row sums if they are asked for: about 5 N^2 D multiplications for 3 iterations, where keeping
the matrix would take N^2 D.

References:
    .. [1] M. Milakov, N. Gimelshein. Online normalizer calculation for softmax. arXiv:1805.02867.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .cost import central_distance, precision_for, spatial_distance_between
from .distance import Distances, slices
from .kernel import CACHED_ENTRIES, Kernel, bounded_, log_mean_exp, vector_dtype
from .problem import Problem

__all__ = ["streaming"]

ROW_ENTRIES = 2**22
"""Entries of the kernel in memory at a time, in whole rows: 16 MiB."""


def streaming(
    source: Tensor, target: Tensor, coordinates: Tensor, problem: Problem, bonus: Tensor | None = None
) -> Tensor:
    """See :class:`Problem`; ``bonus``, (B, N), is log(N b). One grid after the other, each within about 30 MiB
    whatever N and D, 50 MiB where most pairs are near, beyond vectors of length N and D."""
    batch, n, _ = source.shape
    device = source.device
    value = torch.empty(batch, n, dtype=vector_dtype(device), device=device)
    with torch.autocast(device.type, enabled=False):
        for grid in range(batch):
            cells = coordinates if coordinates.dim() == 2 else coordinates[grid]
            kernel = StreamedKernel(source[grid], target[grid], cells, problem)
            own = None if bonus is None else bonus[grid : grid + 1]
            p, q = kernel.iterate(problem.damping, problem.iterations, own)
            value[grid] = (kernel.supply(p, q) if problem.supply else p)[0]
    return value


class StreamedKernel(Kernel):
    """exp(-C / eps) of one grid, from its tokens (N, D) and cells (N, 2), made anew whenever it is read."""

    def __init__(self, source: Tensor, target: Tensor, cells: Tensor, problem: Problem) -> None:
        self.batch, self.n, self.device = 1, len(source), source.device
        self.problem, self.cells = problem, cells
        self.central = central_distance(cells).mul_(problem.gamma) if problem.gamma else None
        rows = min(self.n, max(1, ROW_ENTRIES // self.n))
        self.blocks = list(slices(self.n, rows))
        self.held = torch.empty(rows, self.n, dtype=torch.float32, device=self.device)
        # Within the block, as many rows at a time as stay in a CPU's cache.
        self.rows_at_once = max(1, CACHED_ENTRIES // self.n) if self.device.type == "cpu" else rows
        self.rows_at_once = min(self.rows_at_once, rows)
        self.sums: type[_LogSums] | type[_ScalingSums] = (
            _ScalingSums if problem.scaling_is_safe(self.device) else _LogSums
        )
        self.distances: Distances | None = None
        if problem.alpha:
            self.distances = Distances(
                source, target, normalize=problem.normalize, precision=precision_for(source, target)
            )
            self.factor = problem.alpha / self._whole(self.distances)

    def rows(self, q: Tensor) -> Tensor:
        received = torch.empty_like(q)
        sums = self.sums(q[0], self.rows_at_once)
        for place, held in self._read():
            received[0, place] = sums.rows(held)
        return received

    def columns(self, p: Tensor) -> Tensor:
        raise NotImplementedError("a streamed kernel takes both sides in one pass: step()")

    def step(self, q: Tensor, damping: float) -> tuple[Tensor, Tensor]:
        p = torch.zeros_like(q)
        sums = self.sums(q[0], self.rows_at_once)
        for place, held in self._read():
            if damping:
                p[0, place] = sums.rows(held).mul_(-damping)
            sums.add_to_columns(held, p[0, place])
        return p, sums.columns().neg_()[None]

    def _read(self) -> Iterator[tuple[slice, Tensor]]:
        """Where some rows are and what ``self.sums`` wants of them, (rows, N), in memory that is soon taken again."""
        for block in self.blocks:
            held = self.held[: block.stop - block.start]
            if self.distances is None:
                held.zero_()
            else:
                self.distances.write(block, held)
            for some in slices(len(held), self.rows_at_once):
                place, part = slice(block.start + some.start, block.start + some.stop), held[some]
                yield place, self.sums.prepare(self._exponents(place, part))

    def _exponents(self, place: slice, part: Tensor) -> Tensor:
        """Turn distances, (rows, N), into exponents -C / eps, in place."""
        if self.distances is not None:
            part.mul_(self.factor)
        if self.problem.beta:
            space = spatial_distance_between(self.cells[place], self.cells, sigma=self.problem.sigma)
            part.add_(space, alpha=self.problem.beta)
        if self.central is not None:
            part.add_(self.central[place, None])
        return part.mul_(-1.0 / self.problem.eps)

    def _whole(self, distances: Distances) -> Tensor:
        """The grid's largest or mean distance, or 1 if that is 0."""
        found = []
        for block in self.blocks:
            held = self.held[: block.stop - block.start]
            distances.write(block, held)
            if self.problem.scale == "max":
                found.append(held.amax())
            else:
                found.append(held.sum(1, dtype=vector_dtype(self.device)).sum())
        values = torch.stack(found)
        whole = values.amax() if self.problem.scale == "max" else values.sum() / self.n**2
        return torch.where(whole > 0, whole, 1.0).to(torch.float32)


class _LogSums:
    """Log-mean-exps of rows, and of columns whose rows come in pieces, for any exponents."""

    def __init__(self, q: Tensor, rows_at_once: int) -> None:
        self.q = q
        self.work = torch.empty(rows_at_once, len(q), dtype=torch.float32, device=q.device)
        self.largest = torch.full(q.shape, -torch.inf, dtype=torch.float32, device=q.device)
        self.total = torch.zeros_like(q)

    @staticmethod
    def prepare(exponents: Tensor) -> Tensor:
        return bounded_(exponents)

    def rows(self, held: Tensor) -> Tensor:
        return log_mean_exp(held[None], self.q[None], self.work[None, : len(held)])[0]

    def add_to_columns(self, held: Tensor, p: Tensor) -> None:
        """Overwrites ``held``."""
        exponents = held.add_(p[:, None].to(held.dtype))
        largest = torch.maximum(self.largest, exponents.amax(0))
        self.total *= torch.exp(self.largest - largest)
        self.total += exponents.sub_(largest).exp_().sum(0, dtype=self.total.dtype)
        self.largest = largest

    def columns(self) -> Tensor:
        return self.total.log().add_(self.largest).sub_(math.log(len(self.total)))


class _ScalingSums:
    """The same with K = exp(X) held instead of X, for exponents X in [-SCALING_RANGE, 0]; see ``kernel.py``."""

    def __init__(self, q: Tensor, rows_at_once: int) -> None:
        self.largest = q.amax()
        self.factors = (q - self.largest).exp_()
        self.work = torch.empty(rows_at_once, len(q), dtype=q.dtype, device=q.device)
        self.level = q.new_zeros(())
        self.empty = True
        self.total = torch.zeros_like(q)

    @staticmethod
    def prepare(exponents: Tensor) -> Tensor:
        return exponents.exp_()

    def rows(self, held: Tensor) -> Tensor:
        return self.work[: len(held)].copy_(held).mul_(self.factors).mean(-1).log_().add_(self.largest)

    def add_to_columns(self, held: Tensor, p: Tensor) -> None:
        if self.empty:  # no other p is further from this one than the range
            self.level, self.empty = p[0].clone(), False
        factors = (p - self.level).exp_()
        self.total += self.work[: len(held)].copy_(held).mul_(factors[:, None]).sum(0)

    def columns(self) -> Tensor:
        return (self.total / len(self.total)).log_().add_(self.level)
