"""Build the untrained model of a preset and its processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .architecture import Architecture
from .internvl import InternVl
from .llava import Llava
from .presets import Preset
from .tokenizer import build_tokenizer, corpus

__all__ = ["build_model", "build_processor", "get_architecture", "prepare_processor"]


def get_architecture(preset: Preset) -> Architecture:
    """The model class that a preset trains."""
    return Llava() if preset.tiles == 1 else InternVl()


def build_processor(preset: Preset, tokenizer: Any = None) -> Any:
    """The processor of a preset; trains a tokenizer on the training questions when none is given."""
    tokenizer = tokenizer if tokenizer is not None else build_tokenizer(corpus(preset))
    return get_architecture(preset).processor(preset, tokenizer)


def prepare_processor(preset: Preset, out: Path, start: Path | None = None) -> Any:
    """The processor of a training: read from its folder; the first time, that of ``start`` or a newly trained one.

    A model of another class in ``start`` gives its tokenizer alone.
    """
    from transformers import AutoProcessor

    folder = out / "processor"
    if (folder / "processor_config.json").is_file():
        return AutoProcessor.from_pretrained(folder, local_files_only=True)
    if start is not None:
        processor = AutoProcessor.from_pretrained(start, local_files_only=True)
        if json.loads((start / "config.json").read_text())["model_type"] != get_architecture(preset).model_type:
            processor = build_processor(preset, processor.tokenizer)
    else:
        processor = build_processor(preset)
    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(folder)
    return processor


def build_model(preset: Preset, tokenizer: Any) -> Any:
    """A randomly initialised model, for the tokenizer of its processor; seed torch before calling."""
    model = get_architecture(preset).model(preset, tokenizer)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
