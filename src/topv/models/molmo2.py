"""Molmo 2: the whole of an image made smaller, and then all of it in one grid; a video is a row of frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import LayoutError
from ..layout import Picture
from .family import Family

__all__ = ["Molmo2"]


class Molmo2(Family):
    """`Molmo2ForConditionalGeneration` and `Molmo2Model`. A call holds images or videos, whose tokens have one id."""

    @property
    def video_ids(self) -> frozenset[int]:
        return frozenset()

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture]:
        images, videos = inputs.get("image_grids"), inputs.get("video_grids")
        if images is not None:
            return [
                Picture.stacked([(small_rows, small_columns), (rows, columns)], ["thumbnail", "image"])
                for small_rows, small_columns, rows, columns in torch.as_tensor(images).tolist()
            ]
        if videos is not None:
            return [
                Picture.stacked([(rows, columns)] * frames, ["frame"] * frames)
                for frames, rows, columns in torch.as_tensor(videos).tolist()
            ]
        raise LayoutError("pictures came without image_grids or video_grids. Pass all that the processor returned.")
