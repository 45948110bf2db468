"""The bridge to lmms-eval: `lmms-eval --model topv --model_args pretrained=...,base=llava_hf,method=topv,keep=0.5`.

Nothing here imports lmms-eval before it is asked for; `lmms_models` holds the classes that lmms-eval makes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, unknown_name
from ..methods import Method
from ..methods.settings import UNPRUNED, build_method, method_class, read_settings, setting_types

__all__ = ["BASES", "INSTALL", "Request", "base_name", "constructor_arguments", "manifest", "read_request"]

BASES = ("llava_hf", "internvl_hf", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
"""lmms-eval's own names of the model classes that can be pruned: each keeps a stock model of transformers and calls
its `generate`."""

INSTALL = "Install it with: pip install 'topv[lmms]'"
"""What to do where lmms-eval, or what it needs of a base, is missing."""

_MODULE = "topv.evaluate.lmms_models"


def manifest() -> Any:
    """What lmms-eval registers under the name "topv": the payload of the entry point.

    Returns:
        A `ModelManifest` of lmms-eval.

    Raises:
        InputError: when lmms-eval is not installed, or has no such manifests.
    """
    try:
        from lmms_eval.models.registry_v2 import ModelManifest
    except ModuleNotFoundError as error:
        raise InputError(f"lmms-eval 0.7.3 or later is not installed ({error}). {INSTALL}") from error
    return ModelManifest(
        model_id="topv", simple_class_path=f"{_MODULE}.TopvSimple", chat_class_path=f"{_MODULE}.TopvChat"
    )


@dataclass(frozen=True)
class Request:
    """What was asked for with `--model_args`.

    Attributes:
        method: the method, or None for the unpruned model.
        arguments: what the stock class is constructed with.
    """

    method: Method | None
    arguments: dict[str, Any]


def base_name(arguments: Mapping[str, Any]) -> str:
    """The `base` among the arguments.

    Raises:
        InputError: when there is none, or it is not one of `BASES`.
    """
    if "base" not in arguments:
        raise InputError(
            f"base= is missing from --model_args: the lmms-eval model to wrap, one of {', '.join(BASES)}. Example: "
            "pretrained=llava-hf/llava-1.5-7b-hf,base=llava_hf,method=topv,keep=0.5"
        )
    base = str(arguments["base"])
    if base not in BASES:
        raise InputError(str(unknown_name("base", base, BASES)))
    return base


def read_request(arguments: Mapping[str, Any], known: frozenset[str]) -> Request:
    """Tell the method's settings from the stock class's arguments.

    Args:
        arguments: by name, with values as lmms-eval reads them: text, integers, floats and booleans. `method` names
            the method ("topv" by default; "none" is the unpruned model), and any setting of it may follow.
        known: the arguments that the stock class takes, as `constructor_arguments` lists them.

    Raises:
        InputError: for unknown methods and arguments, and values that do not fit.
    """
    name = str(arguments.get("method", "topv"))
    method = method_class(name)
    settings = set() if method is None else set(setting_types(method))
    rest = {key: value for key, value in arguments.items() if key not in ("base", "method")}
    unknown = [key for key in rest if key not in settings and key not in known]
    if unknown:
        of_method = f"Settings of {name}: {', '.join(sorted(settings))}. " if settings else ""
        if name == UNPRUNED:
            of_method = f"Method {UNPRUNED!r}, the unpruned model, has no settings. "
        hint = str(unknown_name("argument", unknown[0], settings | known)).partition(" Known arguments:")[0]
        raise InputError(
            f"--model_args: {hint} {of_method}Arguments of base {arguments['base']}: {', '.join(sorted(known))}."
        )
    texts = {key: str(value) for key, value in rest.items() if key in settings}
    return Request(
        method=build_method(name, read_settings(name, texts)),
        arguments={key: value for key, value in rest.items() if key not in settings},
    )


def constructor_arguments(stock: type) -> frozenset[str]:
    """The names of the arguments that `stock(...)` takes, those that it hands on to its parents included."""
    names: set[str] = set()
    for owner in stock.__mro__:
        if "__init__" not in vars(owner):
            continue
        _, *parameters = inspect.signature(vars(owner)["__init__"]).parameters.values()
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names |= {parameter.name for parameter in parameters if parameter.kind in named}
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return frozenset(names)
