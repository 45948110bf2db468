r"""Reading the importance of source tokens off a transport problem: three ways, none of them in the paper.

=========  ======================================  =======================================================
reading    problem and value                       what ranks high
=========  ======================================  =======================================================
relaxed    finite rho, cost with gamma E inside;   sources that replace others cheaply (cluster centres);
           the row sum of P                        at convergence it is a_i exp(-f_i / rho)
demand     rho = inf, a few iterations ending on   sources in demand beyond their share; fades as the
           the target side; the row sum of P       iterations converge, when every row sum is 1/N
potential  rho = inf; the source potential f       sources far from all else: their shadow price
=========  ======================================  =======================================================

The last two need not agree: on unrelated random sources and targets their correlation can vanish.

E is constant along a row of the cost, so hard source marginals cancel it exactly inside the solve (and a
potential would count it with the wrong sign: f takes gamma E up). Under "demand" and "potential" it therefore
stays out, and gamma E is subtracted from the importance, standardised within the grid so that gamma means the
same whatever the scale of the reading.

References:
    .. [1] TopV, arXiv:2503.18278.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from ._checks import require_coordinates, require_number
from .backend import Backend, choose
from .cost import Scale, central_distance, check_cost
from .dense import dense
from .fused import fused_importance, fused_or_none
from .kernel import vector_dtype
from .problem import Problem
from .sinkhorn import check_solver, check_target_weights, damping_of, solve
from .streaming import streaming

__all__ = [
    "Reading",
    "importance",
    "relaxed_row_sum",
    "row_sum",
    "source_potential",
    "standardise",
    "subtract_central",
]

Reading = Literal["relaxed", "demand", "potential"]


def relaxed_row_sum(
    cost: Tensor, *, eps: float, rho: float, iterations: int, target_weights: Tensor | None = None
) -> Tensor:
    """Reading (a): the mass each source supplies under a soft source marginal, (B, N), summing to 1.

    Args:
        cost: (B, N, N), all three factors act, so gamma E belongs inside.
        eps: as in :func:`solve`.
        rho: as in :func:`solve`, but finite.
        iterations: as in :func:`solve`.
        target_weights: as in :func:`solve`.

    Examples:
        >>> import torch
        >>> cost = torch.tensor([[[0.0, 0.1, 0.9], [0.1, 0.0, 0.9], [0.9, 0.9, 0.0]]])
        >>> relaxed_row_sum(cost, eps=0.5, rho=0.1, iterations=10)
        tensor([[0.3457, 0.3457, 0.3086]])
    """
    _require_finite(rho)
    return solve(cost, eps=eps, rho=rho, iterations=iterations, target_weights=target_weights).row_sums()


def row_sum(cost: Tensor, *, eps: float, iterations: int) -> Tensor:
    """Reading (b): the demand on each source under hard marginals after few iterations, (B, N), summing to 1.

    Examples:
        >>> import torch
        >>> cost = torch.tensor([[[0.0, 0.1, 0.9], [0.1, 0.0, 0.9], [0.9, 0.9, 0.0]]])
        >>> row_sum(cost, eps=0.5, iterations=1)
        tensor([[0.3238, 0.3238, 0.3524]])
    """
    return solve(cost, eps=eps, iterations=iterations).row_sums()


def source_potential(cost: Tensor, *, eps: float, iterations: int) -> Tensor:
    """Reading (c): the shadow price of each source under hard marginals, (B, N), up to a constant per grid.

    Examples:
        >>> import torch
        >>> cost = torch.tensor([[[0.0, 0.1, 0.9], [0.1, 0.0, 0.9], [0.9, 0.9, 0.0]]])
        >>> price = source_potential(cost, eps=0.5, iterations=3)
        >>> bool(price[0, 2] > price[0, 0])
        True
    """
    plan = solve(cost, eps=eps, iterations=iterations)
    return (plan.log_source * plan.eps).to(plan.cost.dtype)


def _require_finite(rho: float) -> None:
    if rho == math.inf:
        raise ValueError(
            "rho=inf; expected a finite rho of at least 0, such as 0.1: hard source marginals make every row "
            "sum equal at convergence. For those, use the reading 'demand' or 'potential'"
        )


@torch.no_grad()
def importance(
    reading: Reading,
    source: Tensor,
    target: Tensor,
    coordinates: Tensor,
    *,
    alpha: float,
    beta: float,
    gamma: float,
    sigma: float,
    eps: float,
    rho: float,
    iterations: int,
    normalize: bool = False,
    scale: Scale = "max",
    target_weights: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    r"""Importance of each source token of B grids; higher is kept first.

    Args:
        reading: see the table at the top of this module.
        source: (B, N, D).
        target: as `source`.
        coordinates: (N, 2) or (B, N, 2).
        alpha: as in :func:`cost_matrix`.
        beta: as in :func:`cost_matrix`.
        gamma: as in :func:`cost_matrix`. Under "demand" and "potential" gamma E is subtracted from the standardised
            importance instead of entering the cost.
        sigma: as in :func:`cost_matrix`.
        normalize: as in :func:`cost_matrix`.
        scale: as in :func:`cost_matrix`.
        eps: as in :func:`solve`.
        iterations: as in :func:`solve`.
        rho: weight of the source marginal under "relaxed", where it must be finite. The other two are defined by hard
            marginals and do not use it.
        target_weights: (N,) or (B, N), the target marginal b, as in :func:`solve`. Not for the "fused" backend, which
            "auto" then leaves alone.
        backend: how it is computed; the values agree to float32. "torch" keeps each grid's N x N matrices, "streaming"
            keeps none (for large grids: five times the multiplications), "fused" is a few Triton kernels on a CUDA
            device and raises where it cannot run. "auto" is "fused" where it can run, else "torch" as long as the
            matrices take at most 64 MiB (N <= 2,364), else "streaming".

    Returns:
        (B, N), float32: "relaxed": row sums, adding up to 1 per grid. Otherwise: mean 0 and standard deviation 1 per
        grid, less gamma E.

    Examples:
        Eight tokens alike and one apart: the one apart is the most important, except under the relaxed reading.

        >>> import torch
        >>> tokens = torch.zeros(1, 9, 4)
        >>> tokens[0, 2] = 1.0
        >>> cells = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        >>> weights = dict(alpha=1.0, beta=0.0, gamma=0.0, sigma=3.0, eps=0.1, rho=0.1, iterations=3)
        >>> for reading in ("demand", "potential", "relaxed"):
        ...     value = importance(reading, tokens, tokens, cells, **weights)
        ...     print(reading, "highest" if value.argmax() == 2 else "lowest" if value.argmin() == 2 else "-")
        demand highest
        potential highest
        relaxed lowest
    """
    if reading not in get_args(Reading):
        known = ", ".join(repr(name) for name in get_args(Reading))
        raise ValueError(f"reading={reading!r}; expected one of {known}")
    relaxed = reading == "relaxed"
    if relaxed:
        _require_finite(rho)
    require_number("gamma", gamma, "a finite weight of at least 0", low=0.0, strict=False, inf=False)
    check_cost(source, target, coordinates, alpha=alpha, beta=beta, gamma=gamma, sigma=sigma, scale=scale)
    check_solver(eps, rho, iterations)
    problem = Problem(
        alpha=alpha,
        beta=beta,
        gamma=gamma if relaxed else 0.0,
        sigma=sigma,
        normalize=normalize,
        scale=scale,
        eps=eps,
        damping=damping_of(eps, rho if relaxed else math.inf),
        iterations=iterations,
        supply=reading != "potential",
    )
    bonus = None
    if target_weights is not None:
        check_target_weights(target_weights, source.shape[0], source.shape[1])
        weights = target_weights.to(device=source.device, dtype=vector_dtype(source.device))
        bonus = weights.expand(source.shape[:2]).log() + math.log(source.shape[1])
        if backend == "fused":
            raise ValueError("backend='fused' knows even target marginals alone; leave target_weights out, or 'auto'")
    chosen = choose(backend, source, target, problem, even=bonus is None)
    if chosen == "fused":
        run = fused_importance if backend == "fused" else fused_or_none
        value = run(source, target, coordinates, problem, gamma=None if relaxed else gamma)
        if value is not None:
            return value
    value = (streaming if chosen == "streaming" else dense)(source, target, coordinates, problem, bonus)
    if relaxed:
        return (value / value.shape[-1]).to(torch.float32)
    return subtract_central(value, coordinates, gamma=gamma).to(torch.float32)


@torch.no_grad()
def standardise(value: Tensor) -> Tensor:
    r"""Mean 0 and standard deviation 1 within each grid; equal values stay equal.

    A grid whose values agree to rounding (1e-6 of their size, 5e-8 in float64) has nothing to rank and gives
    zeros, rather than rounding noise blown up to size 1.

    Args:
        value: (B, N).

    Returns:
        (B, N), the dtype of ``value``.

    Examples:
        >>> import torch
        >>> standardise(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
        tensor([[-1.2247,  0.0000,  1.2247],
                [ 0.0000,  0.0000,  0.0000]])
    """
    size = value.abs().amax(-1, keepdim=True)
    centred = value - value.mean(-1, keepdim=True)
    # Over the largest deviation first, so that squares neither overflow nor vanish.
    largest = centred.abs().amax(-1, keepdim=True)
    flat = largest <= (5e-8 if value.dtype == torch.float64 else 1e-6) * size
    centred = centred / torch.where(flat, 1.0, largest)
    spread = centred.square().mean(-1, keepdim=True).sqrt()
    return torch.where(flat, 0.0, centred / torch.where(flat, 1.0, spread))


@torch.no_grad()
def subtract_central(value: Tensor, coordinates: Tensor, *, gamma: float) -> Tensor:
    r"""Standardise importance within each grid and take gamma E off: the third factor, outside the solve.

    Args:
        value: (B, N).
        coordinates: (N, 2) or (B, N, 2).
        gamma: weight of E, at least 0.

    Returns:
        (B, N), the dtype of ``value``.

    Examples:
        >>> import torch
        >>> cells = torch.tensor([[0, 0], [0, 1], [0, 2]])
        >>> subtract_central(torch.tensor([[1.0, 1.0, 1.0]]), cells, gamma=0.5)
        tensor([[-0.5000,  0.0000, -0.5000]])
    """
    require_coordinates(coordinates, value.shape[0], value.shape[-1])
    require_number("gamma", gamma, "a finite weight of at least 0", low=0.0, strict=False, inf=False)
    value = standardise(value)
    if gamma:
        value = value - central_distance(coordinates).to(value.dtype).mul_(gamma)
    return value
