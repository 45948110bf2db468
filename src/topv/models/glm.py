"""GLM-4V and its kin: the frames of a video take the placeholders of images, between the marks of a video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import LayoutError
from ..layout import Picture
from .patch_grids import PatchGrids

__all__ = ["Glm"]


class Glm(PatchGrids):
    """GLM-4.1V, GLM-4.5V, GLM-4.6V and GLM-OCR."""

    @property
    def video_ids(self) -> frozenset[int]:
        # The processor writes no token of its own for videos.
        return frozenset()

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture]:
        images, videos = super().images(inputs), super().videos(inputs)
        return self._in_prompt_order(images, videos, inputs) if images and videos else [*images, *videos]

    def videos(self, inputs: Mapping[str, Any]) -> Sequence[Picture]:
        return []

    def _in_prompt_order(
        self, images: Sequence[Picture], videos: Sequence[Picture], inputs: Mapping[str, Any]
    ) -> list[Picture]:
        """Images and videos of one call as its prompts hold them: what stands between a video's marks is its own."""
        waiting = {False: iter(images), True: iter(videos)}
        ordered: list[Picture] = []
        for row in torch.as_tensor(inputs["input_ids"]).tolist():
            inside, left = False, 0
            for token in row:
                if token in (self.config.video_start_token_id, self.config.video_end_token_id):
                    inside, left = token == self.config.video_start_token_id, 0
                elif token in self.image_ids:
                    if not left:
                        picture = next(waiting[inside], None)
                        if picture is None:
                            raise LayoutError(
                                f"the prompts hold more {'videos' if inside else 'images'} than the call's "
                                f"{len(videos if inside else images)}. Build the inputs with the model's processor."
                            )
                        ordered.append(picture)
                        left = picture.tokens
                    left -= 1
        return ordered
