"""The one chooser: sections cut and put back in place, evidence handed on, scores checked, protected tokens kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import topv
from topv import ranking
from topv.layout import coordinates
from topv.methods import Evidence, Method


@dataclass(frozen=True, kw_only=True)
class Told(Method):
    """Scores a token by the first number of its source."""

    recover: int = 0

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        assert evidence.source is not None
        return evidence.source[..., 0]

    def recovered(self, count: int, tokens: int) -> int:
        return self.recover


def section(starts: tuple[int, ...], shape: tuple[int, int], groups: int, **more: Any) -> ranking.Section:
    rows, columns = shape
    images = tuple(range(len(starts) * groups))
    return ranking.Section(starts, rows * columns, shape, coordinates(shape), images, **more)


def test_sections_are_cut_out_of_groups_and_put_back() -> None:
    source = torch.arange(2 * 10, dtype=torch.float32).view(2, 10, 1)
    # Two grids of 1 x 2 tokens around one of 2 x 3.
    sections = [section((0, 8), (1, 2), 2), section((2,), (2, 3), 2)]
    seen: list[Evidence] = []

    class Seeing(Told):
        def score(self, evidence: Evidence, count: int) -> torch.Tensor:
            seen.append(evidence)
            assert count == min(4, evidence.coordinates.shape[0])
            return super().score(evidence, count)

    scores = ranking.score(Seeing(), sections, lambda n: {"source": sections[n].cut(source)}, 4)
    assert torch.equal(scores, source[..., 0])
    assert [tuple(evidence.source.shape) for evidence in seen if evidence.source is not None] == [(4, 2, 1), (2, 6, 1)]
    assert [evidence.rows_and_columns for evidence in seen] == [(1, 2), (2, 3)]
    assert [evidence.images for evidence in seen] == [(0, 1, 2, 3), (0, 1)]
    assert torch.equal(seen[1].coordinates[4], torch.tensor([1.0, 1.0]))


def test_all_that_was_read_reaches_the_method() -> None:
    one = section((0,), (1, 3), 1, previous=(-1,))
    fields = {"post_norm": "target", "attention_row": "attention", "encoder_mlp": "encoder_target"}
    fields |= {"encoder_weights": "encoder_attention"}
    fields |= {name: name for name in ("source", "encoder_source", "text", "text_mask")}
    read = {name: torch.full((1, 3, 2), float(number)) for number, name in enumerate(fields)}
    seen: list[Evidence] = []

    class Seeing(Told):
        def score(self, evidence: Evidence, count: int) -> torch.Tensor:
            seen.append(evidence)
            return torch.zeros(1, 3)

    ranking.score(Seeing(), [one], lambda _: read, 1)
    (evidence,) = seen
    assert all(getattr(evidence, fields[name]) is value for name, value in read.items())
    assert evidence.previous == (-1,)


def test_residual_streams_side_by_side_are_averaged() -> None:
    one = section((0,), (1, 2), 1)
    streams = torch.tensor([[[1.0, 2.0, 5.0, 8.0], [0.0, 0.0, 4.0, 2.0]]])
    seen: list[Evidence] = []

    class Seeing(Told):
        def score(self, evidence: Evidence, count: int) -> torch.Tensor:
            seen.append(evidence)
            return torch.zeros(1, 2)

    read = {"source": streams, "post_norm": torch.zeros(1, 2, 2), "text": streams}
    ranking.score(Seeing(), [one], lambda _: read, 1)
    want = torch.tensor([[[3.0, 5.0], [2.0, 1.0]]])
    assert torch.equal(seen[0].source, want)
    assert torch.equal(seen[0].text, want)


@pytest.mark.parametrize(
    ("returned", "shown"),
    [
        (torch.zeros(1, 3, dtype=torch.long), r"\(1, 3\) torch.int64"),
        (torch.zeros(3), r"\(3,\) torch.float32"),
        ([0.0, 1.0, 2.0], "list"),
    ],
)
def test_what_is_no_score_is_refused(returned: Any, shown: str) -> None:
    class Wrong(Told):
        def score(self, evidence: Evidence, count: int) -> Any:
            return returned

    with pytest.raises(TypeError, match=rf"Wrong.score\(\) returned {shown}, expected .* \(1, 3\)"):
        ranking.score(Wrong(), [section((0,), (1, 3), 1)], lambda _: {}, 1)


def chosen(*arguments: Any, **options: Any) -> tuple[list[list[int]], list[list[bool]]]:
    selection = ranking.choose(*arguments, **options)
    return selection.indices.tolist(), selection.recovered.tolist()


def test_protected_tokens_stay_whatever_their_score() -> None:
    scores = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]])
    protected = torch.tensor([[False, False, False, False, True, True]])
    assert chosen(Told(), scores, 3, protected=protected, most_protected=2) == ([[0, 4, 5]], [[False] * 3])


def test_recovery_takes_only_the_room_that_protected_tokens_leave() -> None:
    """Of three places two are taken, so one token at most is recovered, where the method would recover two."""
    scores = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]])
    protected = torch.tensor([[False, False, False, False, True, True]])
    kept, recovered = chosen(Told(recover=2), scores, 3, protected=protected, most_protected=2)
    assert kept == [[2, 4, 5]]
    assert recovered == [[True, False, False]]


def test_the_fullest_group_decides_how_many_are_recovered_in_all() -> None:
    scores = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]]).expand(2, -1)
    protected = torch.tensor([[False] * 4 + [True] * 2, [False] * 6])
    _, recovered = chosen(Told(recover=3), scores, 3, protected=protected, most_protected=2)
    assert [sum(row) for row in recovered] == [1, 1]


def test_a_later_choice_is_among_those_left_and_recovers_nothing() -> None:
    scores = torch.tensor([[9.0, 8.0, 1.0, 2.0, 3.0]])
    kept, recovered = chosen(Told(recover=1), scores, 2, earlier=torch.tensor([[2, 3, 4]]))
    assert kept == [[3, 4]]
    assert recovered == [[False, False]]


def test_a_later_choice_keeps_what_is_protected() -> None:
    scores = torch.tensor([[9.0, 8.0, 1.0, 2.0, 3.0]])
    protected = torch.tensor([[False, False, True, False, False]])
    options = {"protected": protected, "most_protected": 1, "earlier": torch.tensor([[2, 3, 4]])}
    assert chosen(topv.Uniform(), scores, 2, **options)[0] == [[2, 4]]
