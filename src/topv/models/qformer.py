"""BLIP-2 and InstructBLIP: a fixed number of queries reads the image, so its tokens have no places in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .family import Family

__all__ = ["QFormer"]


class QFormer(Family):
    """`Blip2ForConditionalGeneration`, `InstructBlipForConditionalGeneration` and
    `InstructBlipVideoForConditionalGeneration` with a decoder-only language model."""

    @property
    def generator(self) -> nn.Module | None:
        # A base model has no head to generate with.
        part: Any = self.multimodal.language_model
        return part if hasattr(part, "lm_head") else None

    def has_images(self, inputs: Mapping[str, Any]) -> bool:
        # `generate` puts the image into the embedded prompt itself.
        return super().has_images(inputs) or inputs.get("inputs_embeds") is not None
