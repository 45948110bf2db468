"""The contribution matrix behind TopV's choice, kept so that it can be looked at token by token."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

from .. import transport
from ..methods import TopV
from ..methods.base import Evidence

__all__ = ["MAX_TOKENS", "Contribution", "RecordingTopV"]

MAX_TOKENS = 2304
"""Largest grid whose matrix is kept: N x N float32 numbers, 20 MiB."""


@dataclass(frozen=True)
class Contribution:
    """The transport plan P of one grid of N tokens.

    Attributes:
        matrix: float32 (N, N) on the CPU: P_ij is what source token i contributes to target token j. Columns sum to the
            target's share b_j, which is 1/N.
    """

    matrix: torch.Tensor

    def serves(self, token: int) -> tuple[float, ...]:
        """The token's row over its sum: which targets it serves, as shares of what it contributes."""
        return _shares(self.matrix[token])

    def served_by(self, token: int) -> tuple[float, ...]:
        """The token's column over its sum: which sources serve it, as shares of what it needs."""
        return _shares(self.matrix[:, token])

    def demand(self, token: int) -> float:
        """What the token contributes in all, over the even share 1/N: above 1 it is needed more than most."""
        return float(self.matrix[token].sum() / self.matrix.sum() * len(self.matrix))


class RecordingTopV(TopV):
    """TopV that keeps the contribution matrix of every grid it ranks.

    Make it with `of`. It chooses what the method it is made from chooses.
    """

    contributions: dict[int, Contribution]
    """By the grid's number in its sample, for the latest prefill of one sample; grids above `MAX_TOKENS` are left out.
    """

    @classmethod
    def of(cls, method: TopV) -> RecordingTopV:
        """A recording copy of `method`."""
        copy = cls(**{field.name: getattr(method, field.name) for field in fields(method)})
        object.__setattr__(copy, "contributions", {})
        return copy

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        rows, columns = evidence.rows_and_columns
        if rows * columns <= MAX_TOKENS:
            for ordinal, matrix in zip(evidence.images, self._plan(evidence), strict=True):
                self.contributions[ordinal] = Contribution(matrix)
        return super().score(evidence, count)

    @torch.no_grad()
    def _plan(self, evidence: Evidence) -> torch.Tensor:
        """P of each grid, (G, N, N): the problem that `transport.importance` solves for this reading; for "coverage",
        which solves for no plan, the one that leaves all sources open at the same costs, under hard marginals."""
        source, target = self.problem(evidence)
        relaxed = self.importance == "relaxed"
        cost = transport.cost_matrix(
            source,
            target,
            evidence.coordinates,
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma if relaxed or self.importance == "coverage" else 0.0,
            sigma=self.sigma,
            normalize=self.normalize,
            scale=self.scale,
        )
        plan = transport.solve(
            cost,
            eps=self.eps,
            rho=self.rho if relaxed else math.inf,
            iterations=self.iterations,
        )
        return plan.matrix.float().cpu()


def _shares(values: torch.Tensor) -> tuple[float, ...]:
    total = values.sum()
    return tuple((values / total if total > 0 else values).tolist())
