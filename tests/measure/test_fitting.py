"""Looking for the largest batch that fits."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from topv.errors import InputError, UnsupportedError
from topv.measure import fitting
from topv.measure.fitting import largest_batch, peak_bytes


@pytest.mark.parametrize("limit", [1, 2, 7, 8, 100])
@pytest.mark.parametrize("capacity", [0, 1, 2, 3, 5, 8, 31, 32, 33, 99, 100, 1000])
def test_it_is_the_largest_and_nothing_much_larger_is_tried(capacity: int, limit: int) -> None:
    tried = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= capacity

    found = largest_batch(fits, limit=limit)
    assert found == min(capacity, limit)
    assert max(tried) <= min(limit, max(1, 2 * capacity))
    assert len(set(tried)) == len(tried) <= 2 * limit.bit_length() + 1


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="limit=0"):
        largest_batch(lambda batch: True, limit=0)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_on_a_cpu_the_peak_is_weights_and_growth() -> None:
    model = nn.Linear(512, 512, bias=False)
    weights = 512 * 512 * 4
    tied = nn.ModuleList([model, model])
    mebibytes = 64

    def run() -> None:
        held = torch.ones(mebibytes, 2**18)
        del held

    for _ in range(2):
        # What the first run took and gave back does not hide the second.
        peak = peak_bytes(run, tied, torch.device("cpu"))
        assert peak is not None
        # The kernel counts pages in lots, so a little is missing.
        assert (mebibytes - 1) * 2**20 <= peak - weights <= (mebibytes + 16) * 2**20
    idle = peak_bytes(lambda: None, tied, torch.device("cpu"))
    assert idle is not None
    assert 0 <= idle - weights <= 8 * 2**20


def test_where_memory_cannot_be_measured_it_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(fitting, "_CLEAR", tmp_path / "nowhere" / "clear_refs")
    with pytest.raises(UnsupportedError, match="clear_refs"):
        peak_bytes(lambda: None, nn.Linear(2, 2), torch.device("cpu"))
    with pytest.raises(UnsupportedError, match="'meta'"):
        peak_bytes(lambda: None, nn.Linear(2, 2), torch.device("meta"))


def test_a_device_that_runs_out_does_not_fit(monkeypatch) -> None:
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)

    def exhaust() -> None:
        raise torch.cuda.OutOfMemoryError("no more")

    device = torch.device("cuda")
    assert peak_bytes(exhaust, nn.Linear(2, 2), device) is None
    assert peak_bytes(lambda: None, nn.Linear(2, 2), device) == 123
