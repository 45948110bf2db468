"""The map between prompt columns and slots, and how far a cache may be cropped."""

from __future__ import annotations

import pytest
import torch

import topv
from tiny_models import IMAGE_TOKEN, prompt, shared_llava
from topv.errors import CacheError
from topv.models import family_of
from topv.runtime.compaction import Compaction
from topv.runtime.masks import real_columns
from topv.runtime.opening import plan_prompt
from topv.runtime.record import CacheRecord


def test_scatter_holds_nan_where_pruned_and_zeros_at_padding() -> None:
    # Columns 0 and 1 are padding in the second row; of the first row columns 1 and 2 are gone.
    real = torch.tensor([[True] * 5, [False, False, True, True, True]])
    index = torch.tensor([[0, 3, 4], [2, 3, 4]])
    states = torch.arange(6.0).view(2, 3, 1) + 1
    full = Compaction(index, None, 5).scatter(states, real)[..., 0]
    nan = float("nan")
    want = torch.tensor([[1, nan, nan, 2, 3], [0, 0, 4, 5, 6]])
    assert torch.equal(full.nan_to_num(-1), want.nan_to_num(-1))


def test_scatter_leaves_slots_that_hold_no_column_out() -> None:
    real = torch.ones(2, 4, dtype=torch.bool)
    index = torch.tensor([[1, 2, 3], [0, 2, 3]])
    valid = torch.tensor([[True, True, True], [False, True, True]])
    states = torch.arange(6.0).view(2, 3, 1) + 1
    full = Compaction(index, valid, 4).scatter(states, real, unknown=0.0)[..., 0]
    assert full.tolist() == [[0, 1, 2, 3], [0, 0, 5, 6]]


@pytest.mark.parametrize("text", [1, 4])
def test_the_tail_is_the_text_behind_the_last_picture(text: int) -> None:
    model = shared_llava()
    inputs = prompt([[3, "image", text], [2, "image", text + 2]])
    real = real_columns(inputs["attention_mask"], batch=2, past=0, length=inputs["input_ids"].shape[1])
    assert bool(real[:, -1].all())
    method = topv.TopV(keep=0.5)
    plan = plan_prompt(family_of(model), method, (2,), inputs, mask=inputs["attention_mask"], past=0)
    assert int(inputs["input_ids"][0, -text - 1]) == IMAGE_TOKEN
    assert plan.tail == text


def test_a_record_is_cropped_to_its_tail_and_no_further() -> None:
    record = CacheRecord(layer=2, length=10, slots=torch.tensor([[0, 1, 5, 7, 8, 9]]), ragged=False, tail=3)
    shorter = record.crop(7)
    assert (shorter.length, shorter.tail, shorter.slots.tolist()) == (7, 0, [[0, 1, 5]])
    assert record.crop(10) is record
    with pytest.raises(CacheError, match="only the last 3 of its first 10 columns"):
        record.crop(6)
