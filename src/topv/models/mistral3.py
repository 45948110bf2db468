"""Mistral 3: every image has a grid of its own size, its patches merged to cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import LayoutError
from ..layout import Picture
from .family import Family
from .squares import held

__all__ = ["Mistral3"]


class Mistral3(Family):
    """`Mistral3ForConditionalGeneration`: the breaks between rows are tokens of their own, not placeholders."""

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture] | None:
        if not held(inputs, "image", "pixel_values"):
            return []
        sizes = inputs.get("image_sizes")
        if sizes is None:
            raise LayoutError(
                "images came without image_sizes, which their grids follow. Pass what the processor gave."
            )
        cell = self.config.vision_config.patch_size * self.config.spatial_merge_size
        return [Picture.filled((int(h) // cell, int(w) // cell)) for h, w in torch.as_tensor(sizes).tolist()]
