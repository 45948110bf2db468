"""The engine arguments that serve a model pruned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from .settings import ServeSettings
from .supported import check_version, served_name

__all__ = ["engine_arguments"]


def engine_arguments(
    model: str | Path,
    settings: ServeSettings | Mapping[str, Any],
    *,
    hf_overrides: Mapping[str, Any] | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """What `vllm.LLM(**...)` or `vllm.AsyncEngineArgs(**...)` need to serve a model pruned.

    Args:
        model: the directory of a saved model, or "owner/name" on the hub.
        settings: what to prune, or the mapping that says so: "keep", "max_keep", "method" and its settings.
        hf_overrides: further overrides of the model's configuration.
        revision: of a model on the hub.

    Returns:
        `model`, `hf_overrides` and, where it is given, `revision`.

    Raises:
        InputError: when vLLM is missing, the model's configuration cannot be read, or a setting does not fit.
        UnsupportedError: for an architecture or a vLLM that is not supported.
    """
    check_version()
    if not isinstance(settings, ServeSettings):
        settings = ServeSettings.read(settings)
    overrides = dict(hf_overrides or {})
    for name in ("architectures", "topv"):
        if name in overrides:
            raise InputError(f"hf_overrides has {name!r}, which topv fills in itself. Leave it out.")
    architectures = [served_name(name) for name in _architectures(model, revision)]
    arguments = {
        "model": str(model),
        "hf_overrides": {**overrides, "architectures": architectures, "topv": settings.to_dict()},
    }
    return arguments if revision is None else {**arguments, "revision": revision}


def _architectures(model: str | Path, revision: str | None) -> list[str]:
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(str(model), revision=revision)
    except Exception as error:
        raise InputError(f"the configuration of model {str(model)!r} cannot be read: {error}") from error
    architectures = config.get("architectures")
    if not architectures:
        raise InputError(
            f"the configuration of model {str(model)!r} names no architecture. Expected the directory of a saved "
            "vision-language model, or its id on the hub."
        )
    return list(architectures)
