"""Selection: an exact count, in order, with recovery spread evenly over what importance leaves out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from topv.budget import keep_count, recovered_count
from topv.selection import select


def by_hand(row: list[float], count: int, recovered: int) -> tuple[list[int], list[bool]]:
    """One grid in plain Python: sort by (-importance, index); recover at half-offset even strides."""
    top = sorted(range(len(row)), key=lambda i: (-row[i], i))[: count - recovered]
    rest = [i for i in range(len(row)) if i not in top]
    back = [rest[(2 * k + 1) * len(rest) // (2 * recovered)] for k in range(recovered)]
    kept = sorted(top + back)
    return kept, [i in back for i in kept]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, int, int]:
    n = draw(st.integers(1, 60))
    grids = draw(st.integers(1, 3))
    # Few distinct values, so that ties are the rule.
    values = draw(st.lists(st.integers(-3, 3), min_size=n * grids, max_size=n * grids))
    count = keep_count(n, draw(st.floats(0.0, 1.0, exclude_min=True)))
    recovered = recovered_count(count, n, draw(st.floats(0.0, 1.0, exclude_max=True)))
    return torch.tensor(values, dtype=torch.float32).view(grids, n), count, recovered


@settings(deadline=None)
@given(problems())
def test_matches_the_rule_written_out(problem: tuple[Tensor, int, int]) -> None:
    importance, count, recovered = problem
    indices, flags = select(importance, count, recovered)
    assert indices.dtype == torch.int64
    assert flags.dtype == torch.bool
    assert indices.shape == flags.shape == (len(importance), count)
    assert (indices.diff(dim=1) > 0).all(), "ascending, each once"
    assert (flags.sum(1) == recovered).all()
    for grid, row in enumerate(importance.tolist()):
        kept, back = by_hand(row, count, recovered)
        assert indices[grid].tolist() == kept
        assert flags[grid].tolist() == back


def test_ties_break_towards_the_lower_index() -> None:
    assert select(torch.zeros(2, 700), 5).indices.tolist() == [[0, 1, 2, 3, 4]] * 2
    row = torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0, 2.0]])
    assert select(row, 2).indices.tolist() == [[1, 3]]
    assert select(row, 4).indices.tolist() == [[0, 1, 3, 5]]


def test_a_zero_and_a_negative_zero_tie() -> None:
    assert select(torch.tensor([[-0.0, 0.0, -0.0, 0.0]]), 2).indices.tolist() == [[0, 1]]


def test_recovered_tokens_are_evenly_spaced_over_the_rest() -> None:
    importance = torch.zeros(1, 576)
    importance[0, 100:244] = 1.0
    indices, flags = select(importance, 288, 144)
    assert indices[0][~flags[0]].tolist() == list(range(100, 244))
    rest = [i for i in range(576) if not 100 <= i < 244]
    places = torch.tensor([rest.index(i) for i in indices[0][flags[0]].tolist()])
    assert places.diff().unique().tolist() == [3]  # 432 left, 144 back: every third
    assert places[0] == 1  # from the middle of the first stride


@pytest.mark.parametrize(("n", "keep", "recovery"), [(577, 0.37, 0.21), (123, 0.5, 0.5), (17, 0.9, 0.3)])
def test_strides_differ_by_at_most_one(n: int, keep: float, recovery: float) -> None:
    count = keep_count(n, keep)
    recovered = recovered_count(count, n, recovery)
    importance = torch.rand(1, n, generator=torch.Generator().manual_seed(0))
    indices, flags = select(importance, count, recovered)
    top = set(indices[0][~flags[0]].tolist())
    rest = [i for i in range(n) if i not in top]
    places = torch.tensor([rest.index(i) for i in indices[0][flags[0]].tolist()])
    assert int(places.diff().max() - places.diff().min()) <= 1


def test_keeping_everything_is_the_identity() -> None:
    importance = torch.randn(3, 41, generator=torch.Generator().manual_seed(0))
    indices, flags = select(importance, 41)
    assert torch.equal(indices, torch.arange(41).expand(3, -1))
    assert not flags.any()


def test_grids_do_not_influence_each_other() -> None:
    importance = torch.randn(4, 123, generator=torch.Generator().manual_seed(0))
    together = select(importance, 50, 10)
    for grid in range(4):
        alone = select(importance[grid : grid + 1], 50, 10)
        assert torch.equal(alone.indices[0], together.indices[grid])
        assert torch.equal(alone.recovered[0], together.recovered[grid])


def test_large_grids_and_low_precision() -> None:
    importance = torch.randn(2, 16_384, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    indices, flags = select(importance, 4096, 512)
    assert (indices.diff(dim=1) > 0).all()
    assert flags.sum(1).tolist() == [512, 512]
    worst = importance.gather(1, indices)[~flags].view(2, -1).amin(1)
    chosen = torch.zeros(2, 16_384, dtype=torch.bool).scatter(1, indices, True)
    assert (importance.masked_fill(chosen, -torch.inf).amax(1) <= worst).all()


@pytest.mark.parametrize(
    ("shape", "count", "recovered", "match"),
    [
        ((5,), 2, 0, r"\(5,\).*expected a floating-point \(G, N\)"),
        ((1, 5), 0, 0, r"count=0; expected 1 \.\. N=5"),
        ((1, 5), 6, 0, r"count=6; expected 1 \.\. N=5"),
        ((1, 5), 3, 4, r"recovered=4; expected 0 \.\. count=3"),
        ((1, 5), 3, -1, r"recovered=-1"),
    ],
)
def test_bad_arguments(shape: tuple[int, ...], count: int, recovered: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        select(torch.zeros(shape), count, recovered)


def test_integer_importance_is_refused() -> None:
    with pytest.raises(ValueError, match="int64"):
        select(torch.zeros(1, 5, dtype=torch.int64), 2)
