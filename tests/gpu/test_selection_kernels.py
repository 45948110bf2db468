"""The fused selection on a CUDA device: the values of the torch backend, no wait for the host, and its time."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from topv.transport import importance
from transport.fused_cases import CASES, DEFAULTS, Case, problem

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LARGE: list[Case] = [
    ((1, 576, 4096), "defaults", "demand", torch.bfloat16),
    ((2, 576, 4096), "defaults", "demand", torch.float32),
    ((8, 256, 896), "all factors", "demand", torch.bfloat16),
    ((1, 2304, 512), "mean, raw", "potential", torch.bfloat16),
    ((1, 2304, 512), "sharp", "demand", torch.float32),
]


@pytest.fixture(autouse=True)
def _needs_triton() -> None:
    pytest.importorskip("triton")


def on_gpu(case: Case) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    source, target, cells, settings = problem(case)
    return source.cuda(), target.cuda(), cells.cuda(), settings


@pytest.mark.parametrize("case", [*CASES, *LARGE], ids=lambda case: " ".join(map(str, case)))
def test_the_kernels_compute_what_torch_does_on_the_cpu(case: Case) -> None:
    source, target, cells, settings = problem(case)
    reading: Any = case[2]
    want = importance(reading, source, target, cells, **settings, backend="torch")
    got = importance(reading, source.cuda(), target.cuda(), cells.cuda(), **settings, backend="fused").cpu()
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


@pytest.mark.parametrize("backend", ["torch", "streaming"])
@pytest.mark.parametrize("case", LARGE[:3], ids=lambda case: " ".join(map(str, case)))
def test_the_fallbacks_compute_the_same(case: Case, backend: Any) -> None:
    source, target, cells, settings = problem(case)
    reading: Any = case[2]
    want = importance(reading, source, target, cells, **settings, backend="torch")
    got = importance(reading, source.cuda(), target.cuda(), cells.cuda(), **settings, backend=backend).cpu()
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


def test_each_grid_is_solved_as_if_alone_to_the_bit() -> None:
    source, target, cells, settings = on_gpu(LARGE[2])
    together = importance("demand", source, target, cells, **settings, backend="fused")
    for grid in range(len(source)):
        one = slice(grid, grid + 1)
        alone = importance(
            "demand", source[one].clone(), target[one].clone(), cells[one].clone(), **settings, backend="fused"
        )
        assert torch.equal(alone[0], together[grid])


@pytest.mark.parametrize("backend", ["auto", "torch", "streaming", "fused"])
def test_no_backend_waits_for_the_device(backend: Any) -> None:
    source, target, cells, settings = on_gpu(LARGE[2])
    importance("demand", source, target, cells, **settings, backend=backend)
    torch.cuda.set_sync_debug_mode("error")
    try:
        importance("demand", source, target, cells, **settings, backend=backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(case: Case) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """The fused selection as a CUDA graph, and where it writes; capturing fails on anything that waits."""
    source, target, cells, settings = on_gpu(case)
    reading: Any = case[2]
    importance(reading, source, target, cells, **settings, backend="fused")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = importance(reading, source, target, cells, **settings, backend="fused")
    graph.inputs = source, target, cells  # type: ignore[attr-defined]  # as long as the graph reads them
    return graph, value


def test_it_can_be_captured_in_a_graph() -> None:
    graph, value = captured(LARGE[0])
    graph.replay()
    source, target, cells, settings = on_gpu(LARGE[0])
    assert torch.equal(value, importance("demand", source, target, cells, **settings, backend="fused"))


def test_one_image_takes_at_most_a_tenth_of_a_millisecond_on_a_hopper() -> None:
    """N = 576, D = 4096, bfloat16: device events around replays of the graph."""
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("the bar is set for an H100 or H200")
    assert LARGE[0][0] == (1, 576, 4096)
    assert DEFAULTS["iterations"] == 3
    graph, _ = captured(LARGE[0])
    times = []
    for _ in range(20):
        graph.replay()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(20):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 20)
    assert statistics.median(times) <= 0.1
