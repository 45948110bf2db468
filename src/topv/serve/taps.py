"""Reading evidence in vLLM's vision towers, while they make an image's features."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedError

__all__ = ["TowerTaps"]

_PREFIX = "encoder_"
_NORMS = ("layer_norm1", "norm1", "layernorm_before")
_ATTENTIONS = ("self_attn", "attn", "attention")
_MLPS = ("mlp",)


class TowerTaps:
    """Taps on the block of a vision tower whose output becomes visual tokens.

    Args:
        block: the block. vLLM calls the `forward` of some blocks directly, past their hooks, so only the modules
            inside are tapped.
        needs: the evidence that the method asks for; names that begin with "encoder_" are read here.

    Raises:
        UnsupportedError: when the block has no such modules.
    """

    def __init__(self, block: nn.Module, needs: frozenset[str]) -> None:
        self._of_thread = threading.local()
        places = {
            "source": (_NORMS, True),
            "pre_norm": (_ATTENTIONS, True),
            "attention": (_ATTENTIONS, False),
            "post_norm": (_MLPS, True),
            "mlp": (_MLPS, False),
        }
        for name in sorted(need for need in needs if need.startswith(_PREFIX)):
            names, enters = places[name.removeprefix(_PREFIX)]
            module = _child(block, names)
            if enters:
                entering: Any = functools.partial(self._entering, name)
                module.register_forward_pre_hook(entering, with_kwargs=True)
            else:
                module.register_forward_hook(functools.partial(self._leaving, name))

    @contextmanager
    def reading(self) -> Iterator[dict[str, torch.Tensor]]:
        """What is read while images are encoded in the block: by name, float32, in the tower's own layout."""
        read: dict[str, torch.Tensor] = {}
        self._of_thread.read = read
        try:
            yield read
        finally:
            self._of_thread.read = None

    def _put(self, name: str, states: torch.Tensor) -> None:
        read = getattr(self._of_thread, "read", None)
        if read is not None:
            # Fused norms write into what they are given, so what was read must be a copy.
            read[name] = states.detach().to(torch.float32, copy=True)

    def _entering(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._put(name, args[0] if args else next(iter(kwargs.values())))

    def _leaving(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._put(name, output[0] if isinstance(output, tuple) else output)


def _child(block: nn.Module, names: tuple[str, ...]) -> nn.Module:
    for name in names:
        if isinstance(child := getattr(block, name, None), nn.Module):
            return child
    raise UnsupportedError(f"{type(block).__name__} has none of {', '.join(names)}, where evidence is read.")
