"""How many bytes of keys and values a prefill left in the cache, counted from its tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedError
from ..runtime.arguments import output_cache

__all__ = ["PrefillProbe", "held_bytes", "kv_cache_bytes"]

_STATES = ("keys", "values", "_quantized_keys", "_quantized_values")
"""Attributes of a cache's layers; the last two are those of transformers' quantized layers."""


def kv_cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values that a transformers cache holds; the states of recurrent layers are neither.

    Of a quantized cache these are the packed states with their scales and zero points, and what is not yet quantized.

    Raises:
        UnsupportedError: when the cache is not made of layers with `keys` and `values`.
    """
    layers = getattr(cache, "layers", None)
    if layers is None:
        raise UnsupportedError(f"{type(cache).__name__} has no `layers` whose keys and values could be counted.")
    return sum(held_bytes(getattr(layer, name, None)) for layer in layers for name in _STATES)


def held_bytes(state: Any) -> int:
    """Bytes of the tensors that `state` is made of: a tensor, one that wraps others, or a collection of either."""
    if isinstance(state, torch.Tensor):
        if not hasattr(state, "__tensor_flatten__"):
            return state.numel() * state.element_size()
        names, _ = state.__tensor_flatten__()
        return sum(held_bytes(getattr(state, name)) for name in names)
    if isinstance(state, dict):
        state = state.values()
    elif not isinstance(state, (tuple, list)):
        return 0
    return sum(held_bytes(part) for part in state)


class PrefillProbe:
    """Reads the KV cache as the first forward inside its `with` block left it; `generate` only grows it later.

    Args:
        model: the model whose first call is the prefill.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handle: Any = None
        self.kv_bytes: int | None = None

    def __enter__(self) -> PrefillProbe:
        self._handle = self._model.register_forward_hook(self._read)
        return self

    def __exit__(self, *exception: object) -> None:
        self._handle.remove()

    def _read(self, module: nn.Module, args: Any, output: Any) -> None:
        cache = output_cache(output)
        if self.kv_bytes is None and cache is not None:
            self.kv_bytes = kv_cache_bytes(cache)
