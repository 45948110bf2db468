"""Reading evidence in a vision tower, of transformers' models or of vLLM's, while it makes an image's features."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..errors import UnsupportedError

__all__ = ["PREFIX", "TowerTaps"]

PREFIX = "encoder_"
"""What the names of the evidence that is read in a vision tower begin with."""

_WEIGHTS = "weights"
_ATTENTIONS = ("self_attn", "attention", "attn")
_MLPS = ("mlp",)
_NORMS = ("layer_norm1", "norm1", "layernorm_before")
_STATES = "hidden_states"

Weigh = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], torch.Tensor]


class TowerTaps:
    """Taps on the block of a vision tower whose output becomes visual tokens.

    Args:
        needs: the evidence that the method asks for; names that begin with "encoder_" are read here.
        weigh: reads "encoder_weights" off the block's attention module and the arguments of its call; None where they
            cannot be had.
        inside: whether only modules inside the block are tapped, since its own `forward` is called past its hooks.
        copies: whether what is read is copied, to float32, since later kernels write into it.

    Raises:
        ValueError: when some evidence is of no known kind.
    """

    def __init__(
        self, needs: frozenset[str], *, weigh: Weigh | None = None, inside: bool = False, copies: bool = False
    ) -> None:
        self._needs = {name.removeprefix(PREFIX) for name in needs if name.startswith(PREFIX)}
        self._weigh, self._inside, self._copies = weigh, inside, copies
        self._of_thread = threading.local()
        known = {"source", "pre_norm", "attention", "post_norm", "mlp"} | ({_WEIGHTS} if weigh is not None else set())
        if self._needs - known:
            raise ValueError(
                f"unknown evidence of the vision tower: {', '.join(sorted(self._needs - known))}. Known: "
                f"{', '.join(sorted(known))}."
            )

    @property
    def wanted(self) -> bool:
        """Whether there is anything to read."""
        return bool(self._needs)

    def attach(self, block: nn.Module) -> list[RemovableHandle]:
        """Put the taps on `block`, and return what removes them; nothing is put on where nothing is wanted.

        Raises:
            UnsupportedError: when the block lacks a module that is read.
        """
        if not self._needs:
            return []
        attention, mlp = _child(block, _ATTENTIONS), _child(block, _MLPS)
        entered = {"pre_norm": attention, "post_norm": mlp}
        left = {"attention": attention, "mlp": mlp}
        if "source" in self._needs:
            entered["source"] = _child(block, _NORMS) if self._inside else block
        handles = []
        for name in sorted(self._needs - {_WEIGHTS}):
            if name in entered:
                entering = functools.partial(self._entering, name, *_states_parameter(entered[name]))
                handles.append(entered[name].register_forward_pre_hook(entering, with_kwargs=True))
            else:
                handles.append(left[name].register_forward_hook(functools.partial(self._leaving, name)))
        if _WEIGHTS in self._needs:
            handles.append(attention.register_forward_pre_hook(self._weighing, with_kwargs=True))
        return handles

    @contextmanager
    def reading(self) -> Iterator[dict[str, torch.Tensor]]:
        """Read, in this thread, while pictures are encoded in the block.

        Yields:
            What is read, by its name without "encoder_", in the tower's own layout: detached from any graph.
        """
        read: dict[str, torch.Tensor] = {}
        self._of_thread.read = read
        try:
            yield read
        finally:
            self._of_thread.read = None

    @property
    def _read(self) -> dict[str, torch.Tensor] | None:
        """What this thread has read so far, or None while it reads nothing."""
        return getattr(self._of_thread, "read", None)

    def _put(self, name: str, states: torch.Tensor) -> None:
        if (read := self._read) is not None:
            read[name] = states.detach().to(torch.float32, copy=True) if self._copies else states.detach()

    def _entering(
        self, name: str, parameter: str, at: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if len(args) > at:
            self._put(name, args[at])
        else:
            self._put(name, kwargs[parameter] if parameter in kwargs else next(iter(kwargs.values())))

    def _leaving(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._put(name, output[0] if isinstance(output, tuple) else output)

    @torch.no_grad()
    def _weighing(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._read is not None and self._weigh is not None:
            self._put(_WEIGHTS, self._weigh(module, args, kwargs))


def _states_parameter(module: nn.Module) -> tuple[str, int]:
    """The name and the place of the parameter that takes a module's states: its first, where none is named for them."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(module.forward).parameters
    names = [name for name, parameter in parameters.items() if parameter.kind in kinds]
    if _STATES in parameters or not names:
        return _STATES, names.index(_STATES) if _STATES in names else 0
    return names[0], 0


def _child(block: nn.Module, names: tuple[str, ...]) -> nn.Module:
    for name in names:
        if isinstance(child := getattr(block, name, None), nn.Module):
            return child
    raise UnsupportedError(f"{type(block).__name__} has none of {', '.join(names)}, where evidence is read.")
