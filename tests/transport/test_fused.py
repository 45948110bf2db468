"""The Triton kernels: their arithmetic in the interpreter against the torch backend, and that they compile; which
conditions they need is tested without triton. On a device: tests/gpu/test_selection_kernels.py."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from topv.transport import fused as fused_module
from topv.transport import importance
from topv.transport.backend import choose
from topv.transport.problem import Problem
from transport.fused_cases import CASES, problem

importance_module = importlib.import_module("topv.transport.importance")
PROBLEM = Problem(
    alpha=1.0,
    beta=0.0,
    gamma=0.0,
    sigma=3.0,
    normalize=True,
    scale="max",
    eps=0.3,
    damping=1.0,
    iterations=3,
    supply=True,
)
HERE = Path(__file__).parent


def run(code: list[str], **environment: str) -> None:
    path = os.pathsep.join([*(entry for entry in sys.path if entry), str(HERE.parent)])
    done = subprocess.run(
        [sys.executable, *code],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    pytest.importorskip("triton")
    out = tmp_path_factory.mktemp("fused") / "values.pt"
    run([str(HERE / "fused_cases.py"), str(out)], TRITON_INTERPRET="1")
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[" ".join(map(str, case)) for case in CASES])
def test_the_kernels_compute_what_torch_does(number: int, interpreted: dict[str, Tensor]) -> None:
    source, target, cells, settings = problem(CASES[number])
    reading: Any = CASES[number][2]
    want = importance(reading, source, target, cells, **settings, backend="torch")
    got = interpreted[str(number)]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    for mine, theirs in zip(got, want, strict=True):
        order = theirs.argsort(descending=True)
        half = len(order) // 2
        if half and theirs[order[half - 1]] - theirs[order[half]] > 1e-3 * theirs.abs().max():
            assert set(mine.topk(half).indices.tolist()) == set(order[:half].tolist())


def test_strided_tokens_are_read_where_they_are(interpreted: dict[str, Tensor]) -> None:
    assert torch.equal(interpreted["strided"], interpreted[str(len(CASES) - 1)])


def test_each_grid_is_solved_as_if_alone_to_the_bit(interpreted: dict[str, Tensor]) -> None:
    assert torch.equal(interpreted["together"], interpreted["alone"])


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_without_a_device(capability: int, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    code = f"""
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from topv.transport import fused_kernels as kernels

DOUBLE = {{"squares", "parts", "q", "level", "p", "total_parts", "value"}}
SINGLE = {{"centre", "distance", "cells", "largest_parts", "out"}}
REAL = {{"alpha", "beta", "gamma", "per_sigma", "per_eps", "damping"}}

def build(name, tokens="*bf16", warps=4, **constants):
    kernel = getattr(kernels, name)
    def kind(argument):
        if argument in constants: return "constexpr"
        if argument in ("source", "target"): return tokens
        if argument in DOUBLE: return "*fp64"
        return "*fp32" if argument in SINGLE else "fp32" if argument in REAL else "i32"
    names = kernel.arg_names
    signature = {{argument: kind(argument) for argument in names}}
    aligned = {{(i,): [["tt.divisibility", 16]] for i, a in enumerate(names)
               if signature[a][0] == "*" or a in ("d", "source_row", "target_row", "source_batch", "target_batch")}}
    source = ASTSource(kernel, signature, {{(names.index(a),): v for a, v in constants.items()}}, aligned)
    options = {{"num_warps": warps, "num_stages": 3}}
    built = triton.compile(source, target=GPUTarget("cuda", {capability}, 32), options=options)
    assert built.metadata.shared <= 96 * 1024, (name, built.metadata.shared)
    return built.asm["ptx"]

tile = dict(NORMALIZE=True, LARGEST=True, INTERPRETED=False, BLOCK_M=64, BLOCK_N=64)
narrow = build("distances", CENTRED=False, BLOCK_K=64, **tile)
wide = build("distances", "*fp32", CENTRED=True, BLOCK_K=32, **tile)
assert "mma" in narrow and "bf16.bf16" in narrow, "tensor cores"
assert "mma" in wide and "tf32.tf32" in wide, "tensor cores"
build("row_squares", ROWS=4, BLOCK_D=512)
build("centres", "*fp32", NORMALIZE=True, BLOCK_N=32, BLOCK_D=64)
for scaling, block in ((True, 1024), (False, 4096)):
    flags = dict(FEATURES=True, LARGEST=True, SPACE=True, CENTRAL=True, SCALING=scaling, FIRST=False)
    build("iterate", warps=8, SUPPLY=False, BLOCK_T=128, BLOCK_N=block, ROWS=4096 // block, STEPS=2, **flags)
    build("columns", warps=8, SCALING=scaling, BLOCK_P=256, BLOCK_N=32)
build("finish", warps=8, STANDARDISE=True, CENTRAL=True, BLOCK_N=1024)
"""
    run(["-c", code], TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")


def cuda_tokens(n: int = 576, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Stands in for tokens on a device that is not there."""
    return SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype, shape=(1, n, 64))


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(fused_module, "find_spec", lambda name: object())
    monkeypatch.setattr(fused_module, "_capability", lambda device: (9, 0))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return monkeypatch


def test_auto_is_fused_where_the_kernels_can_run(on_cuda: pytest.MonkeyPatch) -> None:
    tokens = cuda_tokens()
    assert choose("auto", tokens, tokens, PROBLEM) == "fused"
    assert choose("fused", tokens, tokens, PROBLEM) == "fused"
    assert choose("torch", tokens, tokens, PROBLEM) == "torch"
    on_cuda.setattr(torch.compiler, "is_compiling", lambda: True)
    assert choose("auto", tokens, tokens, PROBLEM) == "torch", "a graph is traced through torch"


@pytest.mark.parametrize(
    ("change", "match", "instead"),
    [
        ({"find_spec": lambda name: None}, "triton is not installed", "torch"),
        ({"_capability": lambda device: (7, 5)}, r"compute capability \(7, 5\); expected at least \(8, 0\)", "torch"),
        ({"_failure": "NoCompiler: gcc"}, r"failed before \(NoCompiler: gcc\)", "torch"),
        ({"tokens": cuda_tokens(dtype=torch.float64)}, "source is torch.float64", "torch"),
        ({"tokens": cuda_tokens(4000)}, "a grid has 4000 tokens; expected at most 2364", "streaming"),
        ({"tokens": torch.zeros(1, 9, 4)}, "the tokens are on cpu; expected a CUDA device", "torch"),
    ],
)
def test_fused_raises_where_auto_falls_back(
    change: dict[str, Any], match: str, instead: str, on_cuda: pytest.MonkeyPatch
) -> None:
    tokens = change.pop("tokens", None)
    tokens = cuda_tokens() if tokens is None else tokens
    for name, value in change.items():
        on_cuda.setattr(fused_module, name, value)
    assert choose("auto", tokens, tokens, PROBLEM) == instead
    with pytest.raises(ValueError, match=f"backend='fused' cannot run: .*{match}"):
        choose("fused", tokens, tokens, PROBLEM)


def test_kernels_that_fail_are_reported_once_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **settings: Any) -> Tensor:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(fused_module, "fused_importance", fail)
    monkeypatch.setattr(fused_module, "_failure", None)
    monkeypatch.setattr(
        importance_module, "choose", lambda backend, *rest, **even: "fused" if backend == "auto" else backend
    )
    source, target, cells, settings = problem(CASES[-1])
    with pytest.warns(RuntimeWarning, match="RuntimeError: no C compiler"):
        value = importance("demand", source, target, cells, **settings)
    assert torch.equal(value, importance("demand", source, target, cells, **settings, backend="torch"))
    assert fused_module._failure == "RuntimeError: no C compiler"


def test_triton_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys, torch; from topv import transport; x = torch.eye(9)[None]; "
        "before = 'triton' in sys.modules; "
        "transport.importance('demand', x, x, torch.zeros(9, 2), alpha=1.0, beta=0.0, gamma=0.0, sigma=1.0, eps=0.3, "
        "rho=0.1, iterations=1); sys.exit('triton' in sys.modules and not before)"
    )
    run(["-c", code])
