"""LLaVA-1.5: every image fills one square grid (or, with a Pixtral tower, one grid of its own size)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import UnsupportedError
from ..layout import VisualLayout
from .family import Family

__all__ = ["Llava"]


class Llava(Family):
    """`LlavaForConditionalGeneration` and `LlavaModel`."""

    def layout(self, placeholders: torch.Tensor, inputs: Mapping[str, Any]) -> VisualLayout:
        sizes = inputs.get("image_sizes")
        if sizes is not None:
            patch = self.config.vision_config.patch_size
            shapes = [(int(h) // patch, int(w) // patch) for h, w in torch.as_tensor(sizes).tolist()]
            return VisualLayout.from_images(placeholders, shapes)
        shape, skip = self._fixed_grid(inputs)
        return VisualLayout.from_images(placeholders, [shape] * self._images(inputs), skip=skip)

    def fixed_grid(self) -> tuple[int, int]:
        return self._fixed_grid({})[0]

    def _images(self, inputs: Mapping[str, Any]) -> int:
        pixels = inputs.get("pixel_values")
        if pixels is not None:
            return pixels.shape[0]
        return len(inputs["mm_encoder_outputs"]["image"].pooler_output)

    def _fixed_grid(self, inputs: Mapping[str, Any]) -> tuple[tuple[int, int], int]:
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        strategy = inputs.get("vision_feature_select_strategy") or self.config.vision_feature_select_strategy
        class_tokens = 1 if "clip" in vision.model_type else 0
        if class_tokens == 0 and strategy == "default":
            raise UnsupportedError(
                f"vision_feature_select_strategy='default' drops the first token of a {vision.model_type} tower, which "
                "has no class token, so its image tokens fill no grid. Use vision_feature_select_strategy='full'."
            )
        return (side, side), class_tokens if strategy == "full" else 0
