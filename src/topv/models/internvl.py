"""InternVL and Aya Vision: an image becomes one square tile, or several and then a thumbnail of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import LayoutError
from ..layout import Picture
from .family import Family
from .runs import run_lengths, runs, tiled
from .tower import pixel_shuffled, without_class_token

__all__ = ["AyaVision", "InternVl"]


class InternVl(Family):
    """`InternVLForConditionalGeneration`: the tiles of an image stand in one run of placeholders; each frame of a video
    is an image of one tile."""

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture] | None:
        pixels = inputs.get("pixel_values")
        side = self._side(self._height() if pixels is None else pixels.shape[-2])
        cells = side * side
        pictures = []
        tiles = 0
        for tokens in self._image_tokens(inputs["input_ids"].cpu()):
            count, left = divmod(tokens, cells)
            if left:
                raise LayoutError(
                    f"an image has {tokens} placeholder tokens, but its tiles take {cells} each. The prompt was "
                    "truncated, or its images stand without the tokens that the model's processor sets around them."
                )
            pictures.append(tiled([(side, side)] * count))
            tiles += count
        if pixels is not None and tiles != len(pixels):
            raise LayoutError(
                f"the prompt has placeholder tokens for {tiles} tiles, but pixel_values holds {len(pixels)}. Build the "
                "inputs with the model's processor, without truncation."
            )
        return pictures

    def pool_tower(self, kind: str, states: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        strategy = inputs.get("vision_feature_select_strategy") or self.config.vision_feature_select_strategy
        patches = without_class_token(states, strategy)
        return pixel_shuffled(self.multimodal, patches, self.config.downsample_ratio).flatten(0, 1)

    def _height(self) -> int:
        size = self.config.vision_config.image_size
        return size if isinstance(size, int) else size[0]

    def _side(self, height: int) -> int:
        """Rows, and columns, of a tile of so many pixels."""
        return int(height // self.config.vision_config.patch_size[0] * self.config.downsample_ratio)

    def _image_tokens(self, input_ids: torch.Tensor) -> list[int]:
        """How many placeholders each image takes."""
        return run_lengths(self.placeholders(input_ids))


class AyaVision(InternVl):
    """`AyaVisionForConditionalGeneration`: words stand before each tile of an image."""

    def pool_tower(self, kind: str, states: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        return Family.pool_tower(self, kind, states, inputs)

    def _side(self, height: int) -> int:
        return int(height // self.config.vision_config.patch_size // self.config.downsample_factor)

    def _image_tokens(self, input_ids: torch.Tensor) -> list[int]:
        counts = []
        for marks, ids in zip(self.placeholders(input_ids), input_ids.tolist(), strict=True):
            found = runs(marks)
            # What follows the last tile ends an image, and so does it wherever else it follows a tile.
            end = ids[found[-1][1]] if found and found[-1][1] < len(ids) else None
            own = 0
            for start, stop in found:
                own += stop - start
                if stop == len(ids) or ids[stop] == end:
                    counts.append(own)
                    own = 0
        return counts
