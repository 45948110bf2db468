"""Methods score evidence alone: no model is needed to test them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from topv import transport
from topv.layout import coordinates
from topv.methods import METHODS, VTW, Evidence, FastV, MeanCost, Random, TopV, Uniform
from topv.methods.uniform import bayer_order
from topv.selection import select

SHAPE = (6, 8)
N = 48


def evidence(grids: int = 2, *, seed: int = 0, images: tuple[int, ...] | None = None) -> Evidence:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(grids, N, 16, generator=generator)
    return Evidence(
        rows_and_columns=SHAPE,
        coordinates=coordinates(SHAPE),
        images=tuple(range(grids)) if images is None else images,
        source=source,
        target=source + 0.3 * torch.randn(grids, N, 16, generator=generator),
        attention=torch.rand(grids, N, generator=generator),
    )


@pytest.mark.parametrize("reading", ["demand", "potential", "relaxed"])
def test_topv_ranks_by_its_reading(reading: Any) -> None:
    method = TopV(importance=reading, beta=0.2, gamma=0.3, sigma=2.0, eps=0.2, rho=0.5, iterations=4, scale="mean")
    seen = evidence()
    assert seen.source is not None
    assert seen.target is not None
    want = transport.importance(
        reading, seen.source, seen.target, seen.coordinates,
        alpha=1.0, beta=0.2, gamma=0.3, sigma=2.0, eps=0.2, rho=0.5, iterations=4, normalize=True, scale="mean",
    )  # fmt: skip
    assert torch.equal(method.score(seen, 10), want)


def test_demand_is_the_row_sum_of_the_plan() -> None:
    """Worked against the definition: exp(-C / eps), three alternating scalings, row sums."""
    seen = evidence(1)
    assert seen.source is not None
    assert seen.target is not None
    s, t = (torch.nn.functional.normalize(x[0].double(), dim=1) for x in (seen.source, seen.target))
    cost = torch.cdist(s, t)
    kernel = torch.exp(-cost / cost.max() / 0.1)
    u, v = torch.ones(N).double(), torch.ones(N).double()
    for _ in range(3):
        u = 1 / N / (kernel @ v)
        v = 1 / N / (kernel.T @ u)
    rows = u * (kernel @ v)
    got = TopV(importance="demand", beta=0.0, gamma=0.0, recovery=0.0, normalize=True, eps=0.1, scale="max").score(
        seen, 10
    )[0]
    want = (rows - rows.mean()) / rows.std(correction=0)
    assert torch.equal(got.argsort(), rows.argsort())
    assert torch.allclose(got.double(), want, atol=1e-3)


def test_mean_cost_is_the_row_mean() -> None:
    seen = evidence()
    assert seen.source is not None
    assert seen.target is not None
    s, t = (torch.nn.functional.normalize(x, dim=2) for x in (seen.source, seen.target))
    want = torch.cdist(s, t).mean(2)
    got = MeanCost(beta=0.0, gamma=0.0).score(seen, 10)
    assert torch.equal(got.argsort(1), want.argsort(1))


def test_an_outlier_matters_and_a_duplicate_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    background = torch.ones(1, N, 16) + 0.01 * torch.randn(1, N, 16, generator=generator)
    background[0, 19] = torch.randn(16, generator=generator) * 2
    seen = Evidence(SHAPE, coordinates(SHAPE), (0,), source=background, target=background.clone())
    for method in (TopV(), TopV(importance="potential"), MeanCost()):
        assert int(method.score(seen, 1).argmax()) == 19, method


def test_random_depends_on_seed_and_image_alone() -> None:
    both = Random(seed=3).score(evidence(2), 5)
    swapped = Random(seed=3).score(evidence(3, images=(1, 0, 1)), 5)
    assert torch.equal(swapped[0], both[1])
    assert torch.equal(swapped[1], both[0])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(Random(seed=4).score(evidence(2), 5), both)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (6, 8), (24, 24), (7, 5)])
def test_bayer_order_is_a_permutation(shape: tuple[int, int]) -> None:
    assert bayer_order(shape).sort().values.tolist() == list(range(shape[0] * shape[1]))


@pytest.mark.parametrize("count", [16, 36, 144])
def test_uniform_covers_the_grid_evenly(count: int) -> None:
    shape = (24, 24)
    seen = Evidence(shape, coordinates(shape), (0,))
    kept = select(Uniform().score(seen, count), count).indices[0]
    quarters = [0] * 4
    for index in kept.tolist():
        row, column = divmod(index, 24)
        quarters[2 * (row >= 12) + (column >= 12)] += 1
    assert max(quarters) - min(quarters) <= count // 8


def test_fastv_is_the_attention() -> None:
    seen = evidence()
    assert seen.attention is not None
    assert torch.equal(FastV().score(seen, 3), seen.attention)
    assert FastV().needs == {"attention_row"}
    assert FastV(attention="full").needs == {"attention_map"}


def test_evidence_that_is_missing_is_named() -> None:
    bare = Evidence(SHAPE, coordinates(SHAPE), (0,))
    for method, what in ((TopV(), "source"), (MeanCost(), "source"), (FastV(), "attention")):
        with pytest.raises(ValueError, match=what):
            method.score(bare, 3)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (TopV, {"importance": "mass"}, "importance='mass'"),
        (TopV, {"target": "post_ln"}, "target='post_ln'"),
        (TopV, {"eps": 0.0}, "eps=0.0"),
        (TopV, {"rho": -1.0}, "rho=-1.0"),
        (TopV, {"iterations": 0}, "iterations=0"),
        (TopV, {"alpha": float("nan")}, "alpha=nan"),
        (TopV, {"sigma": 0.0}, "sigma=0.0"),
        (TopV, {"recovery": 1.0}, "recovery=1.0"),
        (TopV, {"scale": "sum"}, "scale='sum'"),
        (FastV, {"attention": "some"}, "attention='some'"),
        (Random, {"seed": -1}, "seed=-1"),
        (VTW, {"layer": 0}, "layer=0"),
    ],
)
def test_settings_out_of_range(method: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(**settings)


def test_layers_are_resolved_against_the_depth() -> None:
    assert VTW().pruning_layer(12) == 6
    assert VTW(layer=3).pruning_layer(12) == 3
    with pytest.raises(ValueError, match=r"layer=12 .* between 1 and 11"):
        TopV(layer=12).pruning_layer(12)


def test_names() -> None:
    assert {name: cls.__name__.lower() for name, cls in METHODS.items()} == {name: name for name in METHODS}
    assert all(cls().name == name for name, cls in METHODS.items())


def test_methods_import_neither_transformers_nor_the_runtime() -> None:
    code = (
        "import sys, topv.methods, topv.transport; "
        "bad = [m for m in sys.modules if m.split('.')[0] == 'transformers' or m.startswith('topv.runtime')]; "
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
