"""Quantized weights and caches together with pruning: bytes as they are, and a small run of the benchmark."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import QuantizedCache
from transformers.utils import is_hqq_available

import topv
from topv.errors import InputError
from topv.measure.kv_cache import held_bytes, kv_cache_bytes

needs_hqq = pytest.mark.skipif(not is_hqq_available(), reason="needs hqq")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The benchmark as a module, which imports its neighbour."""
    path = Path(__file__).parents[2] / "benchmarks" / "quantization.py"
    spec = importlib.util.spec_from_file_location("quantization", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclass looks its own module up.
    sys.modules["quantization"] = module
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(path.parent)
        spec.loader.exec_module(module)
        yield module


def row(script: ModuleType, accuracy: float, weights: int, kv: float) -> Any:
    return script.Row("int8", "int4", 0.5, (0.0, accuracy, 1.0), (0.0, 0.0, 0.0), weights, weights, kv, 0.5)


def test_bytes_of_what_is_made_of_tensors() -> None:
    state = (torch.zeros(3, dtype=torch.uint8), {"scale": torch.zeros(2), "shape": torch.Size([3]), "axis": 1}, None)
    assert held_bytes(state) == 3 + 8
    assert held_bytes("text") == 0


def test_bytes_of_an_fp8_cache() -> None:
    """One byte for each number, and a scale each for keys and values of a layer."""
    model, _ = topv.load_mini()
    config = model.config.text_config
    cache = QuantizedCache("fp8", config)
    keys = torch.randn(1, config.num_key_value_heads, 5, config.head_dim)
    for layer in range(config.num_hidden_layers):
        cache.update(keys, keys, layer)
    per_layer = 2 * (5 * config.num_key_value_heads * config.head_dim + 4)
    assert kv_cache_bytes(cache) == config.num_hidden_layers * per_layer


def test_frontier(script: ModuleType) -> None:
    small, equal, large, worse = (
        row(script, 0.5, 100, 1.0),
        row(script, 0.5, 120, 1.0),
        row(script, 0.7, 150, 1.0),
        row(script, 0.6, 140, 2.0),
    )
    assert script.frontier([large, equal, worse, small], 1) == [small, worse, large]
    # With many prompts the cache weighs more than the weights.
    assert script.frontier([large, equal, worse, small], 100) == [small, large]


def test_missing_libraries_are_named(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(InputError, match=r"pip install 'topv\[quantization\]'"):
        script.quantize_weights(torch.nn.Linear(2, 2), "int8")
    monkeypatch.setattr("transformers.utils.is_hqq_available", lambda: False)
    model, _ = topv.load_mini()
    with pytest.raises(InputError, match=r"hqq.*pip install 'topv\[quantization\]'"):
        script.set_cache(model, "int4")


@needs_hqq
def test_a_small_combination(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchao.quantization", exc_type=ImportError)
    command = ["--weights", "fp32", "int4", "--caches", "fp32", "int4", "--reductions", "0.75", "--questions", "2"]
    command += ["--tasks", "counting", "caption", "--device", "cpu", "--json", str(tmp_path / "rows.json")]
    command += ["--out", str(tmp_path / "page.md"), "--plot", str(tmp_path / "plot.png")]
    script.main(command)
    rows = {
        (r["weights"], r["cache"], r["pruning"]): r for r in json.loads((tmp_path / "rows.json").read_text())["rows"]
    }
    assert len(rows) == 8
    whole, all_three = rows["fp32", "fp32", 0.0], rows["int4", "int4", 0.75]
    model, _ = topv.load_mini()
    parameters = sum(state.numel() for state in [*model.parameters(), *model.buffers()])
    assert whole["weight_bytes"] == pytest.approx(4 * parameters, rel=1e-3)
    # 4 bits and a scale of 4 bytes for each 32 of them, and the embeddings whole.
    linear = sum(
        m.weight.numel() for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n
    )
    assert all_three["weight_bytes"] == pytest.approx(4 * (parameters - linear) + linear * (0.5 + 4 / 32), rel=1e-3)
    assert all_three["held_bytes"] > all_three["weight_bytes"]
    # 4 bits, a scale and a zero point of 4 bytes for each 32.
    assert rows["fp32", "int4", 0.0]["kv_bytes"] == pytest.approx(whole["kv_bytes"] * (0.5 + 8 / 32) / 4, rel=1e-3)
    pruned = rows["fp32", "fp32", 0.75]["kv_bytes"] / whole["kv_bytes"]
    assert all_three["kv_bytes"] / rows["fp32", "int4", 0.0]["kv_bytes"] == pytest.approx(pruned, rel=1e-6)
    assert all_three["visual_flops_reduction"] == pytest.approx(0.75, abs=0.01)
    page = (tmp_path / "page.md").read_text()
    assert page.strip() in capsys.readouterr().out
    assert (tmp_path / "plot.png").stat().st_size > 10_000
