"""Dealing placeholder tokens out to images."""

from __future__ import annotations

import pytest
import torch

from topv.errors import LayoutError, unknown_name
from topv.layout import Grid, VisualLayout, coordinates


def test_images_are_dealt_in_order() -> None:
    placeholders = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 1, 1], [0] * 8]).bool()
    layout = VisualLayout.from_images(placeholders, [(1, 2), (2, 2), (4, 1), (2, 1)])
    assert [(g.sample, g.image, g.columns.tolist()) for g in layout.grids] == [
        (0, 0, [1, 2]),
        (0, 1, [4, 5, 6, 7]),
        (1, 0, [0, 1, 2, 3]),
        (1, 1, [6, 7]),
    ]
    assert (layout.batch, layout.length, layout.visual_tokens) == (3, 8, 12)


def test_class_tokens_are_left_out() -> None:
    layout = VisualLayout.from_images(torch.ones(1, 10).bool(), [(2, 2), (2, 2)], skip=1)
    assert [g.columns.tolist() for g in layout.grids] == [[1, 2, 3, 4], [6, 7, 8, 9]]


@pytest.mark.parametrize("shapes", [[], [(2, 2)], [(2, 2), (1, 3)], [(2, 2), (2, 2)], [(2, 3), (1, 1), (1, 1)]])
def test_wrong_totals_are_refused(shapes: list[tuple[int, int]]) -> None:
    placeholders = torch.tensor([[1, 1, 1, 1, 1, 1, 0]]).bool()
    with pytest.raises(LayoutError, match="holds 6 image placeholder tokens"):
        VisualLayout.from_images(placeholders, shapes)


def test_a_grid_must_be_full() -> None:
    with pytest.raises(LayoutError, match="2 x 3 cells cannot hold 5"):
        Grid(0, 0, torch.arange(5), (2, 3))


def test_coordinates_are_row_and_column() -> None:
    assert coordinates((2, 3)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_unknown_names_offer_the_nearest() -> None:
    assert "Did you mean 'fastv'" in str(unknown_name("method", "fast-v", ["topv", "fastv", "vtw"]))
    assert "Did you mean" not in str(unknown_name("method", "zzzzz", ["topv", "fastv", "vtw"]))
