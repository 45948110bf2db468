"""VisionZip: the attended tokens, and an even sample of the others."""

from __future__ import annotations

import pytest
import torch

from topv.layout import coordinates
from topv.methods import Evidence, VisionZip
from topv.selection import select


def kept(method: VisionZip, attention: torch.Tensor, count: int) -> list[int]:
    shape = (1, attention.shape[1])
    scores = method.score(Evidence(shape, coordinates(shape), (0,), encoder_attention=attention), count)
    return select(scores, count, method.recovered(count, attention.shape[1])).indices[0].tolist()


def test_a_case_worked_by_hand() -> None:
    """Four of eight stay, half of them contextual. Tokens 5 and 2 are attended to most. Of the six others, 0 1 3 4 6
    7, the even sample of two takes places floor(1 * 6 / 4) = 1 and floor(3 * 6 / 4) = 4: tokens 1 and 6."""
    attention = torch.tensor([[0.05, 0.01, 0.2, 0.15, 0.04, 0.4, 0.02, 0.13]])
    assert kept(VisionZip(contextual=0.5), attention, 4) == [1, 2, 5, 6]
    assert kept(VisionZip(contextual=0.0), attention, 4) == [2, 3, 5, 7]


def test_the_share_is_the_papers() -> None:
    """54 dominant and 10 contextual tokens of 64, 108 and 20 of 128, 162 and 30 of 192."""
    assert [VisionZip().recovered(count, 576) for count in (64, 128, 192)] == [10, 20, 30]


def test_equal_attention_goes_to_the_lower_index() -> None:
    assert kept(VisionZip(contextual=0.0), torch.ones(1, 6), 3) == [0, 1, 2]


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range(share: float) -> None:
    with pytest.raises(ValueError, match=f"contextual={share}"):
        VisionZip(contextual=share)
