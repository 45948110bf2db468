"""A model's decoder: its layers and their kinds, windows and keys, and what pruning must know to shorten them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn

from ..errors import UnsupportedError

__all__ = ["Decoder", "Handle", "ShortLayer", "find_decoder"]

ATTENTIONS = ("self_attn", "attention", "self_attention")
MIXERS = (*ATTENTIONS, "linear_attn", "conv", "mamba", "mixer")
MLPS = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "fc1")
RECURRENT = ("linear_attention", "conv", "mamba", "recurrent")
POINTWISE = ("mlp", "moe")


class ShortLayer(Protocol):
    """A decoder layer that sees a shortened sequence, while it runs.

    Attributes:
        cache: the KV cache or None.
        removed: columns that this forward has dropped from the layer, in every row.
    """

    @property
    def cache(self) -> Any: ...

    @property
    def removed(self) -> int: ...

    def queries(self, device: torch.device) -> torch.Tensor:
        """LongTensor (B, Q) on `device`: the prompt column of each query, columns in the KV cache included; any column
        where a slot is only padding."""


class Handle(Protocol):
    """Something put on a model, which `remove` takes off again."""

    def remove(self) -> None: ...


class Decoder:
    """The generic rule for the decoder of a vision-language model of transformers.

    Args:
        model: the model with its language-modelling head, or its base model.

    Attributes:
        model: the model as given.
        multimodal: the model without its language-modelling head.
        language_model: the innermost module that holds the decoder layers.
        text_config: its configuration.
        layers: the decoder layers that run, in order.

    Raises:
        UnsupportedError: when a part that the rule relies on is missing.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.multimodal: nn.Module = getattr(model, "base_model", model)
        self.language_model: nn.Module = find_decoder(model)
        text_config: Any = self.language_model.config
        self.text_config = text_config
        depth: int = self.text_config.num_hidden_layers
        self.layers: list[nn.Module] = list(_layer_list(self.language_model) or ())[:depth]
        for layer in (self.layers[0], self.layers[-1]):
            self.attention(layer)
            self.mlp(layer)

    def attention(self, layer: nn.Module) -> nn.Module:
        """The module of a decoder layer that mixes tokens: attention, or what stands in its place."""
        return self._child(layer, MIXERS)

    def mlp(self, layer: nn.Module) -> nn.Module:
        """The MLP (or mixture-of-experts) module of a decoder layer; its mixer where a layer is nothing else."""
        return self._child(layer, (*MLPS, "mixer"))

    def _child(self, layer: nn.Module, names: Sequence[str]) -> nn.Module:
        for name in names:
            child = getattr(layer, name, None)
            if isinstance(child, nn.Module):
                return child
        raise UnsupportedError(
            f"{type(layer).__name__} has none of the modules {', '.join(names)}, where topv reads its evidence."
        )

    def _kind(self, layer: int) -> str | None:
        """What transformers calls the kind of decoder layer `layer`, or None where all are alike."""
        kinds: Sequence[str] = getattr(self.text_config, "layer_types", None) or ()
        return kinds[layer] if layer < len(kinds) else None

    def is_recurrent(self, layer: int) -> bool:
        """Whether decoder layer `layer` carries a state from token to token instead of keeping keys."""
        kind = self._kind(layer)
        if kind is not None:
            return kind in RECURRENT
        return not any(isinstance(getattr(self.layers[layer], name, None), nn.Module) for name in ATTENTIONS)

    def mixes_neighbours(self, layer: int) -> bool:
        """Whether decoder layer `layer` convolves its sequence beside its attention."""
        block: Any = self.layers[layer]
        # Layers may also embed each token together with those before it (per-layer embeddings of n-grams).
        return (self._kind(layer) or "").startswith("hybrid") or getattr(block, "ple", None) is not None

    def masks_itself(self, layer: int) -> bool:
        """Whether decoder layer `layer` is told which columns of a forward are padding, and masks the rest itself."""
        return self.is_recurrent(layer)

    def keeps_keys(self, layer: int) -> bool:
        """Whether decoder layer `layer` has keys and values in the KV cache."""
        return self._kind(layer) not in POINTWISE and not self.is_recurrent(layer)

    @property
    def lends_keys(self) -> bool:
        """Whether some decoder layers attend to the keys of earlier ones."""
        return bool(getattr(self.text_config, "num_kv_shared_layers", 0))

    def key_layer(self, layer: int) -> int:
        """The layer whose keys decoder layer `layer` attends to: another one where layers share a KV cache."""
        attention = getattr(self.layers[layer], "self_attn", None)
        if not self.lends_keys or not getattr(attention, "is_kv_shared_layer", False):
            return layer
        shared = getattr(attention, "kv_shared_layer_index", None)
        if shared is not None:
            return int(shared)
        kinds, first = self.text_config.layer_types, len(self.layers) - self.text_config.num_kv_shared_layers
        return max(i for i in range(first) if kinds[i] == kinds[layer])

    def pinned(self, cache: Any, layer: int) -> int:
        """Entries at the beginning of decoder layer `layer` of a cache that its window never lets go."""
        return 0

    def window(self, layer: int) -> int | None:
        """How many columns back decoder layer `layer` sees, itself included, or None when it sees all."""
        kind = self._kind(layer)
        if kind == "chunked_attention":
            return getattr(self.text_config, "attention_chunk_size", None)
        if kind is not None and "sliding" not in kind:
            return None
        if kind is None and not getattr(self.text_config, "use_sliding_window", True):
            return None
        return getattr(self.text_config, "sliding_window", None)

    @property
    def mixed(self) -> bool:
        """Whether decoder layers are of several kinds, each with masks of its own."""
        return len(set(getattr(self.text_config, "layer_types", None) or ())) > 1

    @property
    def rejoins(self) -> bool:
        """Whether the decoder adds something at prompt positions after some of its layers (deepstack)."""
        return any("deepstack" in name for name in inspect.signature(self.language_model.forward).parameters)

    def rejoined(self, inputs: Mapping[str, Any]) -> frozenset[int]:
        """The layers behind which it does so in a call of the decoder with these arguments."""
        held = next((value for name, value in inputs.items() if "deepstack" in name and value is not None), None)
        if isinstance(held, Mapping):
            # By the layer before which each is added.
            return frozenset(layer - 1 for layer in held)
        return frozenset(range(0 if held is None else len(held)))

    @property
    def kv_heads(self) -> int:
        """Key-value heads of a decoder layer."""
        return int(getattr(self.text_config, "num_key_value_heads", None) or self.text_config.num_attention_heads)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        config = self.text_config
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    @cached_property
    def cache_limits(self) -> tuple[int | None, ...]:
        """How many columns of a prompt each decoder layer keeps in its KV cache at most; None without a limit."""
        windows = (self.window(index) for index in range(len(self.layers)))
        return tuple(None if window is None else window - 1 for window in windows)

    @cached_property
    def key_layers(self) -> tuple[int, ...]:
        """For each decoder layer, the one whose keys it attends to."""
        return tuple(self.key_layer(index) for index in range(len(self.layers)))

    def corrections(self, short: Callable[[int], ShortLayer | None]) -> Sequence[Handle]:
        """Put hooks on parts of the decoder that read a token's place off its slot, to make them read its column.

        Args:
            short: what decoder layer `index` works on at the moment, or None while it sees the whole prompt.

        Returns:
            The hooks' handles, removed when the pruning is detached.
        """
        return ()

    @property
    def asks_for_slots(self) -> bool:
        """Whether decoder layers ask the cache, while they run, how many entries they hold themselves."""
        return False

    @property
    def fillers(self) -> Mapping[str, int]:
        """By name, arguments of decoder layers that hold a number per token, and what they hold at padding."""
        return {}

    @property
    def generator(self) -> nn.Module | None:
        """The part whose own `generate` the model's `generate` calls, past the model's `forward`; None where there is
        none."""
        return None


def _layer_list(module: Any) -> nn.ModuleList | None:
    for name in ("layers", "h", "blocks"):
        layers = getattr(module, name, None)
        if isinstance(layers, nn.ModuleList) and len(layers):
            return layers
    return None


def find_decoder(model: nn.Module) -> nn.Module:
    """The innermost module that holds the decoder's list of layers.

    Raises:
        UnsupportedError: when there is none.
    """
    multimodal = getattr(model, "base_model", model)
    decoders = [getattr(multimodal, name, None) for name in ("language_model", "text_model")]
    get_decoder: Any = getattr(model, "get_decoder", None)
    if get_decoder is not None:
        decoders.append(get_decoder())
    for module in decoders:
        for _ in range(4):
            if not isinstance(module, nn.Module):
                break
            if _layer_list(module) is not None:
                return module
            module = getattr(module, "model", None) or getattr(module, "decoder", None)
    raise UnsupportedError(
        f"{type(model).__name__} has no `language_model.layers` list of decoder layers where topv can prune."
    )
