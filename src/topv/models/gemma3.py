"""Gemma 3: every image, and every crop of one, fills the same square grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..layout import Picture
from .family import Family

__all__ = ["Gemma3"]


class Gemma3(Family):
    """`Gemma3ForConditionalGeneration` and `Gemma3Model`, ShieldGemma 2 among them.

    Crops of an image, which its processor can add behind it, reach the model as further images, and so they are here.
    """

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture]:
        pixels = inputs.get("pixel_values")
        encoded = inputs["mm_encoder_outputs"]["image"].pooler_output if pixels is None else pixels
        return [Picture.filled(self.fixed_grid())] * len(encoded)

    def fixed_grid(self) -> tuple[int, int]:
        vision = self.config.vision_config
        patches = vision.image_size // vision.patch_size
        # The patches are averaged in squares, as many along a side as make the number of tokens.
        side = patches // (patches // int(self.config.mm_tokens_per_image**0.5))
        return side, side
