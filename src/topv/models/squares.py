"""PaliGemma, DeepSeek-VL, Janus and Video-LLaVA: images are scaled to one size, so each fills one square grid."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import LayoutError
from ..layout import Part, Picture
from .family import Family

__all__ = ["Squares", "VideoLlava"]


class Squares(Family):
    """`PaliGemmaForConditionalGeneration` and `DeepseekVLForConditionalGeneration`, whose towers have no class
    token."""

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture] | None:
        return [Picture.filled(self.fixed_grid())] * held(inputs, "image", "pixel_values")

    def fixed_grid(self) -> tuple[int, int]:
        vision = self.config.vision_config
        side: int = vision.image_size // vision.patch_size
        return side, side


class VideoLlava(Squares):
    """`VideoLlavaForConditionalGeneration`: each frame of a video keeps the class token that images lose."""

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture] | None:
        named = "pixel_values" if inputs.get("pixel_values") is not None else "pixel_values_images"
        if named == "pixel_values" and not self._knows_pixel_values:
            raise LayoutError(
                "this transformers' Video-LLaVA takes its images as pixel_values_images and does not look at "
                "pixel_values. Rename the argument."
            )
        chosen = inputs.get("vision_feature_select_strategy") or self.config.vision_feature_select_strategy
        picture = Picture.filled(self.fixed_grid(), skip=0 if chosen == "default" else 1)
        return [picture] * held(inputs, "image", named)

    @property
    def _knows_pixel_values(self) -> bool:
        """Whether images may come as `pixel_values`. Releases of transformers in which they may rename the older
        `pixel_values_images`; in those before, they come under that name alone."""
        return "pixel_values" in inspect.signature(self.multimodal.forward).parameters

    def videos(self, inputs: Mapping[str, Any]) -> Sequence[Picture] | None:
        pixels = inputs.get("pixel_values_videos")
        if pixels is not None:
            return [self._video(pixels.shape[1])] * pixels.shape[0]
        # Encoded frames no longer tell which video they are of.
        return [self._video(1)] * held(inputs, "video", "pixel_values_videos")

    def _video(self, frames: int) -> Picture:
        grid = self.fixed_grid()
        cells = grid[0] * grid[1]
        starts = [frame * (cells + 1) + 1 for frame in range(frames)]
        parts = [Part(torch.arange(start, start + cells, device="cpu"), grid, "frame") for start in starts]
        return Picture(frames * (cells + 1), tuple(parts))


def held(inputs: Mapping[str, Any], kind: str, pixels: str) -> int:
    """How many images or videos a call brings, as pixels or encoded."""
    values = inputs.get(pixels)
    if values is not None:
        return len(values)
    encoded = (inputs.get("mm_encoder_outputs") or {}).get(kind)
    return 0 if encoded is None else len(encoded.pooler_output)
