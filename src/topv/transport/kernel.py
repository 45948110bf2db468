r"""One Sinkhorn iteration on a stored kernel, in two ways.

With exponents X = -C / eps and potentials p, q as in ``sinkhorn.py``, an iteration needs the two log-mean-exps

.. math::
    r_i = \log \frac{1}{N} \sum_j e^{q_j + X_{ij}}, \qquad c_j = \log \frac{1}{N} \sum_i e^{p_i + X_{ij}}.

:class:`LogKernel` takes the largest exponent out of each sum first: right for any X, and N^2 exponentials per side.

:class:`ScalingKernel` evaluates K = exp(X) once, and a side is a product of K and a vector. Let all of X lie in
[-R, 0]. Then :math:`r_i - r_k \le \max_j (X_{ij} - X_{kj}) \le R`, likewise c, and since p = -lambda r with lambda <= 1
and q = -c, no two entries of a potential ever differ by more than R, whatever the iterations (but for log(N b), which
only makes terms smaller beside the largest). So with the largest entry
of the potential taken out, every factor lies in [e^-R, 1], and every product of two in [e^-2R, 1]: for R = 64
(:data:`SCALING_RANGE`) K is a normal number in float32 and the products are in float64. Nothing can underflow. K is
rounded once for all iterations, which is the same as moving the cost by 1e-7 eps, so the ranking of a nearly flat
problem is resolved better than by LogKernel, which rounds each time anew.

References:
    .. [1] G. Peyré, M. Cuturi. Computational Optimal Transport. 2019, section 4.4. arXiv:1803.00567.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .distance import slices

__all__ = [
    "CACHED_ENTRIES",
    "SCALING_RANGE",
    "Kernel",
    "LogKernel",
    "ScalingKernel",
    "bounded_",
    "exponents",
    "log_mean_exp",
    "vector_dtype",
]

CACHED_ENTRIES = 2**19
"""On a CPU, matrices are worked on this many entries at a time, so that passes over them stay in the cache."""

SCALING_RANGE = 64.0
"""R: the largest exponent for which K = exp(X) is stored as it is."""


def vector_dtype(device: torch.device) -> torch.dtype:
    """float64 for sums and potentials, except on Apple's devices, which have none."""
    return torch.float32 if device.type == "mps" else torch.float64


class Kernel(ABC):
    """exp(-C / eps) of B grids of N tokens."""

    batch: int
    n: int
    device: torch.device

    @abstractmethod
    def rows(self, q: Tensor) -> Tensor:
        """r of the module's docstring, (B, N)."""

    @abstractmethod
    def columns(self, p: Tensor) -> Tensor:
        """c of the module's docstring, (B, N)."""

    def iterate(self, damping: float, iterations: int, bonus: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """p and q after ``iterations`` pairs of updates, source then target; ``bonus`` is log(N b), (B, N)."""
        p = torch.zeros(self.batch, self.n, dtype=vector_dtype(self.device), device=self.device)
        q = torch.zeros_like(p)
        for _ in range(iterations if damping else 1):
            p, q = self.step(q, damping)
            if bonus is not None:
                q += bonus
        return p, q

    def step(self, q: Tensor, damping: float) -> tuple[Tensor, Tensor]:
        """One pair of updates from q, for uniform target weights."""
        p = self.rows(q).mul_(-damping) if damping else torch.zeros_like(q)
        return p, self.columns(p).neg_()

    def supply(self, p: Tensor, q: Tensor) -> Tensor:
        """N P 1, (B, N): what each source supplies over the even share 1/N."""
        return self.rows(q).add_(p).exp_()


class LogKernel(Kernel):
    """From the exponents X, (B, N, N), contiguous; keeps them, their transpose and one workspace."""

    def __init__(self, exponents: Tensor) -> None:
        self.batch, self.n, _ = exponents.shape
        self.device = exponents.device
        self.exponents = exponents
        self.across = exponents.transpose(1, 2).contiguous()  # so that both sides reduce along contiguous memory
        self.work = torch.empty_like(exponents)

    def rows(self, q: Tensor) -> Tensor:
        return log_mean_exp(self.exponents, q, self.work)

    def columns(self, p: Tensor) -> Tensor:
        return log_mean_exp(self.across, p, self.work)


class ScalingKernel(Kernel):
    """From exponents X in [-SCALING_RANGE, 0], (B, N, N), contiguous, overwritten; keeps K and its transpose."""

    def __init__(self, exponents: Tensor) -> None:
        self.batch, self.n, _ = exponents.shape
        self.device = exponents.device
        self.kernel = exponents.exp_()
        self.across = self.kernel.transpose(1, 2).contiguous()
        if self.device.type == "cpu":
            self.rows_at_once = max(1, CACHED_ENTRIES // (self.batch * self.n))
        else:
            self.rows_at_once = self.n
        self.work = torch.empty(
            self.batch, min(self.rows_at_once, self.n), self.n, dtype=vector_dtype(self.device), device=self.device
        )

    def rows(self, q: Tensor) -> Tensor:
        return self._log_mean(self.kernel, q)

    def columns(self, p: Tensor) -> Tensor:
        return self._log_mean(self.across, p)

    def _log_mean(self, kernel: Tensor, potential: Tensor) -> Tensor:
        largest = potential.amax(-1, keepdim=True)
        factors = (potential - largest).exp_()[:, None, :]
        mean = torch.empty_like(potential)
        for part in slices(self.n, self.rows_at_once):
            # Copied first: a product of two dtypes would convert the kernel into memory of its own.
            product = self.work[:, : part.stop - part.start].copy_(kernel[:, part]).mul_(factors)
            mean[:, part] = product.mean(-1)
        return mean.log_().add_(largest)


def log_mean_exp(exponents: Tensor, potential: Tensor, work: Tensor) -> Tensor:
    """log mean exp(exponents + potential) over the last axis; ``work`` may be ``exponents`` itself."""
    torch.add(exponents, potential[:, None, :].to(exponents.dtype), out=work)
    largest = work.amax(-1, keepdim=True)
    mean = work.sub_(largest).exp_().mean(-1, dtype=vector_dtype(exponents.device))
    return mean.log_().add_(largest[..., 0])


def exponents(cost: Tensor, eps: float) -> Tensor:
    """-C / eps, contiguous, in new memory, kept so far within range that adding potentials cannot overflow."""
    return bounded_(cost.clone(memory_format=torch.contiguous_format).mul_(-1.0 / eps))


def bounded_(exponents: Tensor) -> Tensor:
    """Clamp in place to an eighth of the float range."""
    limit = torch.finfo(exponents.dtype).max / 8
    return exponents.clamp_(-limit, limit)
