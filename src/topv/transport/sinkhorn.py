r"""Entropic transport with a relaxed or hard source marginal, by Sinkhorn's scaling in the log domain.

For a cost :math:`C \in \mathbb{R}^{N \times N}` (rows i = sources, columns j = targets):

.. math::
    \min_{P \ge 0} \ \langle P, C \rangle - \varepsilon H(P) + \rho \, \mathrm{KL}(P \mathbf{1} \,|\, a)
    \quad \text{subject to} \quad P^\top \mathbf{1} = b

with :math:`H(P) = -\sum_{ij} P_{ij} (\log P_{ij} - 1)`, a = 1/N, b = 1/N unless given, and :math:`\rho =
\infty` for the balanced problem (:math:`P \mathbf{1} = a` too). The solution is P = diag(u) K diag(v), K =
exp(-C / eps), by

.. math::
    u \leftarrow \left( \frac{a}{K v} \right)^{\rho / (\rho + \varepsilon)}, \qquad v \leftarrow
    \frac{b}{K^\top u}

from v = 1, the target side last. The order matters: after the last update the columns of P sum to b exactly,
and the rows carry what importance is read from. Ending on the source side of the balanced problem would make
every row sum 1/N.

Numerics. Write L = log N, log u = p + c_u and log v = q + c_v with c_u, c_v plain numbers and p, q per token.
Each update is then a log-mean-exp,

.. math::
    p_i \leftarrow -\lambda \log \frac{1}{N} \sum_j e^{q_j - C_{ij} / \varepsilon}, \qquad
    q_j \leftarrow \log (N b_j) - \log \frac{1}{N} \sum_i e^{p_i - C_{ij} / \varepsilon},
    \qquad \lambda = \frac{\rho}{\rho + \varepsilon}

and c_u, c_v carry every log N, which would otherwise swallow digits that rank the tokens. The largest
exponent of each sum is subtracted first, so each sum holds a term 1: nothing can underflow to log 0 or
overflow, whatever eps and finite C. Matrices are float32, but sums over a row and the vectors p, q are
float64 (where the device has it), at no cost: a rounding of an entry averages out over its row, a rounding of
p_i does not. On a nearly flat problem (random tokens, N = 576, 3 iterations) the row sums spread by 1e-7,
which float32 vectors drown in noise of 2e-7 and these resolve (5e-9).

References:
    .. [1] TopV: Compatible Token Pruning with Inference Time Optimization for Fast and Low-Memory Multimodal
       Vision Language Model. CVPR 2025, arXiv:2503.18278.
    .. [2] M. Cuturi. Sinkhorn Distances: Lightspeed Computation of Optimal Transport. NIPS 2013.
    .. [3] L. Chizat, G. Peyré, B. Schmitzer, F.-X. Vialard. Scaling Algorithms for Unbalanced Transport Problems.
       Mathematics of Computation 2018, arXiv:1607.05816.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral

import torch
from torch import Tensor

from ._checks import require_number
from .kernel import CACHED_ENTRIES, LogKernel, exponents, log_mean_exp, vector_dtype

__all__ = ["TransportPlan", "solve"]


@dataclass(frozen=True, eq=False, repr=False)
class TransportPlan:
    r"""Solution of B transport problems: two potentials per problem, and the plan itself when asked for.

    Holds a reference to the cost, not a copy (a float16 or bfloat16 cost excepted): do not write into it
    before ``.matrix`` or ``.row_sums()`` is taken.

    Attributes:
        cost: (B, N, N).
        eps: the entropic regularisation, in the units of the cost.
        source_potential: (B, N), f = eps log u.
        target_potential: (B, N), g = eps log v.
        target_weights: (B, N), b; None means 1/N.
    """

    cost: Tensor
    eps: float
    target_weights: Tensor | None
    log_source: Tensor
    """p = log u - c_u, (B, N)."""
    log_target: Tensor
    """q = log v - c_v, (B, N)."""
    source_shift: float
    """c_u; and c_v = -2 log N - c_u."""

    def __repr__(self) -> str:
        batch, n, _ = self.cost.shape
        return f"TransportPlan(B={batch}, N={n}, eps={self.eps}, dtype={self.cost.dtype})"

    @cached_property
    def source_potential(self) -> Tensor:
        """f = eps log u, (B, N): in the balanced problem, the shadow price of each source."""
        return ((self.log_source + self.source_shift) * self.eps).to(self.cost.dtype)

    @cached_property
    def target_potential(self) -> Tensor:
        """g = eps log v, (B, N)."""
        n = self.cost.shape[-1]
        return ((self.log_target + (-2.0 * math.log(n) - self.source_shift)) * self.eps).to(self.cost.dtype)

    @cached_property
    @torch.no_grad()
    def matrix(self) -> Tensor:
        r"""P, (B, N, N): rows are sources, columns are targets and sum to b.

        Evaluated on first use as :math:`P_{ij} = b_j \, \mathrm{softmax}_i(\log u_i - C_{ij} / \varepsilon)`,
        which is diag(u) K diag(v) after a target update, and sums to b however large C / eps is."""
        n = self.cost.shape[-1]
        matrix = torch.empty_like(self.cost, memory_format=torch.contiguous_format)
        for part in _parts(self.cost):
            logits = exponents(self.cost[part], self.eps).transpose(1, 2) + self.log_source[part, None, :].to(
                self.cost.dtype
            )
            columns = torch.softmax(logits.contiguous(), dim=-1)
            if self.target_weights is None:
                columns /= n
            else:
                columns *= self.target_weights[part, :, None]
            matrix[part] = columns.transpose(1, 2)
        return matrix

    @torch.no_grad()
    def row_sums(self) -> Tensor:
        r"""P 1, (B, N): the mass each source supplies, without building P.

        :math:`u_i (K v)_i = \frac{1}{N} \exp(p_i + \log \frac{1}{N} \sum_j e^{q_j - C_{ij} / \varepsilon})`.
        """
        return (self.relative_supply() / self.cost.shape[-1]).to(self.cost.dtype)

    @torch.no_grad()
    def relative_supply(self) -> Tensor:
        """N P 1, (B, N): supply over the even share 1/N, in the (higher) precision of the potentials."""
        supply = torch.empty_like(self.log_source)
        for part in _parts(self.cost):
            work = exponents(self.cost[part], self.eps)
            received = log_mean_exp(work, self.log_target[part], work)
            supply[part] = received.add_(self.log_source[part]).exp_()
        return supply


@torch.no_grad()
def solve(
    cost: Tensor,
    *,
    eps: float,
    rho: float = math.inf,
    iterations: int,
    target_weights: Tensor | None = None,
) -> TransportPlan:
    r"""Solve B transport problems by a fixed number of Sinkhorn iterations.

    Args:
        cost: (B, N, N), rows are sources, columns are targets. Finite (:func:`check_finite`). float64 is solved in
            float64; every other floating dtype in float32. Values that differ by less than one part in 10^7 of the
            largest are equal here.
        eps: entropic regularisation, above 0, in the units of the cost. Smaller is sharper and needs more iterations.
        rho: weight of the source marginal, 0 to infinity. ``math.inf`` enforces it (balanced); 0 drops it, and then
            :math:`P_{ij} = b_j \, \mathrm{softmax}_i(-C_{ij} / \varepsilon)` whatever the iterations.
        iterations: pairs of updates, source then target, at least 1. There is no stopping rule: it would make the host
            wait.
        target_weights: (N,) or (B, N), b: non-negative with a positive sum, not checked, since that too would wait;
            default 1/N each. For the balanced problem it must sum to 1, or the marginals contradict each other and no
            iteration converges.

    Returns:
        TransportPlan: ``.matrix`` (B, N, N), evaluated when first used; ``.source_potential`` and ``.target_potential``
        (B, N); ``.row_sums()`` (B, N).

    Notes:
        Choosing: the *balanced* problem after few iterations ranks sources by demand beyond their share; its source
        potential ranks them by how hard they are to replace, at any number of iterations; the *relaxed* problem prefers
        sources that are cheap. :func:`importance` reads all three.

        A grid's result is bitwise independent of the grids it is solved with. Nothing is differentiated.

    Examples:
        >>> import torch
        >>> cost = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
        >>> plan = solve(cost, eps=0.5, iterations=3)
        >>> plan.matrix
        tensor([[[0.4404, 0.0596],
                 [0.0596, 0.4404]]])
        >>> plan.matrix.sum(1), plan.row_sums()
        (tensor([[0.5000, 0.5000]]), tensor([[0.5000, 0.5000]]))
    """
    _check(cost, target_weights)
    check_solver(eps, rho, iterations)
    cost = cost if cost.dtype == torch.float64 else cost.to(torch.float32)
    batch, n, _ = cost.shape
    damping = damping_of(eps, rho)
    log_n = math.log(n)
    bonus = None
    if target_weights is not None:
        target_weights = target_weights.to(cost).expand(batch, n)
        bonus = target_weights.to(vector_dtype(cost.device)).log() + log_n

    p = torch.empty(batch, n, dtype=vector_dtype(cost.device), device=cost.device)
    q = torch.empty_like(p)
    with torch.autocast(cost.device.type, enabled=False):
        for part in _parts(cost):
            kernel = LogKernel(exponents(cost[part], eps))
            p[part], q[part] = kernel.iterate(damping, iterations, None if bonus is None else bonus[part])
    # c_u <- damping * (-2 log N - c_v) from c_v = 0, then c_v <- -2 log N - c_u: so c_u <- damping * c_u.
    shift = -2.0 * log_n * damping ** int(iterations)
    return TransportPlan(cost, float(eps), target_weights, p, q, shift)


def _parts(cost: Tensor) -> list[slice]:
    """How to cut a batch: whole on an accelerator, and on a CPU into pieces that stay in its cache."""
    batch, n, _ = cost.shape
    size = max(1, CACHED_ENTRIES // (n * n)) if cost.device.type == "cpu" else batch
    return [slice(start, start + size) for start in range(0, batch, size)]


def damping_of(eps: float, rho: float) -> float:
    """lambda = rho / (rho + eps)."""
    return 1.0 if math.isinf(rho) else rho / (rho + eps)


def check_solver(eps: float, rho: float, iterations: int) -> None:
    """Raise on settings that :func:`solve` does not take."""
    require_number("eps", eps, "a finite number above 0, such as 0.1", low=0.0, strict=True, inf=False)
    require_number(
        "rho",
        rho,
        "a number of at least 0: math.inf for hard source marginals, 0 for none",
        low=0.0,
        strict=False,
        inf=True,
    )
    if isinstance(iterations, bool) or not isinstance(iterations, Integral) or iterations < 1:
        raise ValueError(f"iterations={iterations!r}; expected an int of at least 1, such as 3")


def _check(cost: Tensor, target_weights: Tensor | None) -> None:
    shape = tuple(cost.shape)
    if cost.dim() != 3 or shape[1] != shape[2] or 0 in shape:
        raise ValueError(
            f"cost has shape {shape}; expected a non-empty (B, N, N): one square matrix per grid, rows = "
            "sources (for a single matrix, pass cost[None])"
        )
    if not cost.is_floating_point():
        raise ValueError(f"cost is {cost.dtype}; expected a floating dtype: pass cost.float()")
    if target_weights is not None:
        check_target_weights(target_weights, shape[0], shape[2])


def check_target_weights(weights: Tensor, batch: int, n: int) -> None:
    """Raise ``ValueError`` unless there is one weight per target, shared or for each grid."""
    if tuple(weights.shape) not in {(n,), (batch, n)}:
        raise ValueError(
            f"target_weights has shape {tuple(weights.shape)}; expected ({n},) or ({batch}, {n}): one weight per target"
        )
