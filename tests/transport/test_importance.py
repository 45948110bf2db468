"""What each reading ranks, and what each factor of the cost does in it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from topv.transport import (
    central_distance,
    cost_matrix,
    importance,
    relaxed_row_sum,
    row_sum,
    solve,
    source_potential,
    standardise,
    subtract_central,
)

READINGS = ["relaxed", "demand", "potential"]
HARD = ["demand", "potential"]
DEFAULTS: dict[str, Any] = {
    "alpha": 1.0,
    "beta": 0.3,
    "gamma": 0.0,
    "sigma": 3.0,
    "eps": 0.1,
    "rho": 0.1,
    "iterations": 3,
}
SIDE = 8
CELLS = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE))


def tokens(batch: int = 2, width: int = 8, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(batch, SIDE * SIDE, width, generator=generator)
    return source, source + 0.3 * torch.randn(source.shape, generator=generator)


def random_cost(n: int = 144) -> Tensor:
    """Random tokens against random tokens, float64: the problem the spread of (b) is quoted for."""
    generator = torch.Generator().manual_seed(0)
    places = torch.cartesian_prod(torch.arange(12), torch.arange(12))
    source, target = (torch.randn(1, n, 4, generator=generator) for _ in range(2))
    return cost_matrix(source, target, places, alpha=1, beta=0, gamma=0, sigma=3).double()


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


def test_each_reading_is_what_it_says() -> None:
    source, target = tokens()
    settings = {**DEFAULTS, "gamma": 0.4}
    weights = {name: settings[name] for name in ("alpha", "beta", "sigma")}
    with_central = cost_matrix(source, target, CELLS, gamma=0.4, **weights)
    without = cost_matrix(source, target, CELLS, gamma=0.0, **weights)
    centre = central_distance(CELLS)

    plan = solve(with_central, eps=0.1, rho=0.1, iterations=3).matrix
    torch.testing.assert_close(importance("relaxed", source, target, CELLS, **settings), plan.sum(2))

    plan = solve(without.double(), eps=0.1, iterations=3)
    for reading, raw in [("demand", plan.matrix.sum(2)), ("potential", plan.source_potential)]:
        scaled = (raw - raw.mean(1, keepdim=True)) / raw.std(1, keepdim=True, correction=0)
        value = importance(reading, source, target, CELLS, **settings)  # type: ignore[arg-type]
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), scaled - 0.4 * centre.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("iterations", [1, 3, 50])
def test_hard_source_marginals_cancel_the_central_factor_exactly(iterations: int) -> None:
    cost = random_cost(144)
    centre = torch.rand(1, 144, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain = solve(cost, eps=0.1, iterations=iterations)
    tilted = solve(cost + 0.7 * centre, eps=0.1, iterations=iterations)
    torch.testing.assert_close(tilted.matrix, plain.matrix, rtol=1e-10, atol=0)
    torch.testing.assert_close(tilted.row_sums(), plain.row_sums(), rtol=1e-10, atol=0)
    # The potential takes it up whole, with a plus: subtracting gamma E is undone, and would have the wrong sign.
    torch.testing.assert_close(
        tilted.source_potential - plain.source_potential, 0.7 * centre[..., 0], rtol=1e-9, atol=1e-9
    )


def test_a_soft_source_marginal_feels_the_central_factor() -> None:
    cost = random_cost(144)
    centre = torch.rand(1, 144, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for rho in (0.0, 0.1, 1.0):
        plain = relaxed_row_sum(cost, eps=0.1, rho=rho, iterations=200)
        tilted = relaxed_row_sum(cost + 0.2 * centre, eps=0.1, rho=rho, iterations=200)
        assert correlation((tilted / plain).log(), centre) < -0.5, "far from the centre must lose"


@pytest.mark.parametrize("reading", READINGS)
def test_gamma_lowers_the_rim_in_every_reading(reading: Any) -> None:
    source, target = tokens(4)
    centre = central_distance(CELLS)
    change = importance(reading, source, target, CELLS, **{**DEFAULTS, "gamma": 0.5}) - importance(
        reading, source, target, CELLS, **DEFAULTS
    )
    assert correlation(change, centre.expand(4, -1)) < -0.5
    if reading in HARD:
        torch.testing.assert_close(change, (-0.5 * centre).expand(4, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("factor", ["alpha", "beta"])
def test_features_and_space_act_in_every_reading(reading: Any, factor: str) -> None:
    source, target = tokens()
    off = importance(reading, source, target, CELLS, **{**DEFAULTS, factor: 0.0})
    on = importance(reading, source, target, CELLS, **{**DEFAULTS, factor: 1.0})
    assert (standardise(on) - standardise(off)).abs().max() > 0.1


@pytest.mark.parametrize("reading", READINGS)
def test_with_space_alone_importance_follows_the_symmetry_of_the_grid(reading: Any) -> None:
    source, target = tokens()
    value = importance(reading, source, target, CELLS, **{**DEFAULTS, "alpha": 0.0, "beta": 1.0})
    value = standardise(value).view(2, SIDE, SIDE)
    torch.testing.assert_close(value, value.flip(1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(value, value.transpose(1, 2), rtol=1e-3, atol=1e-3)
    assert torch.equal(value[0], value[1])


def test_the_demand_fades_as_the_iterations_converge() -> None:
    """The orders of magnitude behind reading (b): ranked after 1 or 3 iterations, gone after 200."""
    spread = []
    for iterations in (1, 3, 10, 200):
        value = row_sum(random_cost(), eps=0.1, iterations=iterations)
        spread.append(float(value.std() / value.mean()))
    assert 1e-2 < spread[0] < 1.0
    assert 1e-4 < spread[1] < 0.3 * spread[0]
    assert 1e-9 < spread[2] < 0.03 * spread[1]
    assert spread[3] < 1e-14


def test_ending_on_the_source_side_would_rank_nothing() -> None:
    """Why the target update is last: one more source update makes every row sum 1/N, whatever came before."""
    cost = random_cost()
    n = cost.shape[-1]
    for iterations in (1, 3):
        plan = solve(cost, eps=0.1, iterations=iterations)
        v = (plan.target_potential / 0.1).exp()
        kernel = torch.exp(-cost / 0.1)
        u = (1 / n) / (kernel @ v[:, :, None])[..., 0]
        rows = (u[:, :, None] * kernel * v[:, None, :]).sum(2)
        torch.testing.assert_close(rows, torch.full_like(rows, 1 / n), rtol=1e-12, atol=0)
        assert plan.row_sums().std() > 1e-5 / n


@pytest.mark.parametrize("iterations", [1, 3])
def test_demand_in_float32_ranks_as_in_float64(iterations: int) -> None:
    cost = random_cost()
    fine = row_sum(cost, eps=0.1, iterations=iterations)[0]
    coarse = row_sum(cost.float(), eps=0.1, iterations=iterations)[0].double()
    torch.testing.assert_close(coarse, fine, rtol=3e-7, atol=0)
    assert set(fine.topk(72).indices.tolist()) == set(coarse.topk(72).indices.tolist())


def test_demand_is_resolved_on_a_nearly_flat_problem() -> None:
    """Random tokens in 64 dimensions are all equally far apart: a spread of 1e-6, ten times float32's last digit."""
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(1, 64, 64, generator=generator) for _ in range(2))
    cost = cost_matrix(source, target, CELLS, alpha=1, beta=0, gamma=0, sigma=3)
    settings = {**DEFAULTS, "beta": 0.0}
    value = importance("demand", source, target, CELLS, **settings)
    fine = standardise(row_sum(cost.double(), eps=0.1, iterations=3))
    assert row_sum(cost.double(), eps=0.1, iterations=3).std() * 64 < 1e-5
    torch.testing.assert_close(value.double(), fine, rtol=0, atol=0.03)


def test_early_demand_and_the_potential_agree_where_tokens_have_structure() -> None:
    """Not in general: between unrelated random sources and targets the two readings can be uncorrelated."""
    source, target = tokens(1)
    cost = cost_matrix(source, target, CELLS, alpha=1, beta=0, gamma=0, sigma=3).double()
    demand = row_sum(cost, eps=0.1, iterations=1)
    price = source_potential(cost, eps=0.1, iterations=300)
    assert correlation(demand.log(), price) > 0.6


def test_at_convergence_the_relaxed_row_sum_is_its_potential() -> None:
    cost, rho = random_cost(), 0.2
    plan = solve(cost, eps=0.1, rho=rho, iterations=500)
    expected = torch.exp(-plan.source_potential / rho) / cost.shape[-1]
    torch.testing.assert_close(plan.row_sums(), expected, rtol=1e-9, atol=0)


def test_the_odd_token_out_is_kept_by_the_hard_readings_and_not_by_the_relaxed() -> None:
    source = 0.05 * torch.randn(1, 64, 8, generator=torch.Generator().manual_seed(0))
    source[0, 27] += 1.0
    rank = {}
    for reading in READINGS:
        value = importance(reading, source, source, CELLS, **{**DEFAULTS, "beta": 0.0})  # type: ignore[arg-type]
        rank[reading] = value[0].argsort(descending=True).tolist().index(27)
    assert rank["demand"] == 0
    assert rank["potential"] == 0
    assert rank["relaxed"] >= 32, "upside down: the token nobody can replace is in the half to prune"


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_tokens(reading: Any, dtype: torch.dtype) -> None:
    source, target = (x.to(dtype) for x in tokens())
    value = importance(reading, source, target, CELLS, **DEFAULTS)
    assert value.dtype == torch.float32
    assert torch.equal(value, importance(reading, source.float(), target.float(), CELLS, **DEFAULTS))


@pytest.mark.parametrize("reading", READINGS)
def test_grids_together_equal_grids_alone_bitwise(reading: Any) -> None:
    source, target = tokens(7)
    settings = {**DEFAULTS, "gamma": 0.2}
    together = importance(reading, source, target, CELLS, **settings)
    for grid in range(7):
        one = slice(grid, grid + 1)
        alone = importance(reading, source[one].clone(), target[one].clone(), CELLS, **settings)
        assert torch.equal(alone[0], together[grid])


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("eps", [1e-4, 1e3])
def test_finite_at_extreme_eps_and_on_identical_tokens(reading: Any, eps: float) -> None:
    source, target = tokens()
    same = torch.ones_like(source)
    for s, t in [(source, target), (same, same)]:
        value = importance(reading, s, t, CELLS, **{**DEFAULTS, "eps": eps, "gamma": 0.1})
        assert value.isfinite().all()


@pytest.mark.parametrize("reading", HARD)
def test_identical_tokens_leave_only_the_centre(reading: Any) -> None:
    same = torch.ones(1, 64, 4)
    value = importance(reading, same, same, CELLS, **{**DEFAULTS, "beta": 0.0, "gamma": 0.25})
    assert torch.equal(value, -0.25 * central_distance(CELLS)[None])


@pytest.mark.parametrize("reading", READINGS)
def test_a_single_token(reading: Any) -> None:
    one = torch.ones(3, 1, 4)
    value = importance(reading, one, one, torch.tensor([[0, 0]]), **{**DEFAULTS, "gamma": 0.5})
    assert value.shape == (3, 1)
    assert value.isfinite().all()


def test_standardising() -> None:
    value = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 4e-5 + 0.02
    scaled = standardise(value)
    torch.testing.assert_close(scaled.mean(1), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(scaled.std(1, correction=0), torch.ones(3), rtol=1e-5, atol=0)
    assert torch.equal(scaled.argsort(dim=1, stable=True), value.argsort(dim=1, stable=True))
    for size in (0.0, 1e-30, 1.0, 1e30):
        assert torch.equal(standardise(torch.full((2, 5), size)), torch.zeros(2, 5))
    noise = torch.full((1, 50), 0.02) * (1 + 1e-7 * torch.linspace(-1, 1, 50))
    assert not standardise(noise).any(), "rounding noise is nothing to rank"
    extreme = standardise(torch.tensor([[1e-30, 2e-30], [1e30, 3e30]]))
    torch.testing.assert_close(extreme, torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))


def test_subtract_central_needs_matching_coordinates() -> None:
    with pytest.raises(ValueError, match=r"coordinates has shape \(64, 2\).*expected \(9, 2\)"):
        subtract_central(torch.zeros(1, 9), CELLS, gamma=0.1)


def test_unknown_readings_and_a_relaxed_reading_without_relaxation_are_refused() -> None:
    source, target = tokens()
    with pytest.raises(ValueError, match=r"reading='row'; expected one of 'relaxed', 'demand', 'potential'"):
        importance("row", source, target, CELLS, **DEFAULTS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rho=inf; expected a finite rho"):
        importance("relaxed", source, target, CELLS, **{**DEFAULTS, "rho": math.inf})
    with pytest.raises(ValueError, match=r"gamma=-1"):
        importance("demand", source, target, CELLS, **{**DEFAULTS, "gamma": -1})
