"""CDPruner, on a case worked by hand and against determinants."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from topv.layout import coordinates
from topv.methods import CDPruner, Evidence
from topv.selection import select

TOKENS = torch.tensor([[[0.6, 0.0, 0.8], [0.8, 0.0, 0.6], [0.0, 1.0, 0.0], [0.0, 0.8, 0.6]]])


def evidence(source: torch.Tensor, text: torch.Tensor, mask: torch.Tensor | None = None) -> Evidence:
    shape = (1, source.shape[1])
    mask = torch.ones(text.shape[:2], dtype=torch.bool) if mask is None else mask
    return Evidence(shape, coordinates(shape), tuple(range(len(source))), source=source, text=text, text_mask=mask)


def order(scores: torch.Tensor) -> list[int]:
    return scores[0].argsort(descending=True, stable=True).tolist()


def test_a_case_worked_by_hand() -> None:
    """The text (0, 0, 1) has cosines 0.8, 0.6, 0 and 0.6 with the tokens: r = 1, 3/4, 0, 3/4.

    L_01 = 0.96, L_03 = 0.48, L_13 = 0.36. Volumes r^2 at first: 1, 0.5625, 0, 0.5625, so token 0. Then
    c_1 = 0.75 * 0.96 = 0.72 and c_3 = 0.75 * 0.48 = 0.36 leave 0.5625 - 0.5184 = 0.0441 and 0.5625 - 0.1296 = 0.4329:
    token 3. Then e_1 = (0.5625 * 0.36 - 0.36 * 0.72) / sqrt(0.4329) leaves 0.0441 - 0.0567^2 / 0.4329 = 0.036674 for
    token 1. Token 2 has relevance 0 and never adds volume: last.
    """
    scores = CDPruner().score(evidence(TOKENS, torch.tensor([[[0.0, 0.0, 7.0]]])), 4)
    assert order(scores) == [0, 3, 1, 2]
    assert torch.allclose(scores[0, [0, 3, 1]], torch.tensor([1.0, 0.4329, 0.036674]), atol=1e-6)


def test_without_relevance_it_is_plain_diversity() -> None:
    """All volumes are 1: token 0. Then 1 - 0.96^2 = 0.0784, 1 and 1 - 0.48^2 = 0.7696: token 2. L_23 = 0.8 leaves
    0.7696 - 0.64 = 0.1296 for token 3, and token 1 keeps 0.0784. Four tokens in three dimensions: nothing is left."""
    seen = evidence(TOKENS, torch.tensor([[[0.0, 0.0, 7.0]]]))
    scores = CDPruner(theta=0.0).score(seen, 4)
    assert order(scores) == [0, 2, 3, 1]
    assert torch.allclose(scores[0, [0, 2, 3]], torch.tensor([1.0, 1.0, 0.1296]), atol=1e-6)
    without = CDPruner().score(evidence(TOKENS, torch.zeros(1, 0, 3)), 4)
    assert order(without) == [0, 2, 3, 1]


@pytest.mark.parametrize("theta", [None, 0.0, 0.5, 0.9])
def test_each_pick_adds_most_to_the_determinant(theta: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    source, text = (torch.randn(2, n, 40, generator=generator) for n in (25, 6))
    scores = CDPruner(theta=theta).score(evidence(source, text), 12)
    for grid in range(2):
        unit, words = (torch.nn.functional.normalize(x[grid].double(), dim=1) for x in (source, text))
        relevance = (unit @ words.T).mean(1)
        relevance = (relevance - relevance.min()) / (relevance.max() - relevance.min())
        weight = relevance if theta is None else (relevance * theta / (2 * (1 - theta))).exp()
        kernel = weight[:, None] * (unit @ unit.T) * weight[None]
        picked: list[int] = []
        for _ in range(12):
            rest = [i for i in range(25) if i not in picked]
            picked.append(max(rest, key=lambda i: float(torch.linalg.det(kernel[[*picked, i]][:, [*picked, i]]))))
        assert scores[grid].topk(12).indices.tolist() == picked
        assert float(scores[grid, picked].double().prod()) == pytest.approx(
            float(torch.linalg.det(kernel[picked][:, picked])), rel=1e-4
        )


def test_beyond_the_rank_the_rest_go_by_relevance() -> None:
    """Copies of two directions: after one of each nothing adds volume."""
    source = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    text = torch.tensor([[[3.0, 4.0]]])
    scores = CDPruner(theta=0.5).score(evidence(source, text), 5)
    assert scores.isfinite().all()
    assert order(scores) == [1, 0, 3, 2, 4]


def test_a_token_that_adds_a_little_goes_before_one_that_adds_nothing() -> None:
    """Token 1 is a copy of token 0; token 2 leans out of it by an angle of 0.01, a share of 1e-4 of new volume."""
    source = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.99995, 0.0099998]]])
    text = torch.tensor([[[1.0, 0.0]]])
    scores = CDPruner(theta=0.5).score(evidence(source, text), 3)
    assert order(scores) == [0, 2, 1]
    assert float(scores[0, 2]) == pytest.approx(1e-4, rel=1e-3)


def test_what_rounding_leaves_of_a_volume_is_nothing() -> None:
    """Nine directions of a plane: two span it, and what is then left of the others is of the order of 1e-17, not 0."""
    angles = torch.arange(9) * 0.37 + 0.1
    source = torch.stack((angles.cos(), angles.sin()), 1)[None]
    text = torch.tensor([[[0.6, 0.8]]])
    relevance = source[0] @ text[0, 0]
    relevance = (relevance - relevance.min()) / (relevance.max() - relevance.min())
    scores = CDPruner(theta=0.5).score(evidence(source, text), 9)
    picked = order(scores)
    assert picked[2:] == sorted(picked[2:], key=lambda token: -float(relevance[token]))
    # Below any volume, and still told apart: relevance - 2.
    assert scores[0, picked[2:]] == pytest.approx(relevance[picked[2:]] - 2, abs=1e-5)


def test_ties_go_to_the_lower_index() -> None:
    source = torch.eye(4)[None]
    scores = CDPruner().score(evidence(source, torch.ones(1, 1, 4)), 2)
    assert select(scores, 2).indices[0].tolist() == [0, 1]


@pytest.mark.parametrize("theta", [-0.1, 1.0])
def test_a_weight_out_of_range(theta: Any) -> None:
    with pytest.raises(ValueError, match=f"theta={theta}"):
        CDPruner(theta=theta)
