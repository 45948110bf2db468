"""The exact count of live tensors, on cases that can be counted by hand."""

from __future__ import annotations

import contextlib

import pytest
import torch

from topv.measure import LiveTensors

FLOAT = 4


def test_a_storage_counts_once_from_its_making_to_its_end():
    with LiveTensors() as live:
        a = torch.zeros(100)
        assert live.read() == (100 * FLOAT, 100 * FLOAT)
        view = a[10:20].reshape(2, 5).t()
        assert live.bytes == 100 * FLOAT
        b = a + 1
        assert live.bytes == 200 * FLOAT
        del a
        assert live.bytes == 200 * FLOAT, "a view keeps the whole storage"
        del view
        assert live.read() == (100 * FLOAT, 200 * FLOAT)
        b.add_(1)
        assert live.read() == (100 * FLOAT, 200 * FLOAT), "in place nothing is made"
        del b
        assert live.bytes == 0


def test_the_peak_includes_what_is_made_while_arguments_live():
    with LiveTensors() as live:
        x = torch.zeros(8, 16)
        w = torch.zeros(16, 32)
        live.restart()
        # gate and up (8 x 32 each), silu(gate), their product: four at once, before the down projection.
        y = (torch.nn.functional.silu(x @ w) * (x @ w)) @ w.t()
        before = (8 * 16 + 16 * 32) * FLOAT
        assert live.peak == before + 3 * 8 * 32 * FLOAT
        assert live.bytes == before + y.numel() * FLOAT


def test_restart_forgets_earlier_peaks():
    with LiveTensors() as live:
        a = torch.zeros(1000)
        del a
        b = torch.zeros(10)
        live.restart()
        assert live.read() == (10 * FLOAT, 10 * FLOAT)
        c = torch.zeros(5)
        del c
        assert live.read() == (10 * FLOAT, 15 * FLOAT)
        assert [t.bytes for t in live.largest_at_peak()] == [1000 * FLOAT], "the block's highest peak stays known"
        del b


def test_weights_and_views_of_them_are_static():
    weight, given = torch.zeros(64, 64), torch.zeros(10)
    with LiveTensors(static=[weight], watch=[given]) as live:
        assert live.bytes == 10 * FLOAT
        slices = weight[3:7].t()
        assert live.bytes == 10 * FLOAT
        product = torch.zeros(2, 64) @ weight
        assert live.bytes == (10 + 2 * 64) * FLOAT
        del slices, product


def test_tensors_from_before_count_from_their_first_use():
    early = torch.zeros(50)
    with LiveTensors() as live:
        assert live.bytes == 0
        late = early[:1]
        assert live.bytes == 50 * FLOAT
        del early
        assert live.bytes == 50 * FLOAT
        del late
        assert live.bytes == 0


def test_a_storage_that_grows():
    with LiveTensors() as live:
        a = torch.zeros(10)
        a.resize_(30)
        assert live.read() == (30 * FLOAT, 30 * FLOAT)
        del a
        assert live.bytes == 0


def test_many_results_and_freed_parts():
    with LiveTensors() as live:
        values, indices = torch.zeros(20).sort()
        assert live.bytes == 20 * FLOAT + 20 * 8
        del values
        assert live.bytes == 20 * 8
        del indices


def test_memory_that_takes_the_place_of_freed_memory():
    """A storage at the address of one that was freed is another storage."""
    with LiveTensors() as live:
        for _ in range(50):
            a = torch.zeros(1000)
            assert live.bytes == 1000 * FLOAT
            del a
            assert live.bytes == 0
    assert live.peak == 1000 * FLOAT


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
def test_composite_operators_show_their_parts_in_every_mode(mode):
    """In inference mode `cosine_similarity` is one operator; what it makes on the way counts all the same."""
    with mode(), LiveTensors() as live:
        a, b = torch.ones(4, 100), torch.ones(4, 100)
        live.restart()
        result = torch.nn.functional.cosine_similarity(a, b)
        assert live.peak > 3 * 400 * FLOAT
        assert live.bytes == 2 * 400 * FLOAT + result.numel() * FLOAT


def test_only_one_kind_of_device():
    with LiveTensors(device="cuda") as live:
        a = torch.zeros(10)
        assert a.numel() == 10
        assert live.bytes == 0


def test_sparse_and_meta_tensors():
    with LiveTensors() as live:
        sparse = torch.zeros(10).index_fill(0, torch.tensor([1, 5]), 1.0).to_sparse()
        assert live.bytes == 2 * 8 + 2 * FLOAT
        meta = torch.zeros(10, device="meta")
        assert live.bytes == 2 * 8 + 2 * FLOAT
        del sparse, meta


def test_what_was_largest_is_named():
    with LiveTensors() as live:
        a = torch.zeros(3, 4)
        b = torch.zeros(2, dtype=torch.float64)
        del a, b
    first, second = live.largest_at_peak()
    assert str(first) == "48 B float32 [3, 4] made by aten.zeros.default"
    assert (second.shape, second.dtype, second.bytes) == ((2,), torch.float64, 16)
    assert live.largest_at_peak(1) == [first]


def test_nothing_is_followed_after_the_block():
    with LiveTensors() as live:
        a = torch.zeros(10)
    b = torch.zeros(10)
    del a, b
    assert live.bytes == 10 * FLOAT
