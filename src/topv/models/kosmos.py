"""KOSMOS-2 and KOSMOS-2.5: the call marks where the image stands, and latent queries have no places in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .family import Family

__all__ = ["Kosmos2", "Kosmos25"]


class Kosmos25(Family):
    """`Kosmos2_5ForConditionalGeneration`."""

    def placeholders(self, input_ids: torch.Tensor, inputs: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Where `image_embeds_position_mask` is 1; nowhere without it."""
        marks = (inputs or {}).get("image_embeds_position_mask")
        return torch.zeros_like(input_ids, dtype=torch.bool) if marks is None else marks.to(input_ids.device) == 1

    def has_images(self, inputs: Mapping[str, Any]) -> bool:
        return any(inputs.get(name) is not None for name in ("pixel_values", "flattened_patches", "image_embeds"))


class Kosmos2(Kosmos25):
    """`Kosmos2ForConditionalGeneration`."""

    @property
    def generator(self) -> nn.Module | None:
        # A base model has no head to generate with.
        part: Any = self.multimodal.text_model
        return part if hasattr(part, "lm_head") else None
