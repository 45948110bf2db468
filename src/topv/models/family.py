"""What the runtime must know of a model: its decoder, and where an image's tokens sit in a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedError
from ..layout import Picture, VisualLayout

__all__ = ["Family"]


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
        language_model = getattr(self.multimodal, "language_model", None)
        layers = getattr(language_model, "layers", None)
        if not isinstance(language_model, nn.Module) or not isinstance(layers, nn.ModuleList) or not len(layers):
            raise UnsupportedError(
                f"{type(model).__name__} has no `language_model.layers` list of decoder layers where topv can prune."
            )
        self.language_model: nn.Module = language_model
        self.config: Any = self.multimodal.config
        text_config: Any = language_model.config
        self.text_config = text_config
        depth: int = self.text_config.num_hidden_layers
        self.layers: list[nn.Module] = list(layers)[:depth]
        self._check_layers()

    def _check_layers(self) -> None:
        if getattr(self.text_config, "sliding_window", None) is not None or getattr(
            self.text_config, "attention_chunk_size", None
        ):
            raise UnsupportedError(
                f"{type(self.model).__name__} has sliding-window or chunked attention, whose windows topv cannot "
                "yet measure in the positions of the unpruned prompt. Use a checkpoint with full attention."
            )
        for layer in (self.layers[0], self.layers[-1]):
            self.attention(layer)
            self.mlp(layer)

    def attention(self, layer: nn.Module) -> nn.Module:
        """The attention module of a decoder layer."""
        return self._child(layer, "self_attn")

    def mlp(self, layer: nn.Module) -> nn.Module:
        """The MLP (or mixture-of-experts) module of a decoder layer."""
        return self._child(layer, "mlp")

    def _child(self, layer: nn.Module, name: str) -> nn.Module:
        child = getattr(layer, name, None)
        if not isinstance(child, nn.Module):
            raise UnsupportedError(f"{type(layer).__name__} has no `{name}` module, where topv reads its evidence.")
        return child

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

    def visual_flops(self, layer: int, tokens: int) -> int:
        """FLOPs that decoder layer `layer` spends on `tokens` visual tokens of one sample.

        2 n W + 4 n^2 H d, with W the weights of the layer's linear maps, H query heads and head dimension d: the
        count of FastV (arXiv 2403.06764, section 4.1) with the layer's own matrices in place of its 4 d^2 + 2 d m.
        """
        # By their features, since a quantized module packs its weights.
        modules: Any = self.layers[layer].modules()
        weights: int = sum(m.in_features * m.out_features for m in modules if _is_linear(m))
        return 2 * tokens * weights + 4 * tokens**2 * self.text_config.num_attention_heads * self.head_dim

    @property
    def image_ids(self) -> frozenset[int]:
        """Token ids of which every occurrence stands for one visual token of an image."""
        return _ids(self.config, "image_token_id", "image_token_index")

    @property
    def video_ids(self) -> frozenset[int]:
        """Token ids of which every occurrence stands for one visual token of a video."""
        return _ids(self.config, "video_token_id", "video_token_index")

    def placeholders(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Which of `input_ids` (B, T) stand for a visual token: BoolTensor (B, T)."""
        ids = sorted(self.image_ids | self.video_ids)
        return torch.isin(input_ids, torch.tensor(ids, device=input_ids.device))

    def has_images(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the call's keyword arguments bring images or videos to encode, or already encoded."""
        encoded = inputs.get("mm_encoder_outputs") or {}
        return any(value is not None for name, value in inputs.items() if name.startswith("pixel_values")) or any(
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

    def layout(self, placeholders: torch.Tensor, inputs: Mapping[str, Any]) -> VisualLayout:
        """Deal the placeholder positions (B, T), on the CPU, out to the images and videos of this call.

        Where no rule is known, each unbroken run of placeholders is a grid of its own in which no token has a place.

        Raises:
            LayoutError: when they do not fit.
        """
        ids = inputs["input_ids"].cpu()
        is_video = placeholders & torch.isin(ids, torch.tensor(sorted(self.video_ids - self.image_ids)))
        kinds = {"image": placeholders & ~is_video, "video": is_video}
        queues = {"image": self.images(inputs), "video": self.videos(inputs)}
        for kind, held in queues.items():
            if held is None and bool(kinds[kind].any()):
                queues[kind] = [Picture.placeless(length) for length in run_lengths(kinds[kind])]
        return VisualLayout.from_pictures(placeholders, _in_prompt_order(placeholders, is_video, queues))

    def fixed_grid(self) -> tuple[int, int]:
        """The (h, w) grid that every image fills, for models that scale all images to one size.

        Raises:
            UnsupportedError: when grids differ from image to image.
        """
        raise UnsupportedError(f"{type(self.model).__name__} has no one grid size: it depends on the image.")


def run_lengths(marks: torch.Tensor) -> list[int]:
    """Lengths of the unbroken runs of true entries in each row of (B, T), row by row.

    >>> run_lengths(torch.tensor([[True, True, False, True]]))
    [2, 1]
    """
    lengths: list[int] = []
    for row in marks.tolist():
        run = 0
        for marked in [*row, False]:
            if marked:
                run += 1
            elif run:
                lengths.append(run)
                run = 0
    return lengths


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


def _is_linear(module: Any) -> bool:
    """Whether `module` is a linear map itself, and not an adapter's wrapper around one."""
    if not (hasattr(module, "in_features") and hasattr(module, "out_features")):
        return False
    return not any(hasattr(child, "in_features") for child in module.children())
