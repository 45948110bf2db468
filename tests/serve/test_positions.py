from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from topv.layout import Picture
from topv.serve.positions import GridPositions, LinearPositions
from topv.serve.settings import TOKENS

IMAGE = 7


@dataclass
class Place:
    offset: int
    length: int
    is_embed: torch.Tensor | None = None


@dataclass
class Feature:
    mm_position: Place
    data: dict[str, Any] = field(default_factory=dict)


def item(value: list[int]) -> Any:
    return SimpleNamespace(data=torch.tensor(value))


def grid_model() -> GridPositions:
    model = GridPositions()
    model.config = SimpleNamespace(image_token_id=IMAGE, vision_config=SimpleNamespace(spatial_merge_size=2))
    return model


def window(model: Any, ids: list[int], positions: torch.Tensor, rows: torch.Tensor, computed: int) -> Any:
    return model.recompute_mrope_positions(ids, [rows], positions, computed)


def test_tokens_in_a_row_keep_their_positions() -> None:
    model = LinearPositions()
    # Two texts, an image of 300 tokens between marks of which 3 stay, a text, an image of 4 of which 2 stay, a text.
    ids = [1, 1, 8, IMAGE, IMAGE, IMAGE, 9, 1, IMAGE, IMAGE, 1]
    marks = torch.tensor([False, True, True, True, False])
    features = [
        Feature(Place(8, 2), {TOKENS: item([4, 2])}),
        Feature(Place(2, 5, marks), {TOKENS: item([300, 3])}),
    ]
    positions, delta = model.get_mrope_input_positions(ids, features)
    assert delta == 297 + 2
    first = model.topv_write(torch.ones(300, 6, dtype=torch.bfloat16), torch.tensor([0, 150, 299]), None)
    second = model.topv_write(torch.ones(4, 6, dtype=torch.bfloat16), torch.tensor([1, 2]), None)
    stripped, positions, delta = model.recompute_mrope_positions(ids, [first, second], positions, 0)
    assert positions[0].tolist() == [0, 1, 2, 3, 153, 302, 303, 304, 306, 307, 309]
    assert delta == 297 + 2
    assert [tuple(rows.shape) for rows in stripped] == [(3, 6), (2, 6)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_any_place_is_exact(dtype: torch.dtype) -> None:
    model = LinearPositions()
    kept = torch.tensor([0, 1, 127, 128, 16383, 16384, 100_001])
    ids = [IMAGE] * 7
    positions, _ = model.get_mrope_input_positions(ids, [Feature(Place(0, 7), {TOKENS: item([100_002, 7])})])
    rows = model.topv_write(torch.zeros(100_002, 2, dtype=dtype), kept, None)
    _, positions, delta = window(model, ids, positions, rows, 0)
    assert positions[0].tolist() == kept.tolist()
    # Text behind the image goes on where the unpruned prompt would.
    assert delta == 100_002 - 7


def test_chunks_and_repetitions_agree() -> None:
    model = LinearPositions()
    ids = [1, *[IMAGE] * 6, 1, *[IMAGE] * 3, 1]
    features = [Feature(Place(1, 6), {TOKENS: item([20, 6])}), Feature(Place(8, 3), {TOKENS: item([9, 3])})]
    start, _ = model.get_mrope_input_positions(ids, features)
    one = model.topv_write(torch.zeros(20, 2), torch.tensor([0, 3, 4, 9, 11, 18]), None)
    two = model.topv_write(torch.zeros(9, 2), torch.tensor([2, 5, 8]), None)
    _, whole, delta = model.recompute_mrope_positions(ids, [one, two], start, 0)
    positions = start
    for computed, pieces in ((0, [one[:3]]), (4, [one[3:], two[:1]]), (9, [two[1:]])):
        _, positions, again = model.recompute_mrope_positions(ids, pieces, positions, computed)
        assert again == delta
    assert torch.equal(positions, whole)
    # A preempted request begins anew, with the positions that it had found.
    _, repeated, _ = model.recompute_mrope_positions(ids, [one, two], whole, 0)
    assert torch.equal(repeated, whole)
    assert model.recompute_mrope_positions(ids, [], whole, 12) == ([], whole, delta)


def test_text_alone_is_numbered_through() -> None:
    for model in (LinearPositions(), grid_model()):
        positions, delta = model.get_mrope_input_positions([1] * 5, [])
        assert positions.tolist() == [list(range(5))] * 3
        assert delta == 0


def test_rows_and_columns_of_a_grid() -> None:
    model = grid_model()
    ids = [1, 1, *[IMAGE] * 4, 1, 1]
    # 6 rows and 4 columns of tokens: text goes on behind the larger side.
    positions, delta = model.get_mrope_input_positions(
        ids, [Feature(Place(2, 4), {"image_grid_thw": item([1, 12, 8])})]
    )
    rows = model.topv_write(torch.zeros(24, 2), torch.tensor([0, 6, 13, 23]), Picture.filled((6, 4)))
    for computed, part in ((0, rows[:1]), (3, rows[1:])):
        _, positions, again = window(model, ids, positions, part, computed)
        assert again == delta
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 8, 9],
        [0, 1, 2, 3, 5, 7, 8, 9],
        [0, 1, 2, 4, 3, 5, 8, 9],
    ]
    assert delta == 10 - 8
