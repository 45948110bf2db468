"""Llama 4: an image is one square tile, or rows of them and then the whole made smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import LayoutError
from ..layout import Picture
from .family import Family
from .tile_runs import runs, tiled

__all__ = ["Llama4"]


class Llama4(Family):
    """`Llama4ForConditionalGeneration`. The token that ends an image tells one image's tiles from the next one's."""

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture]:
        ids = inputs["input_ids"].cpu()
        side = self._side
        pictures = []
        for row, marks in zip(ids.tolist(), self.placeholders(ids), strict=True):
            tiles = 0
            for start, end in runs(marks):
                if end - start != side**2:
                    raise LayoutError(
                        f"{end - start} image placeholder tokens stand in a row from column {start}, where a tile has "
                        f"{side} x {side}. Build the prompt with the model's processor, without truncation."
                    )
                tiles += 1
                if row[end : end + 1] == [self.config.eoi_token_index]:
                    pictures.append(tiled([(side, side)] * tiles))
                    tiles = 0
            if tiles:
                raise LayoutError(
                    f"no token {self.config.eoi_token_index} (eoi_token_index) ends the last image of a prompt. Build "
                    "it with the model's processor, without truncation."
                )
        return pictures

    @property
    def _side(self) -> int:
        """Tokens along the side of a tile."""
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size * vision.pixel_shuffle_ratio)
