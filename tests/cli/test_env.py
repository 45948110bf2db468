"""`topv env`."""

from __future__ import annotations

import json
import os

import torch
import transformers

import topv as package


def test_versions_and_backends(topv):
    code, out, _ = topv("env")
    assert code == 0
    rows = dict(line.split("  ", 1) for line in out.splitlines())
    assert rows["topv"].strip() == package.__version__
    assert rows["torch"].strip() == torch.__version__
    assert rows["transformers"].strip() == transformers.__version__
    assert {"eager", "sdpa"} <= set(rows["attention"].split())
    assert os.path.expanduser("~") + os.sep not in out


def test_the_bundled_model_is_looked_for(topv, monkeypatch, tmp_path):
    monkeypatch.setattr("topv.mini.MINI_PATH", tmp_path)
    assert "missing" in topv("env")[1].splitlines()[-1]
    (tmp_path / "model.safetensors").write_bytes(b"0" * 2048)
    assert topv("env")[1].splitlines()[-1].endswith("present, 2.0 KiB")


def test_json(topv):
    found = json.loads(topv("env", "--json")[1])
    assert found["versions"]["topv"] == package.__version__
    assert found["default_dtype"] in ("float32", "bfloat16")
    assert isinstance(found["cpu_features"], list)
