"""Idefics 2: every image, and every crop of one, becomes the same number of tokens that each gather from all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import LayoutError
from ..layout import Picture
from .family import Family
from .runs import run_lengths

__all__ = ["Idefics2"]


class Idefics2(Family):
    """`Idefics2ForConditionalGeneration` and `Idefics2Model`.

    Crops of an image, which its processor can put before it, reach the model as further images, and so they are here.
    """

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture]:
        latents = self.config.perceiver_config.resampler_n_latents
        lengths = run_lengths(self.placeholders(inputs["input_ids"].cpu()))
        if any(length % latents for length in lengths):
            raise LayoutError(
                f"image placeholder tokens stand in rows of {lengths}, where an image has {latents}. Build the prompt "
                "with the model's processor, without truncation."
            )
        return [Picture.placeless(latents) for length in lengths for _ in range(length // latents)]
