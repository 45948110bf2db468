"""Methods from a name and settings as text, as a command line or another program's arguments give them."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from ..errors import InputError, unknown_name
from . import METHODS
from .base import Method

__all__ = ["UNPRUNED", "build_method", "method_class", "read_settings", "setting_types"]

UNPRUNED = "none"
"""The name of the unpruned model among the methods."""


def method_class(name: str) -> type[Method] | None:
    """The method of this name; None for the unpruned model.

    Raises:
        InputError: for an unknown name, listing the known ones.
    """
    if name == UNPRUNED:
        return None
    if name not in METHODS:
        raise InputError(str(unknown_name("method", name, (UNPRUNED, *METHODS))))
    return METHODS[name]


def setting_types(method: type[Method]) -> dict[str, Any]:
    """The type of each setting that the method's constructor takes."""
    hints = typing.get_type_hints(method)
    return {field.name: hints[field.name] for field in dataclasses.fields(method) if field.init}


def read_settings(name: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """The settings of method `name` by name, each as a value of the type that it is annotated with.

    Raises:
        InputError: for unknown names and settings, values that do not fit, and settings of the unpruned model.
    """
    method = method_class(name)
    if method is None:
        if texts:
            raise InputError(f"method {UNPRUNED!r} is the unpruned model and has no settings, got {dict(texts)}.")
        return {}
    known = setting_types(method)
    settings = {}
    for key, text in texts.items():
        if key not in known:
            raise InputError(f"method {name!r}: {unknown_name('setting', key, known)}")
        settings[key] = _convert(text, known[key], f"{name}:{key}={text}")
    return settings


def build_method(name: str, settings: Mapping[str, Any]) -> Method | None:
    """The method of this name with these settings, as `read_settings` returns them; None for the unpruned model.

    Raises:
        InputError: for an unknown name, or values that the method refuses.
    """
    method = method_class(name)
    if method is None:
        return None
    try:
        return method(**settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"method {name!r}: {error}") from error


def _convert(text: str, kind: Any, where: str) -> Any:
    """`text` as a value of the annotated type `kind`.

    Raises:
        InputError: when it is none.
    """
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if text not in choices:
            raise InputError(f"{where}: {unknown_name('value', text, choices)}")
        return text
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    # An int is also a float, and the type of a budget matters: 64 tokens, 0.5 of them.
    for option in sorted(options, key=_ORDER.index):
        value = _READERS[option](text)
        if value is not _NO:
            return value
    raise InputError(f"{where}: expected {' or '.join(_WORDS[option] for option in options)}.")


_NO = object()
_NONE_TYPE = type(None)


def _number(kind: type[int] | type[float]) -> Any:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            return _NO

    return read


_READERS: dict[Any, Any] = {
    bool: lambda text: {"true": True, "false": False}.get(text.lower(), _NO),
    _NONE_TYPE: lambda text: None if text.lower() == "none" else _NO,
    int: _number(int),
    float: _number(float),
    str: lambda text: text,
}
_ORDER = list(_READERS)
_WORDS = {
    bool: "true or false",
    _NONE_TYPE: "none",
    int: "an integer",
    float: "a number",
    str: "text",
}
