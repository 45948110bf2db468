"""The cost matrix against a float64 computation written out pair by pair."""

from __future__ import annotations

import importlib
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from topv.transport import (
    central_distance,
    check_finite,
    cost_matrix,
    feature_distance,
    mean_cost,
    spatial_distance,
)

cost_module = importlib.import_module("topv.transport.cost")
WEIGHTS: dict[str, Any] = {"alpha": 1.0, "beta": 0.7, "gamma": 0.3, "sigma": 2.5}


def tokens(batch: int, n: int, width: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    source = 3.0 * torch.randn(batch, n, width, generator=generator)
    return source, 0.5 * source + torch.randn(batch, n, width, generator=generator)


def cells(h: int, w: int) -> Tensor:
    return torch.cartesian_prod(torch.arange(h), torch.arange(w))


def exact_distance(source: Tensor, target: Tensor, scale: str = "max") -> Tensor:
    """Subtract first, square after, in float64: no cancellation to worry about."""
    pair = (source.double()[:, :, None, :] - target.double()[:, None, :, :]).square().sum(-1).sqrt()
    whole = pair.amax((1, 2), keepdim=True) if scale == "max" else pair.mean((1, 2), keepdim=True)
    return pair / torch.where(whole > 0, whole, 1.0)


@pytest.mark.parametrize("scale", ["max", "mean"])
@pytest.mark.parametrize("shape", [(5, 123, 17), (1, 144, 64), (3, 1, 8), (2, 7, 1)])
def test_feature_distance_is_exact(shape: tuple[int, int, int], scale: Any) -> None:
    source, target = tokens(*shape)
    distance = feature_distance(source, target, scale=scale)
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance.double(), exact_distance(source, target, scale), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
def test_close_tokens_far_from_the_origin_do_not_cancel(offset: float) -> None:
    source, _ = tokens(2, 40, 96)
    generator = torch.Generator().manual_seed(1)
    target = source + 1e-3 * torch.randn(source.shape, generator=generator)
    source, target = source + offset, target + offset
    distance = feature_distance(source, target)
    # s_i and t_i differ by 1e-3 of the spread: the naive expansion in float32 loses them even without an offset.
    torch.testing.assert_close(distance.double(), exact_distance(source, target), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_products_in_float32_are_good_to_a_thousandth(
    offset: float, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of accelerators, run here: what it promises even for the worst pairs, the nearly identical."""
    monkeypatch.setattr(cost_module, "precision_for", lambda source, target: "single")
    source, _ = tokens(2, 40, 96)
    target = source + 1e-3 * torch.randn(source.shape, generator=torch.Generator().manual_seed(1))
    source, target = (source + offset) * size, (target + offset) * size
    distance = feature_distance(source, target).double()
    exact = exact_distance(source.double() / size, target.double() / size)
    torch.testing.assert_close(distance, exact, rtol=0, atol=1e-3)
    far = exact > 0.1
    torch.testing.assert_close(distance[far], exact[far], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("device", "dtype", "matmul", "precision"),
    [
        ("cpu", torch.float32, "ieee", "repaired"),
        ("cpu", torch.bfloat16, "ieee", "repaired"),
        ("cpu", torch.float64, "ieee", "double"),
        ("cuda", torch.float32, "ieee", "single"),
        ("cuda", torch.float32, "tf32", "double"),
        ("mps", torch.float32, "tf32", "single"),
    ],
)
def test_how_products_are_made(
    device: str, dtype: torch.dtype, matmul: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens: Any = SimpleNamespace(device=torch.device(device), dtype=dtype)
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision=matmul))
    assert cost_module.precision_for(tokens, tokens) == precision
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=matmul == "tf32"))
    assert cost_module.precision_for(tokens, tokens) == precision, "torch before 2.9"


def test_a_traced_graph_does_not_depend_on_which_pairs_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert cost_module.precision_for(torch.zeros(2, 3), torch.zeros(2, 3)) == "double"


def test_one_massive_activation_does_not_drown_the_rest() -> None:
    source, target = tokens(1, 40, 96)
    source[0, 3, 5] = target[0, 3, 5] = 5e3
    torch.testing.assert_close(
        feature_distance(source, target).double(), exact_distance(source, target), rtol=1e-6, atol=1e-7
    )


def test_identical_tokens_are_at_distance_zero() -> None:
    source = torch.full((2, 30, 16), 7.3)
    assert torch.equal(feature_distance(source, source), torch.zeros(2, 30, 30))
    assert torch.equal(feature_distance(source, source, scale="mean"), torch.zeros(2, 30, 30))
    source, _ = tokens(1, 30, 16)
    assert feature_distance(source, source).diagonal(dim1=1, dim2=2).max() < 1e-7


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e15, 1e37])
def test_scale_of_the_tokens_does_not_matter(size: float) -> None:
    source, target = tokens(1, 25, 12)
    source, target = source / 40, target / 40
    distance = feature_distance(source * size, target * size)
    torch.testing.assert_close(distance, feature_distance(source, target), rtol=1e-5, atol=1e-6)


def test_the_range_of_each_scaling() -> None:
    source, target = tokens(4, 50, 8)
    largest = feature_distance(source, target)
    assert largest.amin() >= 0
    assert largest.amax((1, 2)).tolist() == [1.0] * 4  # per grid, not over the batch
    mean = feature_distance(source, target, scale="mean")
    torch.testing.assert_close(mean.mean((1, 2)), torch.ones(4))


def test_normalising_compares_directions() -> None:
    source, target = tokens(2, 30, 24)
    stretch = torch.linspace(0.1, 50, 30)[:, None]
    distance = feature_distance(source * stretch, target, normalize=True)
    unit = torch.nn.functional.normalize
    exact = exact_distance(unit(source.double(), dim=-1), unit(target.double(), dim=-1))
    torch.testing.assert_close(distance.double(), exact, rtol=1e-5, atol=1e-6)
    source[0, 0] = 0.0
    assert feature_distance(source, target, normalize=True).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_low_precision_tokens_are_compared_in_float32(dtype: torch.dtype) -> None:
    source, target = (x.to(dtype) for x in tokens(2, 33, 40))
    distance = feature_distance(source, target)
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance.double(), exact_distance(source, target), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("precision", ["repaired", "single", "double"])
def test_autocast_does_not_lower_the_precision(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_module, "precision_for", lambda source, target: precision)
    source, target = tokens(2, 33, 40)
    plain = cost_matrix(source, target, cells(3, 11), **WEIGHTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cost_matrix(source, target, cells(3, 11), **WEIGHTS), plain)


def test_permuting_tokens_permutes_the_distances() -> None:
    source, target = tokens(2, 50, 16)
    generator = torch.Generator().manual_seed(2)
    rows, columns = torch.randperm(50, generator=generator), torch.randperm(50, generator=generator)
    permuted = feature_distance(source[:, rows], target[:, columns])
    straight = feature_distance(source, target)[:, rows][:, :, columns]
    torch.testing.assert_close(permuted, straight, rtol=1e-6, atol=1e-7)


def test_swapping_sources_and_targets_transposes() -> None:
    source, target = tokens(2, 50, 16)
    torch.testing.assert_close(
        feature_distance(target, source), feature_distance(source, target).mT, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("shape", [(5, 123, 17), (16, 144, 64), (2, 400, 33)])
@pytest.mark.parametrize("threads", [1, 3])
def test_grids_together_equal_grids_alone_bitwise(shape: tuple[int, int, int], threads: int) -> None:
    source, target = tokens(*shape)
    places = torch.rand(shape[0], shape[1], 2, generator=torch.Generator().manual_seed(3))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = cost_matrix(source, target, places, normalize=True, scale="mean", **WEIGHTS)
        for grid in range(shape[0]):
            one = slice(grid, grid + 1)
            alone = cost_matrix(
                source[one].clone(),
                target[one].clone(),
                places[grid].clone(),
                normalize=True,
                scale="mean",
                **WEIGHTS,
            )
            assert torch.equal(alone[0], together[grid]), f"grid {grid} depends on its batch"
    finally:
        torch.set_num_threads(before)


def test_spatial_distance_by_hand() -> None:
    places = cells(3, 4)
    distance = spatial_distance(places, sigma=1.7)
    for i, (h, w) in enumerate(places.tolist()):
        for j, (k, m) in enumerate(places.tolist()):
            square = (h - k) ** 2 + (w - m) ** 2
            assert distance[i, j].item() == pytest.approx(1 - math.exp(-square / (2 * 1.7**2)), abs=1e-6)
    assert torch.equal(distance, distance.T)
    assert torch.equal(spatial_distance(places.expand(2, -1, -1), sigma=1.7)[1], distance)


def test_spatial_distance_at_extreme_widths() -> None:
    assert not spatial_distance(cells(3, 3), sigma=math.inf).any()
    for sigma in (1e-30, 1e-3):
        assert torch.equal(spatial_distance(cells(3, 3), sigma=sigma), 1 - torch.eye(9))


def test_central_distance_by_hand() -> None:
    distance = central_distance(cells(5, 7)).view(5, 7)
    assert distance[2, 3] == 0
    corners = distance[[0, 0, 4, 4], [0, 6, 0, 6]]
    assert corners.tolist() == [1.0] * 4
    assert distance[2, 0].item() == pytest.approx(3 / math.hypot(2, 3))
    assert torch.equal(distance, distance.flip(0))
    assert torch.equal(distance, distance.flip(1))


@pytest.mark.parametrize("places", [[[0, 0]], [[4, 7]], [[2, 3], [2, 3]]])
def test_a_single_cell_is_the_centre(places: list[list[int]]) -> None:
    assert not central_distance(torch.tensor(places)).any()


def test_central_distance_does_not_depend_on_where_the_grid_starts() -> None:
    assert torch.equal(central_distance(cells(4, 6) + 100), central_distance(cells(4, 6)))


def test_cost_is_the_weighted_sum_with_the_central_factor_on_rows() -> None:
    source, target = tokens(2, 20, 8)
    places = cells(4, 5)
    cost = cost_matrix(source, target, places, **WEIGHTS)
    expected = (
        1.0 * exact_distance(source, target)
        + 0.7 * spatial_distance(places, sigma=2.5).double()
        + 0.3 * central_distance(places).double()[:, None]
    )
    torch.testing.assert_close(cost.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("off", ["alpha", "beta", "gamma"])
def test_a_weight_of_zero_leaves_its_factor_out(off: str) -> None:
    source, target = tokens(2, 20, 8)
    parts = {
        "alpha": feature_distance(source, target) * 1.0,
        "beta": spatial_distance(cells(4, 5), sigma=2.5) * 0.7,
        "gamma": central_distance(cells(4, 5))[:, None] * 0.3,
    }
    expected = sum((part for name, part in parts.items() if name != off), torch.zeros(2, 20, 20))
    cost = cost_matrix(source, target, cells(4, 5), **{**WEIGHTS, off: 0.0})
    torch.testing.assert_close(cost, expected)


def test_inputs_are_left_alone() -> None:
    source, target = tokens(2, 20, 8)
    places = cells(4, 5).float()
    copies = source.clone(), target.clone(), places.clone()
    cost_matrix(source, target, places, normalize=True, **WEIGHTS)
    assert all(torch.equal(a, b) for a, b in zip((source, target, places), copies, strict=True))


def test_mean_cost_ranks_the_token_that_is_far_from_all_targets_first() -> None:
    source = torch.zeros(1, 9, 4)
    source[0, 6] = 2.0
    cost = cost_matrix(source, torch.zeros(1, 9, 4), cells(3, 3), alpha=1, beta=0, gamma=0, sigma=3)
    importance = mean_cost(cost)
    torch.testing.assert_close(importance, cost.mean(2))
    assert importance.argmax().item() == 6


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"source": torch.zeros(2, 20)}, r"source has shape \(2, 20\).*expected the same non-empty"),
        ({"target": torch.zeros(2, 21, 8)}, r"target \(2, 21, 8\)"),
        (
            {"source": torch.zeros(2, 20, 8, dtype=torch.long)},
            r"source is torch.int64.*expected floating-point",
        ),
        ({"coordinates": torch.zeros(19, 2)}, r"coordinates has shape \(19, 2\).*expected \(20, 2\)"),
        ({"coordinates": torch.zeros(3, 20, 2)}, r"expected \(20, 2\) or \(2, 20, 2\)"),
        ({"coordinates": torch.zeros(20, 3)}, r"coordinates has shape \(20, 3\)"),
        ({"sigma": 0.0}, r"sigma=0.0; expected a width"),
        ({"alpha": -1.0}, r"alpha=-1.0; expected a finite weight"),
        ({"beta": math.nan}, r"beta=nan"),
        ({"gamma": math.inf}, r"gamma=inf"),
        ({"scale": "sum"}, r"scale='sum'; expected 'max' or 'mean'"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], match: str) -> None:
    source, target = tokens(2, 20, 8)
    arguments: dict[str, Any] = {"source": source, "target": target, "coordinates": cells(4, 5), **WEIGHTS}
    with pytest.raises(ValueError, match=match):
        cost_matrix(**{**arguments, **change})


def test_a_weight_of_another_type_is_refused() -> None:
    source, target = tokens(1, 4, 2)
    with pytest.raises(TypeError, match="alpha='1' is of type str"):
        cost_matrix(source, target, cells(2, 2), **{**WEIGHTS, "alpha": "1"})


def test_check_finite_names_the_tensor_the_count_and_the_place() -> None:
    good, bad = torch.ones(2, 3), torch.ones(2, 3)
    bad[1, 0] = math.inf
    bad[1, 2] = math.nan
    check_finite(source=good, target=good)
    with pytest.raises(ValueError, match=r"^target has 2 of 6 entries NaN or infinite, first at \(1, 0\)"):
        check_finite(source=good, target=bad)
