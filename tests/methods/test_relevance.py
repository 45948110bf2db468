"""Relevance to the prompt as the target marginal, and nothing changed without it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from topv import transport
from topv.layout import coordinates
from topv.methods import Evidence, MeanCost, TopV

SHAPE = (4, 5)


def evidence(*, words: int = 6, padding: int = 0, **given: Any) -> Evidence:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(2, 20, 8, generator=generator)
    target = source + 0.3 * torch.randn(2, 20, 8, generator=generator)
    text = torch.randn(2, 6, 8, generator=generator)[:, 6 - words :]
    text = torch.cat([torch.zeros(2, padding, 8), text], 1)
    mask = torch.arange(padding + words).expand(2, -1) >= padding
    return Evidence(
        SHAPE,
        coordinates(SHAPE),
        (0, 1),
        **{"source": source, "target": target, "text": text, "text_mask": mask} | given,
    )


def test_a_case_worked_by_hand() -> None:
    """Two tokens like the text and two at right angles to it: cosines 1, 0, 1, 0, standardised 1, -1, 1, -1. With
    relevance log(3) / 2 the weights are as 3 to 1: 3/8 and 1/8."""
    source = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [5.0, 0.0], [0.0, 3.0]]])
    seen = Evidence(
        (2, 2),
        coordinates((2, 2)),
        (0,),
        source=source,
        text=torch.tensor([[[9.0, 0.0]]]),
        text_mask=torch.ones(1, 1, dtype=torch.bool),
    )
    weights = TopV(relevance=math.log(3) / 2).target_weights(seen)
    assert weights is not None
    assert torch.allclose(weights, torch.tensor([[3.0, 1.0, 3.0, 1.0]]) / 8)


def test_without_relevance_nothing_is_read_and_nothing_changes() -> None:
    assert TopV().needs == {"source", "post_norm"}
    bare = evidence(text=None, text_mask=None)
    assert TopV().target_weights(bare) is None
    assert torch.equal(TopV().score(bare, 5), TopV(relevance=0.0).score(evidence(), 5))
    assert TopV(relevance=1.0).needs == {"source", "post_norm", "text"}
    encoder = TopV(relevance=1.0, stage="encoder")
    assert encoder.needs == {"encoder_source", "encoder_post_norm", "source", "text"}
    assert encoder.layer == 0


@pytest.mark.parametrize("reading", ["demand", "potential", "relaxed"])
def test_the_plan_has_that_marginal(reading: Any) -> None:
    """Against three alternating scalings written out, with b in place of 1/N."""
    seen = evidence()
    method = TopV(importance=reading, relevance=1.0, relevance_tokens=4, eps=0.2, rho=0.5)
    assert seen.source is not None
    assert seen.target is not None
    assert seen.text is not None
    got = method.score(seen, 5)
    for grid in range(2):
        s, t, w = (
            torch.nn.functional.normalize(x[grid].double(), dim=1) for x in (seen.source, seen.target, seen.text)
        )
        likeness = (s @ w[-4:].T).mean(1)
        b = torch.softmax((likeness - likeness.mean()) / likeness.std(correction=0), 0)
        cost = torch.cdist(s, t)
        kernel = torch.exp(-cost / cost.max() / 0.2)
        damping = 0.5 / (0.5 + 0.2) if reading == "relaxed" else 1.0
        u, v = torch.ones(20).double(), torch.ones(20).double()
        for _ in range(3):
            u = (1 / 20 / (kernel @ v)) ** damping
            v = b / (kernel.T @ u)
        want = u.log() if reading == "potential" else u * (kernel @ v)
        if reading != "relaxed":
            want = (want - want.mean()) / want.std(correction=0)
        assert torch.allclose(got[grid].double(), want, atol=1e-4)


def test_mean_cost_weighs_its_targets_alike() -> None:
    seen = evidence()
    method = MeanCost(relevance=2.0)
    weights = method.target_weights(seen)
    assert weights is not None
    assert seen.source is not None
    assert seen.target is not None
    s, t = (torch.nn.functional.normalize(x, dim=2) for x in (seen.source, seen.target))
    want = (torch.cdist(s, t) * weights[:, None]).sum(2)
    assert torch.equal(method.score(seen, 5).argsort(1), want.argsort(1))


def test_padding_and_earlier_text_do_not_count() -> None:
    method = TopV(relevance=1.0, relevance_tokens=3)
    want = method.target_weights(evidence())
    assert want is not None
    for padding in (1, 5):
        got = method.target_weights(evidence(padding=padding))
        assert got is not None
        assert torch.allclose(got, want, rtol=1e-6)
    alone = method.target_weights(evidence(words=3))
    assert alone is not None
    assert torch.equal(alone, want)
    assert not torch.allclose(TopV(relevance=1.0).target_weights(evidence()), want)  # type: ignore[arg-type]


def test_a_prompt_without_text_counts_all_targets_alike() -> None:
    for seen in (evidence(words=0), evidence(words=0, padding=4)):
        weights = TopV(relevance=2.0).target_weights(seen)
        assert weights is not None
        assert torch.allclose(weights, torch.full((2, 20), 1 / 20))


def test_importance_hands_the_marginal_through() -> None:
    seen = evidence()
    settings: dict[str, Any] = {"alpha": 1.0, "beta": 0.0, "gamma": 0.0, "sigma": 3.0, "eps": 0.2, "rho": 0.3}
    problem = seen.source, seen.target, seen.coordinates
    for reading in ("relaxed", "demand", "potential"):
        even = torch.full((20,), 1 / 20)
        plain = transport.importance(reading, *problem, iterations=3, **settings)  # type: ignore[arg-type]
        same = transport.importance(reading, *problem, iterations=3, target_weights=even, **settings)  # type: ignore[arg-type]
        uneven = torch.arange(1.0, 21.0) / 210
        other = transport.importance(reading, *problem, iterations=3, target_weights=uneven, **settings)  # type: ignore[arg-type]
        assert torch.allclose(plain, same, atol=1e-4)
        assert not torch.allclose(plain, other, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relevance": -1.0}, "relevance=-1.0"),
        ({"relevance": float("inf")}, "relevance=inf"),
        ({"relevance_tokens": 0}, "relevance_tokens=0"),
        ({"relevance_tokens": True}, "relevance_tokens=True"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TopV(**settings)
