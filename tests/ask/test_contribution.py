"""The recorded contribution matrix is the one that ranked the tokens."""

from __future__ import annotations

import pytest
import torch

from tiny_models import prompt, tiny_llava
from topv.ask.contribution import Contribution, RecordingTopV
from topv.layout import coordinates
from topv.methods import TopV
from topv.methods.base import Evidence
from topv.runtime import prune
from topv.transport import cost_matrix, solve, standardise
from topv.transport.importance import subtract_central

WEIGHTS = {"alpha": 1.0, "beta": 0.0, "gamma": 0.0, "sigma": 3.0}


def evidence(grids: int = 2, ordinals: tuple[int, ...] = (3, 1)) -> Evidence:
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(grids, 12, 5, generator=generator) for _ in range(2))
    return Evidence((3, 4), coordinates((3, 4)), ordinals, source=source, target=target)


@pytest.mark.parametrize(
    "method",
    [
        TopV(importance="demand"),
        TopV(importance="demand", beta=0.7, gamma=0.4, eps=0.1, iterations=5),
        TopV(importance="potential"),
        TopV(importance="relaxed", rho=0.2, gamma=0.3),
    ],
)
def test_the_importance_is_read_off_the_recorded_matrix(method: TopV) -> None:
    read, recording = evidence(), RecordingTopV.of(method)
    scores = recording.score(read, 4)
    assert torch.equal(scores, method.score(read, 4)), "recording changes nothing"
    for grid, ordinal in enumerate(read.images):
        matrix = recording.contributions[ordinal].matrix
        torch.testing.assert_close(matrix.sum(0), torch.full((12,), 1 / 12))
        rows = matrix.sum(1)[None]
        if method.importance == "demand":
            expected = subtract_central(rows, read.coordinates, gamma=method.gamma)
            torch.testing.assert_close(scores[grid], expected[0], atol=2e-3, rtol=1e-3)
        elif method.importance == "relaxed":
            torch.testing.assert_close(scores[grid], rows[0])
        else:
            # eps log P_ij + C_ij = f_i + g_j, and the importance is f_i, standardised.
            cost = cost_matrix(read.source, read.target, read.coordinates, **WEIGHTS, normalize=True)[grid]
            potentials = (method.eps * matrix.log() + cost)[:, 0]
            torch.testing.assert_close(scores[grid], standardise(potentials[None])[0], atol=1e-4, rtol=1e-4)


def test_under_coverage_it_is_the_plan_with_all_sources_open() -> None:
    read, method = evidence(), TopV(gamma=0.3)
    recording = RecordingTopV.of(method)
    assert torch.equal(recording.score(read, 4), method.score(read, 4))
    assert read.source is not None
    assert read.target is not None
    cost = cost_matrix(read.source, read.target, read.coordinates, **(WEIGHTS | {"gamma": 0.3}), normalize=True)
    plan = solve(cost, eps=method.eps, iterations=method.iterations).matrix
    for grid, ordinal in enumerate(read.images):
        torch.testing.assert_close(recording.contributions[ordinal].matrix, plan[grid])


def test_a_row_and_a_column_are_shares() -> None:
    contribution = Contribution(torch.tensor([[0.3, 0.1], [0.2, 0.4]]))
    assert contribution.serves(0) == pytest.approx((0.75, 0.25))
    assert contribution.served_by(0) == pytest.approx((0.6, 0.4))
    assert contribution.demand(1) == pytest.approx(1.2)
    assert Contribution(torch.zeros(2, 2)).serves(0) == (0.0, 0.0)


def test_large_grids_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topv.ask.contribution.MAX_TOKENS", 11)
    recording = RecordingTopV.of(TopV())
    recording.score(evidence(), 4)
    assert recording.contributions == {}


def test_it_records_what_runs_on_a_model() -> None:
    model, inputs = tiny_llava(), prompt([[3, "image", 2]])
    method = TopV(keep=0.25)
    with torch.inference_mode():
        with prune(model, method) as pruning:
            model(**inputs)
        expected = pruning.kept_positions
        recording = RecordingTopV.of(method)
        with prune(model, recording) as pruning:
            model(**inputs)
    assert all(torch.equal(a, b) for a, b in zip(pruning.kept_positions, expected, strict=True))
    assert [c.matrix.shape for c in recording.contributions.values()] == [(36, 36)]
