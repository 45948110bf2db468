"""The greedy choice of a set: its definition, its ties, large grids, and that host, device and kernel agree."""

from __future__ import annotations

import importlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from topv.transport import cost_matrix, coverage

module = importlib.import_module("topv.transport.coverage")
CELLS = torch.cartesian_prod(torch.arange(6), torch.arange(8))
N = len(CELLS)
PLAIN = {"alpha": 1.0, "beta": 0.0, "gamma": 0.0, "sigma": 3.0}
FULL = {"alpha": 1.0, "beta": 0.5, "gamma": 0.3, "sigma": 2.0, "normalize": True, "scale": "mean"}


def tokens(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, N, 12, generator=torch.Generator().manual_seed(seed))


def kept(score: Tensor, count: int) -> list[list[int]]:
    return score.topk(count, dim=1).indices.sort(1).values.tolist()


def by_definition(cost: Tensor, count: int) -> list[int]:
    """The choice from its description, with costs (N, N) as they are."""
    opened: list[int] = []
    target = int(cost.sum(0).argmax())
    while len(opened) < count:
        opened.append(int(cost[:, target].argmin()))
        pays = cost[opened].amin(0)
        asking = [j for j in range(len(cost)) if int(cost[:, j].argmin()) not in opened]
        if not asking:
            break
        target = max(asking, key=lambda j: float(pays[j]))
    return sorted(opened)


@pytest.mark.parametrize("settings", [PLAIN, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("count", [1, 2, 9, 20])
def test_it_is_the_choice_described(settings: dict[str, float], count: int) -> None:
    source, target = tokens(seed=1), tokens(seed=2)
    cost = cost_matrix(source, target, CELLS, **settings)
    assert kept(coverage(source, target, CELLS, count, **settings), count) == [
        by_definition(grid.double(), count) for grid in cost
    ]


def test_a_case_worked_by_hand() -> None:
    """On a line at 0, 1, 5, 6 and 20. From 20 the sum of distances is largest; then 0 is farthest from it, and pays
    20; then 6, which is 6 from 0 and 14 from 20, before 5; then, 1 from its nearest, 1 before 5."""
    line = torch.tensor([[[0.0], [1.0], [5.0], [6.0], [20.0]]])
    cells = torch.tensor([[0, i] for i in range(5)])
    score = coverage(line, line, cells, 3, **PLAIN)[0]
    assert score.topk(3).indices.tolist() == [4, 0, 3]
    unit = 2.0**-20
    assert score.tolist() == pytest.approx([1.0, 1 / 20, 1 / 20, 6 / 20, 2.0], abs=3 * unit)
    assert coverage(line, line, cells, 4, **PLAIN)[0].topk(4).indices.tolist() == [4, 0, 3, 1]


@pytest.mark.parametrize("count", [3, 10])
def test_the_dearest_target_pays_at_most_twice_the_least_possible(count: int) -> None:
    few = tokens(1)[:, :11]
    cells = CELLS[:11]
    cost = torch.cdist(few[0].double(), few[0].double())
    (chosen,) = kept(coverage(few, few, cells, count, **PLAIN), count)
    least = min(float(cost[list(s)].amin(0).max()) for s in itertools.combinations(range(11), count))
    assert float(cost[chosen].amin(0).max()) <= 2 * least + 1e-6


def test_copies_of_a_kept_token_go_last() -> None:
    x = tokens(1)
    x[0, 5:20] = x[0, 4]
    (chosen,) = kept(coverage(x, x, CELLS, N - 15, **PLAIN), N - 15)
    assert chosen == [*range(5), *range(20, N)]


def test_when_every_target_has_its_cheapest_source_the_rest_goes_by_index() -> None:
    x = torch.zeros(1, N, 4)
    x[0, -1] = 1.0
    assert kept(coverage(x, x, CELLS, 5, **PLAIN), 5) == [[0, 1, 2, 3, N - 1]]
    assert kept(coverage(x, x, CELLS, N, **PLAIN), N) == [list(range(N))]


@pytest.mark.parametrize("settings", [PLAIN, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("count", [1, 7, N])
def test_an_opened_source_scores_above_all_others(settings: dict[str, float], count: int) -> None:
    score = coverage(tokens(seed=3), tokens(seed=4), CELLS, count, **settings)
    highest = score.sort(1, descending=True).values
    assert score.dtype == torch.float32
    assert torch.isfinite(score).all()
    if count < N:
        assert (highest[:, count - 1] > highest[:, count]).all()


def test_a_target_that_counts_for_more_is_supplied_better() -> None:
    x = tokens(1)
    weights = torch.ones(1, N)
    (before,) = kept(coverage(x, x, CELLS, 6, **PLAIN), 6)
    spared = next(j for j in range(N) if j not in before)
    weights[0, spared] = 50.0
    (after,) = kept(coverage(x, x, CELLS, 6, target_weights=weights / weights.sum(), **PLAIN), 6)
    assert spared in after


@pytest.mark.parametrize("settings", [PLAIN, FULL], ids=["plain", "full"])
def test_a_grid_is_chosen_as_if_alone(settings: dict[str, float]) -> None:
    source, target = tokens(3, seed=5), tokens(3, seed=6)
    whole = coverage(source, target, CELLS, 9, **settings)
    for grid in range(3):
        alone = coverage(source[grid : grid + 1], target[grid : grid + 1], CELLS, 9, **settings)
        assert torch.equal(whole[grid : grid + 1], alone)


@pytest.mark.parametrize("settings", [PLAIN, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_large_grid_in_parts_is_chosen_alike(
    settings: dict[str, float], weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tokens(seed=7), tokens(seed=8)
    weights = torch.softmax(tokens(seed=9)[..., 0], 1) if weighted else None
    for count in (1, 6, 30, N):
        whole = coverage(source, target, CELLS, count, target_weights=weights, **settings)
        with monkeypatch.context() as patch:
            patch.setattr(module, "MATRIX_TOKENS", 10)
            patch.setattr(module, "ROWS_AT_ONCE", 7)
            parts = coverage(source, target, CELLS, count, target_weights=weights, **settings)
        assert kept(whole, count) == kept(parts, count)
        assert torch.allclose(whole, parts, atol=1e-5)


def prices(count: int) -> Tensor:
    made = (100 * tokens(3, seed=10)[..., :1].sub(tokens(3, seed=11)[..., 0].unsqueeze(1)).abs()).round().int()
    made[1, :, : count // 2] = made[1, :, :1]  # some targets with the same supplier
    return made


@pytest.mark.parametrize("count", [1, 8, N])
def test_the_choice_without_looking_is_the_same(count: int) -> None:
    price = prices(count)
    looking = torch.stack([module._choose_among(grid, count) for grid in price])
    assert torch.equal(looking, module._choose_blindly(price, count))


def test_it_can_be_traced() -> None:
    x = tokens()
    traced = torch.compile(lambda s: coverage(s, s, CELLS, 5, **PLAIN), backend="aot_eager", fullgraph=True)
    assert kept(traced(x), 5) == kept(coverage(x, x, CELLS, 5, **PLAIN), 5)


def test_the_kernel_makes_the_same_choice() -> None:
    pytest.importorskip("triton")
    path = os.pathsep.join([*(entry for entry in sys.path if entry), str(Path(__file__).parent.parent)])
    done = subprocess.run(
        [sys.executable, "-c", "from transport import test_coverage as tests; tests.check_kernel()"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def check_kernel() -> None:
    """In a process whose triton interprets."""
    from topv.transport.fused_coverage import open_in_one_launch

    for count in (1, 8, N):
        price = prices(count)
        supplier, first = price.argmin(1), price.sum(1).argmax(1, keepdim=True)
        assert open_in_one_launch(price, supplier, first, count, unpaid=module.UNPAID, paid=module.PAID) is not None
        looking = torch.stack([module._choose_among(grid, count) for grid in price])
        assert torch.equal(looking, module._choose_blindly(price, count)), count


def test_what_does_not_fit_is_named() -> None:
    x = tokens()
    with pytest.raises(ValueError, match=r"count=0; expected from 1 to 48"):
        coverage(x, x, CELLS, 0, **PLAIN)
    with pytest.raises(ValueError, match=r"count=49; expected from 1 to 48"):
        coverage(x, x, CELLS, 49, **PLAIN)
    with pytest.raises(ValueError, match="target_weights has shape"):
        coverage(x, x, CELLS, 3, target_weights=torch.ones(5), **PLAIN)
    with pytest.raises(ValueError, match="source has shape"):
        coverage(x, x[:, :4], CELLS, 3, **PLAIN)
