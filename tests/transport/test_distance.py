"""Distances in float32 against distances subtracted first in float64: the bound, the repair, and the blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from topv.transport import distance as module
from topv.transport.distance import Distances

U = 2.0**-24


def exact(source: Tensor, target: Tensor, normalize: bool = False) -> Tensor:
    source, target = source.double(), target.double()
    if normalize:
        source, target = (x / x.norm(dim=1, keepdim=True).clamp_min(1e-300) for x in (source, target))
    return torch.stack([(row - target).square().sum(1).sqrt() for row in source])


def measured(source: Tensor, target: Tensor, precision: Any = "repaired", normalize: bool = False) -> Tensor:
    """Distances in the units of the tokens, float64."""
    pairs = Distances(source, target, normalize=normalize, precision=precision)
    out = torch.full((len(source), len(target)), torch.nan)
    pairs.write(slice(0, len(source)), out)
    scale = 1.0 if normalize else float(pairs.powers[0][0])
    return out.double() / scale


def tokens(n: int, width: int, noise: float, *, offset: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(n, width, generator=generator)
    return source + offset, source + noise * torch.randn(n, width, generator=generator) + offset


@pytest.mark.parametrize("width", [1, 64, 896, 4096])
@pytest.mark.parametrize("signs", ["mixed", "alike"])
def test_float32_products_stay_within_the_stated_bound(width: int, signs: str) -> None:
    source, target = tokens(60, width, 0.3)
    if signs == "alike":  # every product positive after centring too: roundings of growing partial sums
        source, target = (
            source.abs() * torch.linspace(-3, 3, 60)[:, None],
            target.abs() * torch.linspace(-3, 3, 60)[:, None],
        )
    error = (measured(source, target, "single").square() - exact(source, target).square()).abs()
    centre = (source.double().mean(0) + target.double().mean(0)) / 2
    a, b = ((x.double() - centre).square().sum(1) for x in (source, target))
    worst = (error / (a[:, None] + b)).max()
    assert worst <= (2 * width + 16) * U
    assert worst <= (2 * width**0.5 + 16) * U, "typical: the square root of the width"


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
@pytest.mark.parametrize("noise", [1e-6, 1e-3, 0.1, 0.2, 0.5, 2.0])
def test_every_distance_is_right_however_close_the_tokens(noise: float, offset: float, normalize: bool) -> None:
    source, target = tokens(96, 640, noise, offset=offset)
    got, want = measured(source, target, normalize=normalize), exact(source, target, normalize)
    stated = 640**0.5 * U / (2 * module.NEAR)
    torch.testing.assert_close(got, want, rtol=stated, atol=U * float(want.max()))
    error = (got - want).abs() / want
    assert error.nanquantile(0.9) < 3e-7, "most are as good as float32 itself"
    if noise <= 0.1 and not normalize and offset < 1e4:
        assert error.diagonal().max() < 3e-7, "near pairs are subtracted first"


@pytest.mark.parametrize("normalize", [False, True])
def test_without_the_repair_close_tokens_would_be_lost(normalize: bool) -> None:
    source, target = tokens(96, 640, 1e-4)
    want = exact(source, target, normalize).diagonal()
    lost = (measured(source, target, "single", normalize).diagonal() - want).abs() / want
    kept = (measured(source, target, "repaired", normalize).diagonal() - want).abs() / want
    assert lost.max() > 0.1
    assert kept.max() < 1e-6


def test_pairs_that_just_miss_the_repair_are_right_too() -> None:
    """Tokens at cosines around the threshold, where float32 has the most to lose."""
    source, target = tokens(200, 2048, 0.19)
    difference = exact(source, target)
    centre = (source.double().mean(0) + target.double().mean(0)) / 2
    a, b = ((x.double() - centre).square().sum(1) for x in (source, target))
    ratio = (difference.square() / (a[:, None] + b)).diagonal()
    assert ratio.min() > module.NEAR, "none is repaired"
    assert ratio.max() < 1.5 * module.NEAR
    # How near the bound it comes hangs on the order in which a processor sums.
    stated = 2048**0.5 * U / (2 * module.NEAR)
    torch.testing.assert_close(measured(source, target), difference, rtol=stated, atol=0)


@pytest.mark.parametrize(("clusters", "doubled"), [(1, True), (2, True), (96, False)])
def test_many_near_pairs_are_multiplied_in_double(
    clusters: int, doubled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(clusters, 64, generator=generator).repeat(96 // clusters, 1)
    source += 0.01 * torch.randn(96, 64, generator=generator)
    source[0] += 50  # so that the common centre does not part the cluster
    target = source + 0.01 * torch.randn(96, 64, generator=generator)
    repaired = []
    repair = Distances._repair
    monkeypatch.setattr(
        Distances, "_repair", lambda self, near, *rest: repaired.append(len(near)) or repair(self, near, *rest)
    )
    torch.testing.assert_close(measured(source, target), exact(source, target), rtol=3e-6, atol=0)
    assert bool(repaired) is not doubled


def test_blocks_join_up(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tokens(123, 17, 0.01, offset=5.0)
    whole = {normalize: measured(source, target, normalize=normalize) for normalize in (False, True)}
    monkeypatch.setattr(module, "TOKEN_BYTES", 4 * 17 * 10)
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 70)
    monkeypatch.setattr(module, "PAIR_ENTRIES", 17 * 3)
    for normalize, want in whole.items():
        torch.testing.assert_close(measured(source, target, normalize=normalize), want, rtol=1e-5, atol=0)
        pairs = Distances(source, target, normalize=normalize, precision="repaired")
        out = torch.empty(30, 123)
        pairs.write(slice(40, 70), out)
        torch.testing.assert_close(
            out.double() / (1.0 if normalize else float(pairs.powers[0][0])), want[40:70], rtol=1e-5, atol=0
        )


@pytest.mark.parametrize("n", [67, 300])
def test_equal_tokens_have_equal_distances_to_the_bit(n: int) -> None:
    source, target = tokens(n, 100, 0.02)
    same = [1, 2, n // 2, n - 2, n - 1]
    source[same], target[same] = source[0].clone(), target[0].clone()
    got = measured(source, target, normalize=True)
    assert len(got[same].unique(dim=0)) == 1
    assert len(got[:, same].T.contiguous().unique(dim=0)) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_tokens_are_those_numbers_exactly(dtype: torch.dtype) -> None:
    source, target = (x.to(dtype) for x in tokens(50, 128, 0.01))
    torch.testing.assert_close(measured(source, target), exact(source, target), rtol=3e-6, atol=0)


@pytest.mark.parametrize("precision", ["repaired", "single", "double"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("tiny", [0.0, 1e-44, 1e-39, 1e-25])
def test_tokens_that_are_zero_or_next_to_it(precision: Any, normalize: bool, tiny: float) -> None:
    source, target = tokens(20, 8, 0.3)
    source[3] = target[4] = tiny
    got = measured(source, target, precision, normalize)
    assert got.isfinite().all()
    if tiny >= 1e-25 and precision != "single":
        torch.testing.assert_close(got, exact(source, target, normalize), rtol=1e-5, atol=0)
