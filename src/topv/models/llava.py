"""LLaVA-1.5: every image fills one square grid (or, with a Pixtral tower, one grid of its own size)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import LayoutError, UnsupportedError
from ..layout import VisualLayout
from .family import Family
from .pictures import Pictures
from .runs import run_lengths
from .tower import without_class_token

__all__ = ["Llava", "LlavaPictures"]


class LlavaPictures(Pictures):
    """Where LLaVA-1.5's visual tokens sit."""

    def layout(self, placeholders: torch.Tensor, inputs: Mapping[str, Any]) -> VisualLayout:
        if self._sizes_differ:
            return VisualLayout.from_images(placeholders, self._own_sizes(placeholders, inputs))
        side, count = self._side, self._images(inputs)
        tokens = int(placeholders.sum())
        # A tower's class token, where it is not dropped, comes before the grid.
        skip = 1 if count and tokens == count * (side * side + 1) else 0
        return VisualLayout.from_images(placeholders, [(side, side)] * count, skip=skip)

    def fixed_grid(self) -> tuple[int, int]:
        if self._sizes_differ:
            return super().fixed_grid()
        return self._side, self._side

    @property
    def _sizes_differ(self) -> bool:
        return bool(self.config.vision_config.model_type == "pixtral")

    @property
    def _side(self) -> int:
        vision = self.config.vision_config
        side: int = vision.image_size // vision.patch_size
        class_tokens = 0 if vision.model_type.startswith("siglip") else 1
        if class_tokens == 0 and self.config.vision_feature_select_strategy == "default":
            raise UnsupportedError(
                f"vision_feature_select_strategy='default' drops the first token of a {vision.model_type} tower, which "
                "has no class token, so its image tokens fill no grid. Use vision_feature_select_strategy='full'."
            )
        return side

    def _images(self, inputs: Mapping[str, Any]) -> int:
        pixels = inputs.get("pixel_values")
        if pixels is not None:
            return len(pixels)
        return len(inputs["mm_encoder_outputs"]["image"].pooler_output)

    def _own_sizes(self, placeholders: torch.Tensor, inputs: Mapping[str, Any]) -> Sequence[tuple[int, int]]:
        """The grid of each image, from the sizes that came with it, or from how its tokens are broken into rows."""
        sizes = inputs.get("image_sizes")
        if sizes is not None:
            patch = self.config.vision_config.patch_size
            return [(int(h) // patch, int(w) // patch) for h, w in torch.as_tensor(sizes).tolist()]
        encoded = inputs.get("mm_encoder_outputs") or {}
        if encoded.get("image") is None:
            raise LayoutError("images of differing sizes came without image_sizes. Pass what the processor returned.")
        rows = iter(run_lengths(placeholders))
        shapes = []
        for features in encoded["image"].pooler_output:
            tokens, width, height = len(features), 0, 0
            while width * height < tokens:
                width, height = next(rows, tokens), height + 1
            shapes.append((height, width))
        return shapes


class Llava(LlavaPictures, Family):
    """`LlavaForConditionalGeneration` and `LlavaModel`."""

    def pool_tower(self, kind: str, states: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        if self._sizes_differ or kind != "image":
            return super().pool_tower(kind, states, inputs)
        strategy = inputs.get("vision_feature_select_strategy") or self.config.vision_feature_select_strategy
        return without_class_token(states, strategy).flatten(0, 1)
