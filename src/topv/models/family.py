"""What the runtime must know of a model: its decoder, and where an image's tokens sit in a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedError
from ..layout import VisualLayout

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

    def placeholders(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Which of `input_ids` (B, T) stand for a visual token: BoolTensor (B, T)."""
        return input_ids == self.config.image_token_id

    def has_images(self, inputs: Mapping[str, Any]) -> bool:
        """Whether the call's keyword arguments bring images to encode, or already encoded."""
        encoded = inputs.get("mm_encoder_outputs") or {}
        return inputs.get("pixel_values") is not None or encoded.get("image") is not None

    def layout(self, placeholders: torch.Tensor, inputs: Mapping[str, Any]) -> VisualLayout:
        """Deal the placeholder positions (B, T), on the CPU, out to the images of this call.

        Raises:
            LayoutError: when they do not fit.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define layout().")

    def fixed_grid(self) -> tuple[int, int]:
        """The (h, w) grid that every image fills, for models that scale all images to one size.

        Raises:
            UnsupportedError: when grids differ from image to image.
        """
        raise UnsupportedError(f"{type(self.model).__name__} has no one grid size: it depends on the image.")


def _is_linear(module: Any) -> bool:
    """Whether `module` is a linear map itself, and not an adapter's wrapper around one."""
    if not (hasattr(module, "in_features") and hasattr(module, "out_features")):
        return False
    return not any(hasattr(child, "in_features") for child in module.children())
