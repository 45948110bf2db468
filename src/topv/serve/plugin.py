"""The entry point `vllm.general_plugins`: names for pruned models, which nothing uses until they are asked for."""

from __future__ import annotations

import logging

from ..errors import TopVError
from .supported import ARCHITECTURES, check_version, served_name

__all__ = ["register"]


def register() -> None:
    """Register the pruned architectures with vLLM. Its own models are left alone. May be called again.

    vLLM calls this in every process. On a vLLM that the plugin was not written for nothing is registered, with a
    warning, so that other models can still be served.
    """
    try:
        check_version()
    except TopVError as error:
        logging.getLogger("vllm.topv").warning("topv registers no pruned models: %s", error)
        return
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.model_executor.models.registry import ModelRegistry

    from .checks import ConfigChecks

    for architecture, home in ARCHITECTURES.items():
        name = served_name(architecture)
        ModelRegistry.register_model(name, home)
        MODELS_CONFIG_MAP[name] = ConfigChecks
