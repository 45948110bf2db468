"""Idefics 3 and its like: an image is one square tile, or rows of them and then the whole made smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import LayoutError
from ..layout import Picture
from .family import Family
from .runs import runs, tiled

__all__ = ["GraniteDocling", "Idefics3"]


class Idefics3(Family):
    """`Idefics3ForConditionalGeneration` and `SmolVLMForConditionalGeneration`, with their base models.

    The call does not say into how many tiles an image was cut; what stands around the tiles does. A video of SmolVLM
    is a row of images to the model, and so it is here.
    """

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture]:
        ids = inputs["input_ids"].cpu()
        side = self._side(inputs)
        pictures = []
        for row, marks in zip(ids.tolist(), self.placeholders(ids), strict=True):
            pictures += [tiled([(side, side)] * tiles) for tiles in self._tiles(row, runs(marks), side)]
        return pictures

    def _tiles(self, ids: list[int], spans: list[tuple[int, int]], side: int) -> list[int]:
        """How many tiles each image of one prompt came in, the whole among them."""
        counts: list[int] = []
        first = closed = None
        for start, end in spans:
            if end - start != side**2 or start < 2:
                raise LayoutError(
                    f"{end - start} image placeholder tokens stand in a row from column {start}, where a tile has "
                    f"{side} x {side} and two tokens of its own before it. Build the prompt with the model's "
                    "processor, without truncation."
                )
            # Before a tile: a token that marks the edge of an image, and one that says which row and column follows.
            edge, label = ids[start - 2], ids[start - 1]
            if not counts or closed or label == first:
                counts.append(0)
                first = label
            counts[-1] += 1
            # The whole comes last and is closed by an edge, behind which no tile's label stands.
            closed = ids[end : end + 1] == [edge] and ids[end + 2 : end + 3] != [ids[start]]
        return counts

    def _side(self, inputs: Mapping[str, Any]) -> int:
        """Tokens along the side of a tile."""
        vision = self.config.vision_config
        pixels = inputs.get("pixel_values")
        size: int = vision.image_size if pixels is None else pixels.shape[-1]
        return int(size // vision.patch_size // self._scale(inputs))

    def _scale(self, inputs: Mapping[str, Any]) -> int:
        """Patches along the side of a token."""
        scale: int = self.config.scale_factor
        return scale


class GraniteDocling(Idefics3):
    """`GraniteDoclingForConditionalGeneration` and `GraniteDoclingModel`. A page of one tile has no whole behind it."""

    def _scale(self, inputs: Mapping[str, Any]) -> int:
        scale: int = self.config.vision_config.scale_factor
        # The fine route makes four tokens of what is one otherwise.
        return scale if inputs.get("tile_fine_mask") is None else scale // 2
