"""Build the untrained model of a preset and its processor."""

from __future__ import annotations

from typing import Any

from .architecture import Architecture
from .internvl import InternVl
from .llava import Llava
from .presets import Preset
from .tokenizer import build_tokenizer, corpus

__all__ = ["build_model", "build_processor", "get_architecture"]


def get_architecture(preset: Preset) -> Architecture:
    """The model class that a preset trains."""
    return Llava() if preset.tiles == 1 else InternVl()


def build_processor(preset: Preset, tokenizer: Any = None) -> Any:
    """The processor of a preset; trains a tokenizer on the training questions when none is given."""
    tokenizer = tokenizer if tokenizer is not None else build_tokenizer(corpus(preset))
    return get_architecture(preset).processor(preset, tokenizer)


def build_model(preset: Preset, tokenizer: Any) -> Any:
    """A randomly initialised model, for the tokenizer of its processor; seed torch before calling."""
    model = get_architecture(preset).model(preset, tokenizer)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
