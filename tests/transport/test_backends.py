"""One problem, several ways of computing it: the same values, the memory each may take, and which one runs when."""

from __future__ import annotations

import importlib
import platform
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from topv import transport
from topv.measure import LiveTensors
from topv.transport import cost_matrix, importance, row_sum, standardise
from topv.transport.backend import choose
from topv.transport.dense import MATRIX_BYTES, matrix_bytes
from topv.transport.problem import Problem

problem_module = importlib.import_module("topv.transport.problem")
streaming_module = importlib.import_module("topv.transport.streaming")
READINGS = ["demand", "potential", "relaxed"]
MIB = 2**20
DEFAULTS: dict[str, Any] = {
    "alpha": 1.0,
    "beta": 0.0,
    "gamma": 0.0,
    "sigma": 3.0,
    "eps": 0.3,
    "rho": 0.1,
    "iterations": 3,
    "normalize": True,
    "scale": "max",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "all factors": {"beta": 0.5, "gamma": 0.2, "sigma": 2.0},
    "as the paper": {"beta": 1.0, "gamma": 0.01, "sigma": 10.0, "eps": 0.1},
    "mean": {"scale": "mean", "normalize": False},
    "sharp": {"eps": 0.01},
    "space alone": {"alpha": 0.0, "beta": 1.0},
    "nothing": {"alpha": 0.0},
    "one iteration": {"iterations": 1, "gamma": 0.1},
    "free sources": {"rho": 0.0},
}


def problem(batch: int, n: int, width: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens in a few clusters of unequal size, so that there is something to rank."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(batch, 7, width, generator=generator)
    label = (7 * torch.rand(batch, n, generator=generator) ** 2).long()
    source = centres.gather(1, label[..., None].expand(-1, -1, width)) + torch.randn(
        batch, n, width, generator=generator
    )
    target = source + 0.4 * torch.randn(source.shape, generator=generator)
    side = int(n**0.5) + 1
    return source, target, torch.cartesian_prod(torch.arange(side), torch.arange(side))[:n]


def assert_same(value: Tensor, expected: Tensor) -> None:
    """Equal to float32 accuracy; and, apart from values that are equal to it, the same upper half."""
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    for mine, theirs in zip(value, expected, strict=True):
        order = theirs.argsort(descending=True, stable=True)
        k = len(order) // 2
        if k and theirs[order[k - 1]] - theirs[order[k]] > 1e-3 * theirs.abs().max():
            assert set(mine.topk(k).indices.tolist()) == set(order[:k].tolist())


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("blocks", ["one", "many"])
def test_streaming_computes_what_the_matrices_give(
    reading: Any, name: str, blocks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if blocks == "many":
        monkeypatch.setattr(streaming_module, "ROW_ENTRIES", 123 * 50)
        monkeypatch.setattr(streaming_module, "CACHED_ENTRIES", 123 * 7)
    source, target, cells = problem(2, 123, 40)
    settings = {**DEFAULTS, **SETTINGS[name]}
    want = importance(reading, source, target, cells, **settings, backend="torch")
    assert_same(importance(reading, source, target, cells, **settings, backend="streaming"), want)


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("reading", READINGS)
def test_streaming_the_smallest_grids(reading: Any, n: int) -> None:
    source, target, cells = problem(3, n, 4)
    want = importance(reading, source, target, cells, **DEFAULTS, backend="torch")
    assert_same(importance(reading, source, target, cells, **DEFAULTS, backend="streaming"), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_streaming_reads_any_dtype(dtype: torch.dtype) -> None:
    source, target, cells = problem(1, 90, 24)
    source, target = source.to(dtype), target.to(dtype)
    want = importance("demand", source.float(), target.float(), cells, **DEFAULTS, backend="torch")
    tolerance = 1e-2 if dtype == torch.float64 else 1e-4
    got = importance("demand", source, target, cells, **DEFAULTS, backend="streaming")
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", ["torch", "streaming"])
@pytest.mark.parametrize("name", ["defaults", "all factors", "mean"])
@pytest.mark.parametrize("shape", [(9, 67, 33), (5, 256, 16)])
def test_each_grid_is_solved_as_if_alone_to_the_bit(backend: Any, name: str, shape: tuple[int, int, int]) -> None:
    source, target, cells = problem(*shape)
    places = torch.stack([cells + grid for grid in range(shape[0])]) / torch.arange(1, shape[0] + 1)[:, None, None]
    settings = {**DEFAULTS, **SETTINGS[name], "backend": backend}
    together = importance("demand", source, target, places, **settings)
    for grid in range(shape[0]):
        one = slice(grid, grid + 1)
        alone = importance("demand", source[one].clone(), target[one].clone(), places[grid].clone(), **settings)
        assert torch.equal(alone[0], together[grid])


@pytest.mark.parametrize("backend", ["torch", "streaming"])
@pytest.mark.parametrize("reading", READINGS)
def test_equal_tokens_are_equally_important_to_the_bit(backend: Any, reading: Any) -> None:
    """So that a selection breaks the tie by index."""
    source, target, cells = problem(1, 211, 50)
    same = [3, 40, 117, 209, 210]
    source[0, same], target[0, same] = source[0, 0].clone(), target[0, 0].clone()
    value = importance(reading, source, target, cells, **{**DEFAULTS, "backend": backend})
    assert len(value[0, [0, *same]].unique()) == 1


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("eps", [0.3, 0.05, 1 / 64])
def test_scaling_and_log_domain_agree(reading: Any, eps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the range where plain exponentials are allowed."""
    source, target, cells = problem(2, 90, 24)
    for iterations in (1, 3) if reading == "demand" else (1, 3, 100):  # the demand converges to nothing but noise
        settings = {**DEFAULTS, "eps": eps, "iterations": iterations}
        scaled = importance(reading, source, target, cells, **settings)
        with monkeypatch.context() as patch:
            patch.setattr(problem_module, "SCALING_RANGE", 0.0)
            logs = importance(reading, source, target, cells, **settings)
        assert not torch.equal(scaled, logs), "two ways of computing it"
        torch.testing.assert_close(scaled, logs, rtol=2e-3, atol=2e-3 * float(logs.abs().max()))


@pytest.mark.parametrize("backend", ["torch", "streaming"])
def test_scaling_ranks_a_nearly_flat_problem_as_float64_does(backend: Any) -> None:
    """A spread of 3e-7 of the mean: sums that are rounded anew in each iteration get a tenth of it wrong."""
    source, target, cells = problem(2, 90, 24)
    cost = cost_matrix(source, target, cells, alpha=1, beta=0, gamma=0, sigma=3, normalize=True)
    rows = row_sum(cost.double(), eps=1.0, iterations=3)
    assert (rows.std(1) / rows.mean(1)).max() < 1e-5
    value = importance("demand", source, target, cells, **{**DEFAULTS, "eps": 1.0}, backend=backend)
    torch.testing.assert_close(value.double(), standardise(rows), rtol=0, atol=1e-4)


def test_the_range_of_the_exponents() -> None:
    settings: dict[str, Any] = {
        "alpha": 1.0, "beta": 0.5, "gamma": 0.5, "sigma": 3.0, "normalize": True, "scale": "max",
        "eps": 0.5, "damping": 1.0, "iterations": 3, "supply": True,
    }  # fmt: skip
    assert Problem(**settings).range == 4.0
    assert Problem(**{**settings, "scale": "mean"}).range == float("inf")
    assert Problem(**{**settings, "scale": "mean", "alpha": 0.0}).range == 2.0


@pytest.mark.parametrize(("n", "width", "dtype"), [(576, 896, torch.float32), (1024, 64, torch.bfloat16)])
def test_matrices_take_what_is_said(n: int, width: int, dtype: torch.dtype) -> None:
    source, target, cells = problem(1, n, width)
    source, target = source.to(dtype), target.to(dtype)
    with LiveTensors(static=[source, target, cells]) as memory:
        importance("demand", source, target, cells, **DEFAULTS, backend="torch")
    token_blocks = 4 * 4 * min(n * width, 2**20)
    assert memory.largest_at_peak(1)[0].bytes <= max(4 * n * n, 8 * 2**19, token_blocks // 4)
    assert memory.peak <= matrix_bytes(n) + token_blocks + 5 * MIB


def test_memory_does_not_grow_with_the_number_of_grids() -> None:
    peaks = []
    for batch in (8, 64):
        source, target, cells = problem(batch, 256, 32)
        with LiveTensors(static=[source, target, cells]) as memory:
            importance("demand", source, target, cells, **{**DEFAULTS, "beta": 0.2}, backend="torch")
        peaks.append(memory.peak)
    assert peaks[1] <= peaks[0] + 64 * 256 * 8 * 4, "vectors of length N alone"


@pytest.mark.parametrize("width", [3, 60, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("near", [False, True])
def test_streaming_takes_the_same_memory_however_many_tokens(
    width: int, dtype: torch.dtype, near: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small blocks stand in for 16,384 tokens: what is held is blocks and vectors, no N x N, no copy of the tokens."""
    distance_module = importlib.import_module("topv.transport.distance")
    monkeypatch.setattr(streaming_module, "ROW_ENTRIES", 2**14)
    monkeypatch.setattr(streaming_module, "CACHED_ENTRIES", 2**11)
    monkeypatch.setattr(distance_module, "TOKEN_BYTES", 4 * 2**13)
    monkeypatch.setattr(distance_module, "BLOCK_ENTRIES", 2**12)
    monkeypatch.setattr(distance_module, "PAIR_ENTRIES", 2**11)
    n = 512
    source, target, cells = problem(1, n, width)
    if near:
        source = source[:, :1] + 1e-3 * source  # every pair is near: products in float64
        target = source
    source, target = source.to(dtype), target.to(dtype)
    settings = {**DEFAULTS, "beta": 0.3, "gamma": 0.1}
    with LiveTensors(static=[source, target, cells]) as memory:
        importance("demand", source, target, cells, **settings, backend="streaming")
    blocks = 4 * 2**14 + 12 * 8 * 2**13 + 16 * 2**12
    vectors = 30 * 8 * n + 8 * 8 * width
    assert memory.peak <= blocks + vectors
    assert memory.peak < 4 * n * n, "less than the cost matrix alone"
    assert memory.largest_at_peak(1)[0].bytes <= 4 * max(2**14, 4 * 2**12)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="reads the peak resident set as Linux and glibc tell it")
@pytest.mark.parametrize(("ranking", "most"), [("demand", 64), ("coverage", 96)])
def test_what_one_grid_of_16384_tokens_adds(ranking: str, most: int) -> None:
    """In MiB of resident memory, which also counts what operations take within themselves; the matrix takes 1 GiB."""
    code = """
import ctypes, pathlib, sys, torch
from topv.transport import coverage, importance
torch.set_num_threads(1)
def tokens(n):
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(1, n, 32, generator=generator)
    return source, source + 0.3 * torch.randn(source.shape, generator=generator)
def solve(source, target):
    side = int(source.shape[1] ** 0.5)
    cells = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    settings = dict(alpha=1.0, beta=0.0, gamma=0.1, sigma=3.0, normalize=True)
    if sys.argv[1] == "coverage":
        return coverage(source, target, cells, 64, **settings)
    return importance("demand", source, target, cells, **settings, eps=0.3, rho=0.1, iterations=1)
def resident(name):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1]) / 1024
inputs = tokens(16384)
solve(*tokens(4900))  # loads what it needs
ctypes.CDLL(None).malloc_trim(0)  # what the allocator kept of that would hide what comes
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
value = solve(*inputs)
assert value.isfinite().all() and value.std() > (0.5 if sys.argv[1] == "demand" else 0.0)
print(resident("VmHWM") - before)
"""
    run = subprocess.run([sys.executable, "-c", code, ranking], check=True, capture_output=True, text=True)
    assert float(run.stdout) <= most, run.stdout


def test_auto_streams_above_the_stated_size() -> None:
    settings: dict[str, Any] = {
        "alpha": 1.0, "beta": 0.0, "gamma": 0.0, "sigma": 3.0, "normalize": True, "scale": "max",
        "eps": 0.3, "damping": 1.0, "iterations": 3, "supply": True,
    }  # fmt: skip
    assert matrix_bytes(2364) <= MATRIX_BYTES < matrix_bytes(2365)
    for n, expected in [(576, "torch"), (2364, "torch"), (2365, "streaming"), (16384, "streaming")]:
        tokens = torch.empty(1, n, 8)
        assert choose("auto", tokens, tokens, Problem(**settings)) == expected
        assert choose("torch", tokens, tokens, Problem(**settings)) == "torch"
        assert choose("streaming", tokens, tokens, Problem(**settings)) == "streaming"


def test_auto_and_the_override_give_the_same_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("topv.transport.backend"), "MATRIX_BYTES", matrix_bytes(100))
    source, target, cells = problem(1, 123, 16)
    auto = importance("demand", source, target, cells, **DEFAULTS)
    assert torch.equal(auto, importance("demand", source, target, cells, **DEFAULTS, backend="streaming"))
    assert_same(auto, importance("demand", source, target, cells, **DEFAULTS, backend="torch"))


def test_unknown_backends_are_named() -> None:
    source, target, cells = problem(1, 9, 4)
    with pytest.raises(ValueError, match=r"backend='cuda'; expected one of 'auto', 'torch', 'streaming', 'fused'"):
        importance("demand", source, target, cells, **DEFAULTS, backend="cuda")  # type: ignore[arg-type]


@pytest.mark.parametrize("reading", ["demand", "potential", "relaxed"])
@pytest.mark.parametrize("scale", ["max", "mean"])
def test_uneven_targets_are_solved_alike(reading: str, scale: str) -> None:
    """Against the plan itself, on both backends; some targets weigh nothing at all."""
    torch.manual_seed(0)
    source, target = torch.randn(2, 40, 8), torch.randn(2, 40, 8)
    cells = torch.cartesian_prod(torch.arange(5.0), torch.arange(8.0))
    weights = torch.rand(2, 40)
    weights[:, :3] = 0.0
    weights /= weights.sum(1, keepdim=True)
    settings: dict[str, Any] = {
        "alpha": 1.0,
        "beta": 0.5,
        "gamma": 0.0,
        "sigma": 2.0,
        "normalize": True,
        "scale": scale,
    }
    solving: dict[str, Any] = {"eps": 0.2, "iterations": 3}
    got = [
        transport.importance(
            reading, source, target, cells, **settings, **solving, rho=0.5, target_weights=weights, backend=backend
        )
        for backend in ("torch", "streaming")
    ]
    cost = transport.cost_matrix(source, target, cells, **settings)
    if reading == "relaxed":
        want = transport.relaxed_row_sum(cost, **solving, rho=0.5, target_weights=weights)
    else:
        plan = transport.solve(cost, **solving, target_weights=weights)
        value = plan.relative_supply() if reading == "demand" else plan.log_source
        want = transport.subtract_central(value, cells, gamma=0.0).float()
    for one in got:
        assert torch.allclose(one, want, rtol=1e-4, atol=1e-4)
    even = transport.importance(reading, source, target, cells, **settings, **solving, rho=0.5)
    assert not torch.allclose(got[0], even, rtol=1e-2, atol=1e-4)
    with pytest.raises(ValueError, match="even target marginals alone"):
        transport.importance(
            reading, source, target, cells, **settings, **solving, rho=0.5, target_weights=weights, backend="fused"
        )
