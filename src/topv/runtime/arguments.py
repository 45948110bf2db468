"""Reading and changing a module call's arguments by name, however the caller passed them."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

__all__ = ["Signature"]


class Signature:
    """The names of a module's positional parameters.

    Args:
        module: the module whose `forward` is called.
    """

    def __init__(self, module: nn.Module) -> None:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(module.forward).parameters.values()
        self.names = [p.name for p in parameters if p.kind in kinds]

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
