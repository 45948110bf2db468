"""The bundled models: a small LLaVA trained on the scenes of `topv.scenes`, and its tiled sibling.

Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["MINI_PATH", "TILED_PATH", "load_mini"]

MINI_PATH = Path(__file__).parent / "weights"
"""Folder of the bundled model: ordinary Hugging Face files, readable by ``from_pretrained``."""
TILED_PATH = Path(__file__).parent / "tiled"
"""Folder of its tiled sibling, an InternVL: the same scenes, cut into tiles."""


def load_mini(tiled: bool = False) -> tuple[Any, Any]:
    """Load a bundled model without any network.

    Args:
        tiled: the sibling that sees four tiles and a thumbnail, in place of the one that sees the image whole.

    Returns:
        model, a ``LlavaForConditionalGeneration`` or, tiled, an ``InternVLForConditionalGeneration``, in float32 on
        the CPU, in evaluation mode, and its processor.

    Raises:
        FileNotFoundError: the weights are not there.
    """
    folder, preset = (TILED_PATH, "tiled") if tiled else (MINI_PATH, "cpu")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"No bundled model at {folder}; the installation is incomplete. Reinstall topv, or in a checkout train one"
            f" with `python -m training.train --preset {preset}` and write it there with `--export`."
        )
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoProcessor.from_pretrained(folder, local_files_only=True)
