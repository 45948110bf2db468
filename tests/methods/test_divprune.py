"""DivPrune, on a case worked by hand and against its definition."""

from __future__ import annotations

import math

import pytest
import torch

from topv.layout import coordinates
from topv.methods import DivPrune, Evidence
from topv.selection import select


def evidence(source: torch.Tensor) -> Evidence:
    shape = (1, source.shape[1])
    return Evidence(shape, coordinates(shape), tuple(range(len(source))), source=source)


def test_a_case_worked_by_hand() -> None:
    """Four directions at 0, 60, 90 and 180 degrees. Distances 1 - cos:

            0    1      2      3
        0   -    1/2    1      2
        1  1/2    -   0.1340  3/2
        2   1   0.1340  -      1
        3   2    3/2    1      -

    Nearest others lie at 1/2, 0.1340, 0.1340 and 1: token 3 is first. Token 0 is farthest from it (2); then token 2,
    at 1 from both, against token 1 at 1/2 from token 0; then token 1, at 1 - cos 30 from token 2.
    """
    angles = torch.tensor([0.0, 60.0, 90.0, 180.0]).deg2rad()
    lengths = torch.tensor([1.0, 5.0, 0.1, 2.0])
    source = (torch.stack([angles.cos(), angles.sin()], -1) * lengths[:, None])[None]
    scores = DivPrune().score(evidence(source), 4)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, torch.tensor([[2.0, 1 - math.sqrt(3) / 2, 1.0, 2.0]]), atol=1e-6)
    for count, kept in ((1, [3]), (2, [0, 3]), (3, [0, 2, 3])):
        assert select(DivPrune().score(evidence(source), count), count).indices[0].tolist() == kept


@pytest.mark.parametrize("count", [1, 2, 7, 29, 30])
def test_each_pick_is_farthest_from_those_before(count: int) -> None:
    source = torch.randn(3, 30, 5, generator=torch.Generator().manual_seed(0))
    scores = DivPrune().score(evidence(source), count)
    for grid, found in zip(source.double(), scores, strict=True):
        unit = grid / grid.norm(dim=1, keepdim=True)
        distance = [[1 - float(a @ b) for b in unit] for a in unit]
        picked = [max(range(30), key=lambda i: min(d for j, d in enumerate(distance[i]) if j != i))]
        while len(picked) < count:
            rest = [i for i in range(30) if i not in picked]
            picked.append(max(rest, key=lambda i: min(distance[i][j] for j in picked)))
        assert found.topk(count).indices.sort().values.tolist() == sorted(picked)
        assert found[picked].tolist() == sorted(found.tolist(), reverse=True)[:count]


def test_copies_are_kept_last_and_ties_go_to_the_lower_index() -> None:
    three = torch.eye(3)
    source = torch.stack([three[0], three[0], three[1], three[1], three[2]])[None]
    for count, kept in ((1, [4]), (2, [0, 4]), (3, [0, 2, 4]), (4, [0, 1, 2, 4])):
        assert select(DivPrune().score(evidence(source), count), count).indices[0].tolist() == kept
