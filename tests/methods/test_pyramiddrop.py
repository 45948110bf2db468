"""PyramidDrop: where the decoder is cut, how many tokens each stage sees, and which."""

from __future__ import annotations

import pytest
import torch

from topv.layout import coordinates
from topv.methods import Evidence, PyramidDrop
from topv.runtime.targets import budget_counts
from topv.selection import select


def test_the_published_setting() -> None:
    method = PyramidDrop.paper()
    assert method.pruning_layers(32) == (8, 16, 24)
    # 576 tokens, and half of them behind each stage.
    assert budget_counts(method, (8, 16, 24), 32, 576) == (288, 144, 72)
    assert method.pruning_layers(28) == (7, 14, 21)
    assert budget_counts(method, (7, 14, 21), 28, 1000) == (500, 250, 125)


@pytest.mark.parametrize(
    ("settings", "depth", "layers"),
    [
        ({"layer": 2}, 32, (2, 12, 22)),
        ({"stages": 2}, 32, (16,)),
        ({"stages": 3, "layer": 2}, 6, (2, 4)),
        ({}, 5, (1, 2, 4)),
        ({}, 3, (1, 2)),
        ({"stages": 9}, 4, (1, 2, 3)),
    ],
)
def test_where_stages_end(settings: dict[str, int], depth: int, layers: tuple[int, ...]) -> None:
    assert PyramidDrop(**settings).pruning_layers(depth) == layers  # type: ignore[arg-type]


def test_a_case_by_hand() -> None:
    # Four stages of two layers, 16 tokens, a mean of 14 / 3 of them behind the first stage: 8, 4 and 2.
    method = PyramidDrop(keep=14 / 3 / 16)
    layers = method.pruning_layers(8)
    assert layers == (2, 4, 6)
    assert budget_counts(method, layers, 8, 16) == (8, 4, 2)
    # Token i gets attention i in the first stage and 15 - i later: 8 .. 15 stay, then of these 8 .. 11, then 8 and 9.
    rising = torch.arange(16.0).unsqueeze(0)
    left = set(range(16))
    for paid, count in ((rising, 8), (15 - rising, 4), (15 - rising, 2)):
        scores = method.score(Evidence((4, 4), coordinates((4, 4)), (0,), attention=paid), count)
        gone = torch.tensor([[i not in left for i in range(16)]])
        left = set(select(scores.masked_fill(gone, -torch.inf), count).indices[0].tolist())
    assert left == {8, 9}


def test_keep_is_a_mean_over_the_layers_from_the_first() -> None:
    for keep, mean in ((0.5, 288), (0.1, 57.6), (64, 64), (1, 1), (1.0, 576)):
        counts = budget_counts(PyramidDrop(keep=keep), (8, 16, 24), 32, 576)
        assert abs(sum(counts) / 3 - mean) <= 1 / 3, "within a token of one of the stages"
        assert list(counts) == sorted(counts, reverse=True)
    with pytest.raises(ValueError, match=r"count in 1 \.\. 576"):
        budget_counts(PyramidDrop(keep=577), (8, 16, 24), 32, 576)


@pytest.mark.parametrize("stages", [1, 0, True, 2.0])
def test_wrong_settings(stages: object) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        PyramidDrop(stages=stages)  # type: ignore[arg-type]


def test_missing_evidence() -> None:
    with pytest.raises(ValueError, match=r"evidence\.attention"):
        PyramidDrop().score(Evidence((1, 1), coordinates((1, 1)), (0,)), 1)
