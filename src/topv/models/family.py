"""What the runtime must know of a model: its decoder, and where an image's tokens sit in a prompt."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn

from ..errors import UnsupportedError
from ..layout import Picture, VisualLayout
from .encoded import Recalled, note, recall, refuse_lost
from .flops import LayerFlops, layer_flops
from .kv_width import kv_width
from .runs import run_lengths
from .tower import feeding_block

__all__ = ["Family", "Handle", "ShortLayer", "find_decoder"]

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


class Family:
    """The generic rule for a decoder-only vision-language model of transformers.

    A family file subclasses this and overrides what its models do differently; `layout` it always provides.

    Args:
        model: the model with its language-modelling head, or its base model.

    Raises:
        UnsupportedError: when a part that the rule relies on is missing.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.multimodal: nn.Module = getattr(model, "base_model", model)
        self.language_model: nn.Module = find_decoder(model)
        self.config: Any = self.multimodal.config
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
        return getattr(self.text_config, "num_key_value_heads", None) or self.text_config.num_attention_heads

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return (
            getattr(self.text_config, "head_dim", None)
            or self.text_config.hidden_size // self.text_config.num_attention_heads
        )

    @cached_property
    def layer_flops(self) -> tuple[LayerFlops, ...]:
        """What each decoder layer costs, by the length of its sequence.

        Raises:
            UnsupportedError: when a layer does something whose FLOPs are not known.
        """
        return tuple(layer_flops(self, index) for index in range(len(self.layers)))

    def visual_flops(self, layer: int, tokens: int, *, keys: int | None = None) -> int:
        """FLOPs that decoder layer `layer` spends on `tokens` visual tokens of one sample, as if they were alone.

        2 n W + 2 n m H (d_k + d_v), with W the weights of the linear maps that run on a token (of a mixture of experts
        those of the top-k), m keys (n, unless `keys` says otherwise) and H query heads of d_k and d_v dimensions: the
        count of FastV (arXiv 2403.06764, section 4.1) with the layer's own matrices in place of its 4 d^2 + 2 d m.
        Where a layer is recurrent its scan stands for the attention's products.

        Raises:
            UnsupportedError: when a decoder layer does something whose FLOPs are not known.
        """
        return self.layer_flops[layer].count(tokens, keys=keys).total

    @cached_property
    def kv_widths(self) -> tuple[int, ...]:
        """Numbers that each decoder layer keeps of one token in the KV cache: 0 for a layer that keeps none.

        Raises:
            UnsupportedError: when a layer's maps to keys and values are not found.
        """
        return tuple(kv_width(self, index) for index in range(len(self.layers)))

    @cached_property
    def cache_limits(self) -> tuple[int | None, ...]:
        """How many columns of a prompt each decoder layer keeps in its KV cache at most; None without a limit."""
        windows = (self.window(index) for index in range(len(self.layers)))
        return tuple(None if window is None else window - 1 for window in windows)

    @cached_property
    def key_layers(self) -> tuple[int, ...]:
        """For each decoder layer, the one whose keys it attends to."""
        return tuple(self.key_layer(index) for index in range(len(self.layers)))

    @property
    def image_ids(self) -> frozenset[int]:
        """Token ids of which every occurrence stands for one visual token of an image."""
        return _ids(self.config, "image_token_id", "image_token_index")

    @property
    def video_ids(self) -> frozenset[int]:
        """Token ids of which every occurrence stands for one visual token of a video."""
        return _ids(self.config, "video_token_id", "video_token_index")

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

    def placeholders(self, input_ids: torch.Tensor, inputs: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Which of `input_ids` (B, T) stand for a visual token: BoolTensor (B, T).

        Args:
            input_ids: LongTensor (B, T).
            inputs: the call's arguments by name, where ids alone do not tell.
        """
        ids = sorted(self.image_ids | self.video_ids)
        return torch.isin(input_ids, torch.tensor(ids, device=input_ids.device))

    def has_images(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the call's keyword arguments bring images or videos to encode, or already encoded."""
        encoded = inputs.get("mm_encoder_outputs") or {}
        # Older releases of transformers give Fuyu's pixels the second of these names.
        names = ("pixel_values", "image_patches")
        return any(value is not None for name, value in inputs.items() if name.startswith(names)) or any(
            encoded.get(kind) is not None for kind in ("image", "video")
        )

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture] | None:
        """The images of a call, in the order in which its arguments hold them, or None where the rule that lays them
        out is not known.

        Args:
            inputs: the call's arguments by name, on any device.

        Raises:
            LayoutError: when the arguments do not say enough.
        """
        return None

    def videos(self, inputs: Mapping[str, Any]) -> Sequence[Picture] | None:
        """The videos of a call, as `images`."""
        return None

    def mark(self, kind: str, inputs: Mapping[str, Any], output: Any) -> None:
        """Note on encoded pictures how they are laid out, for a later call that is given the features alone.

        Args:
            kind: "image" or "video".
            inputs: the arguments that they were encoded from, by name.
            output: what `get_image_features` or `get_video_features` returned.
        """
        note(self.images if kind == "image" else self.videos, inputs, output)

    def layout(self, placeholders: torch.Tensor, inputs: Mapping[str, Any]) -> VisualLayout:
        """Deal the placeholder positions (B, T), on the CPU, out to the images and videos of this call.

        Where no rule is known, each unbroken run of placeholders is a grid of its own in which no token has a place.

        Raises:
            LayoutError: when they do not fit.
        """
        recalled = recall(inputs)
        given = {name: value for name, value in inputs.items() if value is not None}
        one_of_each = slice(None, None, recalled.copies)
        whole = {**recalled.arguments, **given, "input_ids": inputs["input_ids"].cpu()[one_of_each]}
        return self._layout(placeholders[one_of_each], whole, recalled).repeated(recalled.copies)

    def kinds(self, placeholders: torch.Tensor, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Which placeholders (B, T) stand for tokens of an image, and which for those of a video."""
        is_video = placeholders & torch.isin(input_ids, torch.tensor(sorted(self.video_ids - self.image_ids)))
        return {"image": placeholders & ~is_video, "video": is_video}

    def _layout(self, placeholders: torch.Tensor, inputs: Mapping[str, Any], recalled: Recalled) -> VisualLayout:
        kinds = self.kinds(placeholders, inputs["input_ids"])
        is_video = kinds["video"]
        rules = {"image": self.images, "video": self.videos}
        queues: dict[str, Sequence[Picture] | None] = {}
        for kind, rule in rules.items():
            # Copies of a sample carry the marks of its pictures as often.
            queues[kind] = recalled.pictures.get(kind) if recalled.copies == 1 else None
            if queues[kind] is None:
                queues[kind] = rule(inputs)
            if queues[kind] is None and bool(kinds[kind].any()):
                if recalled.lost:
                    raise refuse_lost(self.model)
                queues[kind] = [Picture.placeless(length) for length in run_lengths(kinds[kind])]
        return VisualLayout.from_pictures(placeholders, _in_prompt_order(placeholders, is_video, queues))

    def tower_block(self) -> nn.Module:
        """The block of the vision tower whose output becomes visual tokens.

        Raises:
            UnsupportedError: when there is no one such block.
        """
        return feeding_block(self.multimodal, self.config)

    def pool_tower(self, kind: str, states: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The tower's states, grouped as the model groups them into visual tokens: (tokens, D), in prompt order.

        Args:
            kind: "image" or "video".
            states: what enters or leaves a part of `tower_block`, class token included.
            inputs: the arguments that the pictures were encoded from, by name.

        Raises:
            UnsupportedError: when it is not known how this model pools.
        """
        raise UnsupportedError(
            f"topv does not know how {type(self.model).__name__} pools the {kind}s of its vision tower into tokens, so "
            "no evidence can be read there. Use a method that reads the decoder, such as TopV(stage='decoder')."
        )

    def fixed_grid(self) -> tuple[int, int]:
        """The (h, w) grid that every image fills, for models that scale all images to one size.

        Raises:
            UnsupportedError: when grids differ from image to image.
        """
        raise UnsupportedError(f"{type(self.model).__name__} has no one grid size: it depends on the image.")


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


def _ids(config: Any, *names: str) -> frozenset[int]:
    return frozenset(value for name in names if isinstance(value := getattr(config, name, None), int))


def _in_prompt_order(
    placeholders: torch.Tensor, is_video: torch.Tensor, queues: Mapping[str, Sequence[Picture] | None]
) -> list[Picture]:
    """Images and videos merged into the order in which the prompts hold their placeholders."""
    waiting = {kind: iter(pictures or ()) for kind, pictures in queues.items()}
    ordered: list[Picture] = []
    for marks, video in zip(placeholders, is_video, strict=True):
        kinds = video[marks.nonzero().squeeze(1)].tolist()
        at = 0
        while at < len(kinds):
            picture = next(waiting["video" if kinds[at] else "image"], None)
            if picture is None:
                break
            ordered.append(picture)
            at += picture.tokens
    for left in waiting.values():
        ordered += left
    return ordered
