"""Phi-4-multimodal: an image is one grid of all its tiles, rows ended by a token each, then the whole made smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import LayoutError
from ..layout import Part, Picture
from .family import Family

__all__ = ["Phi4Multimodal"]


class Phi4Multimodal(Family):
    """`Phi4MultimodalForCausalLM`. Row ends and the token between the two grids fill placeholders and always stay."""

    @property
    def image_ids(self) -> frozenset[int]:
        return frozenset({int(self.config.vision_config.image_token_id)})

    @property
    def video_ids(self) -> frozenset[int]:
        return frozenset()

    def has_images(self, inputs: Mapping[str, Any]) -> bool:
        return inputs.get("image_pixel_values") is not None

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture]:
        sizes, mask = inputs.get("image_sizes"), inputs.get("image_attention_mask")
        if sizes is None:
            raise LayoutError(
                "images came without image_sizes, which their grids follow. Pass what the processor gave."
            )
        crop, side = self.config.vision_config.crop_size, self._side
        pictures = []
        for index, (height, width) in enumerate(torch.as_tensor(sizes).view(-1, 2).tolist()):
            down, across = int(height) // crop, int(width) // crop
            rows, columns = down * side, across * side
            if mask is not None:
                tiles = mask[index, 1 : 1 + down * across, ::2, ::2].reshape(down, across, side, side)
                shown = tiles.transpose(1, 2).reshape(rows, columns)
                rows, columns = int(shown[:, 0].sum()), int(shown[0].sum())
            pictures.append(_picture((rows, columns), side))
        return pictures

    @property
    def _side(self) -> int:
        """Tokens along the side of a tile."""
        vision = self.config.vision_config
        return -(-(int(vision.image_size) // int(vision.patch_size)) // 2)


def _picture(shape: tuple[int, int], side: int) -> Picture:
    rows, columns = shape
    tiles = torch.arange(rows * (columns + 1), device="cpu").view(rows, columns + 1)[:, :-1]
    start = rows * (columns + 1) + 1
    whole = start + torch.arange(side * (side + 1), device="cpu").view(side, side + 1)[:, :-1]
    parts = (Part(tiles.flatten(), shape), Part(whole.flatten(), (side, side), "thumbnail"))
    return Picture(start + side * (side + 1), parts)
