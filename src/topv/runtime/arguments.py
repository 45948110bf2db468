"""Reading and changing a module call's arguments by name, however the caller passed them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["Signature"]


class Signature:
    """The names of a module's positional parameters.

    Args:
        module: the module whose `forward` is called.
    """

    def __init__(self, module: nn.Module) -> None:
        self.names = _positional(module.forward)

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Signature:
        """The names of a function's positional parameters."""
        signature = cls.__new__(cls)
        signature.names = _positional(function)
        return signature

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments by name."""
        return {**dict(zip(self.names, args, strict=False)), **kwargs}

    def rebuild(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], changed: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`args` and `kwargs` with the values of `changed` put where their old ones were."""
        positions = {name: index for index, name in enumerate(self.names[: len(args)])}
        new_args = list(args)
        new_kwargs = dict(kwargs)
        for name, value in changed.items():
            if name in positions:
                new_args[positions[name]] = value
            else:
                new_kwargs[name] = value
        return tuple(new_args), new_kwargs


def _positional(function: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds]
