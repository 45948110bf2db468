"""What methods may ask to be read, and where it is found."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from topv.layout import coordinates
from topv.methods import METHODS, Evidence
from topv.methods.evidence import READINGS

CELLS = coordinates((1, 2))


FIELDS = {
    "source": ["source"],
    "target": ["pre_norm", "attention", "post_norm", "mlp"],
    "attention": ["attention_row", "attention_map", "attention_raters"],
    "text": ["text"],
    "encoder_source": ["encoder_source"],
    "encoder_target": ["encoder_pre_norm", "encoder_attention", "encoder_post_norm", "encoder_mlp"],
    "encoder_attention": ["encoder_weights"],
}


def read(**readings: torch.Tensor | None) -> Evidence:
    return Evidence.of_readings(readings, rows_and_columns=(1, 2), coordinates=CELLS, images=(3,), previous=(-1,))


def test_each_reading_is_in_its_field() -> None:
    fields = {field.name for field in dataclasses.fields(Evidence)}
    assert {name: field for field, names in FIELDS.items() for name in names} == dict(READINGS)
    for name, field in READINGS.items():
        value = torch.rand(1, 2)
        seen = read(**{name: value})
        assert getattr(seen, field) is value, name
        others = fields - {field, "rows_and_columns", "coordinates", "images", "previous"}
        assert all(getattr(seen, other) is None for other in others), name


def test_the_grids_are_passed_on() -> None:
    seen = read(source=None)
    assert (seen.rows_and_columns, seen.images, seen.previous, seen.source) == ((1, 2), (3,), (-1,), None)
    assert seen.coordinates is CELLS


def test_a_mask_goes_with_the_text_by_its_own_name() -> None:
    text, mask = torch.rand(1, 4, 2), torch.ones(1, 4, dtype=torch.bool)
    seen = read(text=text, text_mask=mask)
    assert seen.text is text
    assert seen.text_mask is mask


def test_two_readings_of_one_field_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'pre_norm' and 'mlp' are both read as evidence\.target"):
        read(pre_norm=torch.rand(1, 2), mlp=torch.rand(1, 2))
    assert read(pre_norm=None, mlp=torch.rand(1, 2)).target is not None


def test_an_unknown_reading_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown reading 'sauce'\. Did you mean 'source'"):
        read(sauce=torch.rand(1, 2))


def test_what_the_methods_need_can_be_read() -> None:
    needed = set().union(*(method().needs for method in METHODS.values()))
    assert needed
    assert needed <= READINGS.keys()


def test_the_book_tells_what_may_be_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "adding-a-method.md").read_text()
    told = re.findall(r'"(\w+)"', page.partition("What `needs` may name:")[2].partition("## 2.")[0])
    assert len(told) >= 8
    assert set(told) <= READINGS.keys()
