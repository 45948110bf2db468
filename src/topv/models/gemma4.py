"""Gemma 4: every image and every frame of a video fills a grid of its own size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import LayoutError
from ..layout import Picture
from .family import Family

__all__ = ["Gemma4", "Gemma4Unified"]


class Gemma4(Family):
    """`Gemma4ForConditionalGeneration` and `Gemma4Model`."""

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture] | None:
        if not _said(inputs, "pixel_values", "image_position_ids"):
            return None
        return [Picture.filled(grid) for grid in self._grids(inputs["image_position_ids"])]

    def videos(self, inputs: Mapping[str, Any]) -> Sequence[Picture] | None:
        if not _said(inputs, "pixel_values_videos", "video_position_ids"):
            return None
        places = inputs["video_position_ids"]
        if places.dim() == 4:
            # Older releases of transformers stack videos of equally many frames: (V, F, P, 2).
            counts, places = [places.shape[1]] * len(places), places.flatten(0, 1)
        elif _said(inputs, "pixel_values_videos", "num_frames_per_video"):
            counts = torch.as_tensor(inputs["num_frames_per_video"]).tolist()
        else:
            return None
        grids = iter(self._grids(places))
        return [Picture.stacked([next(grids) for _ in range(count)], ["frame"] * count) for count in counts]

    def _grids(self, places: torch.Tensor) -> list[tuple[int, int]]:
        """The (h, w) grid of each picture, from its patches' places (N, P, 2), column first and -1 for padding."""
        side = self._patches_per_side()
        return [((rows + 1) // side, (columns + 1) // side) for columns, rows in places.amax(1).tolist()]

    def _patches_per_side(self) -> int:
        """Patches along the side of a token."""
        side: int = self.config.vision_config.pooling_kernel_size
        return side


class Gemma4Unified(Gemma4):
    """`Gemma4UnifiedForConditionalGeneration` and `Gemma4UnifiedModel`, whose patches are tokens as they come."""

    def _patches_per_side(self) -> int:
        return 1


def _said(inputs: Mapping[str, Any], pixels: str, *names: str) -> bool:
    """Whether the call says where a picture's patches stand."""
    missing = [name for name in names if inputs.get(name) is None]
    if missing and inputs.get(pixels) is not None:
        raise LayoutError(f"{pixels} came without {' and '.join(missing)}. Pass all that the processor returned.")
    return not missing
