"""The bundled model: a small LLaVA trained on drawn scenes, its scene generator, trainer and scorer.

Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["MINI_PATH", "load_mini"]

MINI_PATH = Path(__file__).parent / "weights"
"""Folder of the bundled model: ordinary Hugging Face files, readable by ``from_pretrained``."""


def load_mini() -> tuple[Any, Any]:
    """Load the bundled model without any network.

    Returns:
        model, a ``LlavaForConditionalGeneration`` in float32 on the CPU, in evaluation mode, and its
        ``LlavaProcessor``.
    """
    if not (MINI_PATH / "config.json").is_file():
        raise FileNotFoundError(
            f"No bundled model at {MINI_PATH}; the installation is incomplete. Reinstall topv, or train one with"
            " `python -m topv.mini.train` and write it there with `--export`."
        )
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(MINI_PATH, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoProcessor.from_pretrained(MINI_PATH, local_files_only=True)
