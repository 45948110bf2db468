"""How many bytes of keys and values a prefill left in the cache, counted from its tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedError

__all__ = ["PrefillProbe", "kv_cache_bytes"]


def kv_cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values that a transformers cache holds; the states of recurrent layers are neither.

    Raises:
        UnsupportedError: when the cache is not made of layers with `keys` and `values`.
    """
    layers = getattr(cache, "layers", None)
    if layers is None:
        raise UnsupportedError(f"{type(cache).__name__} has no `layers` whose keys and values could be counted.")
    states = (getattr(layer, name, None) for layer in layers for name in ("keys", "values"))
    return sum(state.numel() * state.element_size() for state in states if isinstance(state, torch.Tensor))


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
        cache = getattr(output, "past_key_values", None)
        if self.kv_bytes is None and cache is not None:
            self.kv_bytes = kv_cache_bytes(cache)
