"""The trainer on a CUDA device: it learns, stops, goes on from its checkpoint, and ships."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from topv.cli.main import main
from training.export import export
from training.presets import get_preset
from training.trainer import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("name", ["tiny", "tiny-tiled"])
def test_train_resume_and_export(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.trainer._VALIDATION_SCENES", 16)
    preset = replace(get_preset(name), device="cuda", tower_share=0.2, reading_share=0.2)
    Trainer(preset, tmp_path / "run", 0.3).run(run_seconds=10)
    first = json.loads((tmp_path / "run" / "last.json").read_text())
    assert first["joint_step"] > 0
    again = Trainer(preset, tmp_path / "run", 0.3)
    assert all(parameter.is_cuda for parameter in again.model.parameters())
    again.run()
    assert again.state["step"] > first["step"]
    export(tmp_path / "run", tmp_path / "weights")
    command = ["eval", "--methods", "none", "--blind", "--model", str(tmp_path / "weights"), "--device", "cuda"]
    assert main([*command, "--questions", "1", "--tasks", "recognition"]) == 0
