"""Which family file serves which model type; families are imported when first asked for."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from ..errors import UnsupportedError
from .family import Family

__all__ = ["FAMILIES", "family_of"]

FAMILIES: dict[str, str] = {
    "llava": "topv.models.llava:Llava",
}
"""transformers' `config.model_type` to "module:Class"."""


def family_of(model: nn.Module) -> Family:
    """The family that serves `model`.

    Raises:
        UnsupportedError: when none does.
    """
    # An adapter library's wrapper: the model inside it is what runs.
    unwrap: Any = getattr(model, "get_base_model", None)
    if unwrap is not None:
        model = unwrap()
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if model_type not in FAMILIES:
        raise UnsupportedError(
            f"{type(model).__name__} (model_type {model_type!r}) is not a model that topv can prune. Supported "
            f"model types: {', '.join(sorted(FAMILIES))}. Pass the vision-language model itself, not its decoder "
            "or a wrapper around it."
        )
    module, _, name = FAMILIES[model_type].partition(":")
    family: type[Family] = getattr(importlib.import_module(module), name)
    return family(model)
