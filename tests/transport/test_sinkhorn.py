"""The solver against POT at convergence, against closed forms, and at the edges of its range."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from topv.transport import solve

EPS = 0.1
PRECISIONS = [(torch.float64, 1e-12), (torch.float32, 1e-6)]


def costs(batch: int, n: int, *, seed: int = 0) -> Tensor:
    """Distances between random points of the plane: structured, in [0, 1], float64."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(batch, n, 2, generator=generator, dtype=torch.float64)
    target = torch.randn(batch, n, 2, generator=generator, dtype=torch.float64)
    distance = torch.cdist(source, target)
    return distance / distance.amax((1, 2), keepdim=True)


def relative_error(value: Tensor, expected: np.ndarray) -> float:
    return float(np.abs(value.double().numpy() - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("n", [17, 100])
def test_balanced_agrees_with_pot(dtype: torch.dtype, tolerance: float, n: int) -> None:
    cost = costs(1, n)
    a = np.full(n, 1 / n)
    plan, log = ot.sinkhorn(a, a, cost[0].numpy(), EPS, method="sinkhorn_log", numItermax=5000, stopThr=1e-15, log=True)
    ours = solve(cost.to(dtype), eps=EPS, iterations=800)
    assert ours.matrix.dtype == dtype
    assert relative_error(ours.matrix[0], plan) < tolerance
    # The potentials of the balanced problem are fixed up to one constant, f + c and g - c.
    for potential, theirs in [(ours.source_potential, log["log_u"]), (ours.target_potential, log["log_v"])]:
        potential = potential[0].double().numpy()
        np.testing.assert_allclose(potential - potential.mean(), EPS * (theirs - theirs.mean()), atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("rho", [0.01, 0.1, 1.0, 30.0])
def test_semi_relaxed_agrees_with_pot(dtype: torch.dtype, tolerance: float, rho: float) -> None:
    # POT's reg_type="entropy" is reg * KL(P | 1 1^T) = -reg * H(P) up to a constant: the objective here.
    n = 60
    cost = costs(1, n)
    a = np.full(n, 1 / n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that "c is overwritten by the one matrix", which is what we ask for
        plan, log = ot.unbalanced.sinkhorn_unbalanced(
            a,
            a,
            cost[0].numpy(),
            EPS,
            (rho, math.inf),
            reg_type="entropy",
            numItermax=5000,
            stopThr=1e-16,
            log=True,
        )
    ours = solve(cost.to(dtype), eps=EPS, rho=rho, iterations=1500)
    assert relative_error(ours.matrix[0], plan) < tolerance
    # A shift between u and v decays as slowly as (rho / (rho + eps))^iterations; the plan does not feel it.
    for potential, theirs in [(ours.source_potential, log["logu"]), (ours.target_potential, log["logv"])]:
        potential = potential[0].double().numpy()
        shift = 0.0 if rho <= 1 else potential.mean() - EPS * theirs.mean()
        np.testing.assert_allclose(potential - shift, EPS * theirs, rtol=tolerance, atol=tolerance)
    assert relative_error(ours.row_sums()[0], plan.sum(1)) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("uniform", [True, False])
def test_the_first_iterations_are_the_stated_scaling(dtype: torch.dtype, tolerance: float, uniform: bool) -> None:
    """Not only the limit: the published method stops after three, so u and v are compared as they go."""
    n = 30
    cost = costs(2, n)
    b = torch.full((2, n), 1 / n, dtype=torch.float64)
    if not uniform:
        b = torch.rand(2, n, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        b /= b.sum(1, keepdim=True)
    kernel = torch.exp(-cost / EPS)
    for rho in (0.0, 0.05, 2.0, math.inf):
        power = 1.0 if rho == math.inf else rho / (rho + EPS)
        v = torch.ones(2, n, dtype=torch.float64)
        for iterations in range(1, 5):
            u = ((1 / n) / (kernel @ v[:, :, None])[..., 0]) ** power
            v = b / (kernel.mT @ u[:, :, None])[..., 0]
            ours = solve(
                cost.to(dtype),
                eps=EPS,
                rho=rho,
                iterations=iterations,
                target_weights=None if uniform else b.to(dtype),
            )
            plan = u[:, :, None] * kernel * v[:, None, :]
            assert relative_error(ours.matrix, plan.numpy()) < tolerance
            assert relative_error(ours.row_sums(), plan.sum(2).numpy()) < tolerance
            np.testing.assert_allclose(ours.source_potential.double(), EPS * u.log(), atol=tolerance, rtol=tolerance)
            np.testing.assert_allclose(ours.target_potential.double(), EPS * v.log(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("iterations", [1, 7])
def test_no_source_marginal_has_a_closed_form(dtype: torch.dtype, tolerance: float, iterations: int) -> None:
    n = 50
    cost = costs(3, n)
    ours = solve(cost.to(dtype), eps=EPS, rho=0.0, iterations=iterations)
    assert relative_error(ours.matrix, (torch.softmax(-cost / EPS, dim=1) / n).numpy()) < tolerance
    assert not ours.source_potential.any(), "u = 1"


def test_a_vanishing_source_weight_approaches_no_source_weight() -> None:
    cost = costs(1, 40)
    none = solve(cost, eps=EPS, rho=0.0, iterations=1).matrix
    error = [float((solve(cost, eps=EPS, rho=rho, iterations=200).matrix - none).abs().max()) for rho in (1e-2, 1e-6)]
    assert error[1] < 1e-3 * error[0]


def test_a_heavy_source_weight_approaches_the_balanced_problem() -> None:
    cost = costs(1, 40)
    balanced = solve(cost, eps=EPS, iterations=3).matrix
    torch.testing.assert_close(solve(cost, eps=EPS, rho=1e9, iterations=3).matrix, balanced, rtol=1e-6, atol=0)


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("rho", [0.0, 0.1, math.inf])
def test_columns_sum_to_their_weight(iterations: int, rho: float) -> None:
    cost = costs(4, 77).float()
    plan = solve(cost, eps=0.01, rho=rho, iterations=iterations)
    torch.testing.assert_close(plan.matrix.sum(1), torch.full((4, 77), 1 / 77), rtol=1e-6, atol=0)
    weights = torch.linspace(0.0, 1.0, 77)
    weights /= weights.sum()
    plan = solve(cost, eps=0.01, rho=rho, iterations=iterations, target_weights=weights)
    torch.testing.assert_close(plan.matrix.sum(1), weights.expand(4, -1), rtol=1e-6, atol=1e-12)
    assert plan.row_sums().isfinite().all()
    torch.testing.assert_close(plan.row_sums().sum(1), torch.ones(4), rtol=1e-5, atol=0)


def test_uniform_weights_given_are_uniform_weights_assumed() -> None:
    cost = costs(2, 30)
    assumed = solve(cost, eps=EPS, rho=0.3, iterations=4)
    given = solve(cost, eps=EPS, rho=0.3, iterations=4, target_weights=torch.full((30,), 1 / 30, dtype=torch.float64))
    torch.testing.assert_close(given.matrix, assumed.matrix, rtol=1e-12, atol=0)
    torch.testing.assert_close(given.target_potential, assumed.target_potential, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rho", [0.0, 0.1, math.inf])
def test_row_sums_are_those_of_the_matrix(rho: float) -> None:
    plan = solve(costs(3, 123).float(), eps=EPS, rho=rho, iterations=3)
    torch.testing.assert_close(plan.row_sums(), plan.matrix.sum(2), rtol=2e-6, atol=0)


def test_row_sums_build_no_matrix_and_the_matrix_is_built_once() -> None:
    plan = solve(costs(1, 10), eps=EPS, iterations=3)
    plan.row_sums()
    assert "matrix" not in vars(plan)
    assert plan.matrix is plan.matrix


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rho", [0.0, 1e-6, 0.1, 1e6, math.inf])
@pytest.mark.parametrize("eps", [1e-4, 1e-2, 1.0, 1e3])
@pytest.mark.parametrize("largest", [0.0, 1e-6, 1.0, 1e4])
def test_never_nan(dtype: torch.dtype, rho: float, eps: float, largest: float) -> None:
    cost = (costs(2, 40) * largest).to(dtype)
    plan = solve(cost, eps=eps, rho=rho, iterations=5)
    for value in (plan.matrix, plan.row_sums(), plan.source_potential, plan.target_potential):
        assert value.isfinite().all()
    torch.testing.assert_close(plan.matrix.sum(1), torch.full((2, 40), 1 / 40, dtype=dtype), rtol=1e-5, atol=0)


def test_never_nan_at_the_ends_of_the_number_range() -> None:
    cost = costs(1, 20).float()
    for eps, factor in [(1e-30, 1.0), (1e-4, 1e38), (1e30, 1e-30)]:
        plan = solve(cost * factor, eps=eps, iterations=3)
        assert plan.matrix.isfinite().all()
        assert plan.row_sums().isfinite().all()


def test_a_constant_added_to_the_cost_changes_nothing() -> None:
    cost = costs(1, 40)
    plain = solve(cost, eps=EPS, iterations=3).matrix
    torch.testing.assert_close(solve(cost + 5.0, eps=EPS, iterations=3).matrix, plain, rtol=1e-10, atol=0)


def test_cost_and_eps_scale_together() -> None:
    cost = costs(1, 40)
    plain = solve(cost, eps=EPS, rho=0.2, iterations=3)
    scaled = solve(cost * 8, eps=EPS * 8, rho=0.2 * 8, iterations=3)
    torch.testing.assert_close(scaled.matrix, plain.matrix, rtol=1e-12, atol=0)
    torch.testing.assert_close(scaled.source_potential, plain.source_potential * 8, rtol=1e-12, atol=1e-12)


def test_permuting_the_problem_permutes_the_plan() -> None:
    cost = costs(1, 50)
    generator = torch.Generator().manual_seed(1)
    rows, columns = torch.randperm(50, generator=generator), torch.randperm(50, generator=generator)
    plan = solve(cost, eps=EPS, rho=0.3, iterations=3).matrix
    permuted = solve(cost[:, rows][:, :, columns], eps=EPS, rho=0.3, iterations=3).matrix
    torch.testing.assert_close(permuted, plan[:, rows][:, :, columns], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("batch", "n"), [(5, 123), (40, 144), (3, 577), (7, 17)])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rho", [0.2, math.inf])
def test_grids_together_equal_grids_alone_bitwise(batch: int, n: int, threads: int, rho: float) -> None:
    cost = torch.rand(batch, n, n, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = solve(cost, eps=EPS, rho=rho, iterations=3)
        for grid in {0, 1, batch // 2, batch - 1}:
            alone = solve(cost[grid : grid + 1].clone(), eps=EPS, rho=rho, iterations=3)
            for name in ("source_potential", "target_potential", "matrix"):
                assert torch.equal(getattr(alone, name)[0], getattr(together, name)[grid]), name
            assert torch.equal(alone.row_sums()[0], together.row_sums()[grid])
    finally:
        torch.set_num_threads(before)


def test_strided_costs_are_read_right_and_left_alone() -> None:
    cost = costs(2, 30).float()
    copy = cost.clone()
    plan = solve(cost.mT, eps=EPS, iterations=3)
    assert torch.equal(plan.matrix, solve(cost.mT.contiguous(), eps=EPS, iterations=3).matrix)
    assert torch.equal(plan.row_sums(), solve(cost.mT.contiguous(), eps=EPS, iterations=3).row_sums())
    assert torch.equal(cost, copy)


def test_ties_in_the_problem_are_ties_in_the_result() -> None:
    """Sources with equal rows get equal importance to the bit, so that selection breaks the tie by index."""
    cost = torch.rand(1, 67, 67, generator=torch.Generator().manual_seed(0))
    cost[0, [5, 40, 66]] = cost[0, 11].clone()
    plan = solve(cost, eps=EPS, iterations=3)
    for value in (plan.row_sums()[0], plan.source_potential[0]):
        assert len(value[[5, 11, 40, 66]].unique()) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_costs_are_solved_in_float32(dtype: torch.dtype) -> None:
    cost = costs(1, 30).to(dtype)
    plan = solve(cost, eps=EPS, iterations=3)
    assert plan.matrix.dtype == torch.float32
    assert torch.equal(plan.matrix, solve(cost.float(), eps=EPS, iterations=3).matrix)


def test_a_single_token_holds_all_mass() -> None:
    plan = solve(torch.tensor([[[0.7]]]), eps=EPS, iterations=3)
    assert plan.matrix.tolist() == [[[1.0]]]
    assert plan.row_sums().tolist() == [[1.0]]


def test_nothing_is_differentiated() -> None:
    cost = costs(1, 5).requires_grad_()
    plan = solve(cost, eps=EPS, iterations=2)
    assert not plan.matrix.requires_grad
    assert not plan.row_sums().requires_grad
    with torch.inference_mode():
        inside = solve(cost.detach(), eps=EPS, iterations=2)
        assert torch.equal(inside.matrix, plan.matrix)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"cost": torch.zeros(4, 4)}, r"cost has shape \(4, 4\); expected a non-empty \(B, N, N\)"),
        ({"cost": torch.zeros(1, 4, 5)}, r"cost has shape \(1, 4, 5\)"),
        ({"cost": torch.zeros(0, 4, 4)}, r"non-empty"),
        ({"cost": torch.zeros(1, 4, 4, dtype=torch.long)}, r"cost is torch.int64.*pass cost.float\(\)"),
        ({"eps": 0.0}, r"eps=0.0; expected a finite number above 0"),
        ({"eps": -1.0}, r"eps=-1.0"),
        ({"eps": math.inf}, r"eps=inf"),
        ({"eps": math.nan}, r"eps=nan"),
        ({"rho": -0.1}, r"rho=-0.1; expected a number of at least 0"),
        ({"rho": math.nan}, r"rho=nan"),
        ({"iterations": 0}, r"iterations=0; expected an int of at least 1"),
        ({"iterations": 2.0}, r"iterations=2.0"),
        ({"iterations": True}, r"iterations=True"),
        (
            {"target_weights": torch.ones(5)},
            r"target_weights has shape \(5,\); expected \(4,\) or \(1, 4\)",
        ),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], match: str) -> None:
    arguments: dict[str, Any] = {"cost": torch.zeros(1, 4, 4), "eps": EPS, "iterations": 3}
    with pytest.raises(ValueError, match=match):
        solve(**{**arguments, **change})


@pytest.mark.parametrize("name", ["eps", "rho"])
def test_numbers_of_another_type_are_refused(name: str) -> None:
    arguments: dict[str, Any] = {"eps": EPS, "iterations": 3, name: "0.1"}
    with pytest.raises(TypeError, match=f"{name}='0.1' is of type str"):
        solve(torch.zeros(1, 4, 4), **arguments)
