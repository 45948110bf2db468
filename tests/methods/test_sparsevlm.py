"""SparseVLM: who rates, where, and how many tokens stay."""

from __future__ import annotations

import math

import pytest
import torch

from topv.layout import coordinates
from topv.methods import Evidence, SparseVLM
from topv.runtime.targets import budget_counts


def by_hand() -> tuple[torch.Tensor, torch.Tensor]:
    """Two visual tokens and three text tokens whose softmax over the text is (1, 1, 2) / 4 and (1, 6, 1) / 8."""
    visual = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    text = torch.tensor([[[0.0, 0.0], [0.0, math.log(6)], [math.log(2), 0.0]]])
    return visual, text


def test_raters_by_hand() -> None:
    # R = (3/16, 8/16, 5/16), mean 1/3: the second alone is above it.
    visual, text = by_hand()
    some, every = torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    assert SparseVLM().raters(visual, some, text, every).tolist() == [[0, 1, 0]]
    # Of the first visual token alone R = (1, 1, 2) / 4, and the third is above the mean.
    first = torch.tensor([[True, False]])
    assert SparseVLM().raters(visual, first, text, every).tolist() == [[0, 0, 1]]
    # Without the second text token R = ((1/3 + 1/2) / 2, (2/3 + 1/2) / 2).
    without = torch.tensor([[True, False, True]])
    assert SparseVLM().raters(visual, some, text, without).tolist() == [[0, 0, 1]]


def test_all_rate_when_none_is_above_the_mean() -> None:
    visual, text = torch.ones(1, 2, 2), torch.ones(1, 4, 2)
    mask = torch.tensor([[False, True, True, True]])
    weights = SparseVLM().raters(visual, torch.ones(1, 2, dtype=torch.bool), text, mask)
    assert weights.tolist() == [[0, pytest.approx(1 / 3), pytest.approx(1 / 3), pytest.approx(1 / 3)]]
    alone = SparseVLM().raters(visual, torch.zeros(1, 2, dtype=torch.bool), text[:, :1], mask[:, 1:2])
    assert alone.tolist() == [[1]]


def test_padding_and_the_batch_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    visual, text = torch.randn(3, 30, 8, generator=generator), torch.randn(3, 12, 8, generator=generator)
    lengths = ((30, 12), (18, 5), (7, 1))
    visual_mask = torch.stack([torch.arange(30) >= 30 - v for v, _ in lengths])
    text_mask = torch.stack([torch.arange(12) >= 12 - t for _, t in lengths])
    together = SparseVLM().raters(
        visual * visual_mask.unsqueeze(2), visual_mask, text * text_mask.unsqueeze(2), text_mask
    )
    for row, (v, t) in enumerate(lengths):
        own = slice(row, row + 1)
        ones = torch.ones(1, 30, dtype=torch.bool)
        alone = SparseVLM().raters(visual[own, 30 - v :], ones[:, :v], text[own, 12 - t :], ones[:, :t])
        assert torch.equal(together[own, 12 - t :], alone)
        assert float(together[own, : 12 - t].sum()) == 0


def test_the_published_schedule() -> None:
    method = SparseVLM(keep=(4 * 300 + 9 * 200 + 17 * 110) / 30 / 576)
    assert method.pruning_layers(32) == (2, 6, 15)
    assert budget_counts(method, (2, 6, 15), 32, 576) == (300, 200, 110)
    assert SparseVLM().pruning_layers(28) == (2, 5, 13)
    assert SparseVLM().pruning_layers(5) == (2, 3, 4)
    assert SparseVLM().pruning_layers(4) == (2, 3)
    assert SparseVLM(layer=4).pruning_layers(34) == (4, 8, 17)


def test_no_layer_has_more_than_there_is() -> None:
    assert budget_counts(SparseVLM(keep=1.0), (2, 6, 15), 32, 100) == (100, 100, 100)
    counts = budget_counts(SparseVLM(keep=0.9), (2, 6, 15), 32, 100)
    assert counts[:2] == (100, 100)
    assert abs(counts[2] * 17 + 100 * 13 - 0.9 * 100 * 30) <= 17 / 2


def test_the_score_is_the_attention() -> None:
    paid = torch.tensor([[0.2, 0.5, 0.3]])
    assert SparseVLM().score(Evidence((1, 3), coordinates((1, 3)), (0,), attention=paid), 2) is paid
    with pytest.raises(ValueError, match=r"evidence\.attention"):
        SparseVLM().score(Evidence((1, 1), coordinates((1, 1)), (0,)), 1)
