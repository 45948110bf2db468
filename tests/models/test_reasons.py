"""Each reason of the closed list is found out by code."""

from __future__ import annotations

import importlib.util

import pytest

import topv
from tools.probe.architectures import probe_architecture
from tools.probe.recipes import recipes
from topv.models.reasons import REASONS


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("t5gemma2", "encoder-decoder"),
        ("florence2", "encoder-decoder"),
        ("mllama", "cross-attention"),
        ("evolla", "cross-attention"),
        ("git", "hidden prefix"),
        ("mistral4", "no visual tokens"),
        ("pi0", "not generative"),
        ("diffusion_gemma", "not generative"),
        ("minimax_m3_vl", "window"),
    ],
)
def test_reason(model_type: str, reason: str) -> None:
    found = probe_architecture(model_type).reason
    assert found is not None
    assert found.startswith(reason)
    assert REASONS[reason] in found


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_a_missing_package_is_named() -> None:
    found = probe_architecture("fast_vlm").reason
    assert found is not None
    assert found.startswith("missing package")
    assert "timm" in found


def test_attaching_says_why() -> None:
    with pytest.raises(topv.UnsupportedError, match=REASONS["window"]):
        topv.attach(recipes()["minimax_m3_vl"].build(), topv.TopV())
