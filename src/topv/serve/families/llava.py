"""LLaVA-1.5: every image fills one square grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ...errors import UnsupportedError
from ...layout import Picture
from ...models.llava import LlavaPictures
from ..adapter import Adapter, last_block
from ..model import PrunedModel
from ..positions import LinearPositions
from ..processing import PrunedInfo, PrunedProcessor

__all__ = ["LlavaAdapter", "TopVLlavaForConditionalGeneration"]


class LlavaAdapter(Adapter):
    """`LlavaForConditionalGeneration` with a CLIP or SigLIP tower."""

    def check(self, config: Any) -> None:
        kind = config.vision_config.model_type
        if kind == "pixtral":
            raise UnsupportedError(
                "a LLaVA with a Pixtral tower breaks its image tokens into rows, and no row may lose tokens. Supported "
                "towers: CLIP and SigLIP."
            )
        if not isinstance(config.vision_feature_layer, int):
            raise UnsupportedError(
                f"visual tokens are made of several layers of the vision tower ({config.vision_feature_layer}), not "
                "of one, so there is no one block to read evidence from."
            )
        LlavaPictures(config).fixed_grid()

    def image_token(self, config: Any) -> int | None:
        return int(config.image_token_index)

    def pictures(self, config: Any, inputs: Mapping[str, Any]) -> list[Picture]:
        pixels = inputs.get("pixel_values")
        grid = LlavaPictures(config).fixed_grid()
        has_class_token = not config.vision_config.model_type.startswith("siglip")
        skip = 1 if has_class_token and config.vision_feature_select_strategy == "full" else 0
        return [] if pixels is None else [Picture.filled(grid, skip=skip)] * len(pixels)

    def block(self, model: Any) -> nn.Module:
        return last_block(model.vision_tower)

    def parts(
        self, model: Any, inputs: Mapping[str, Any], pictures: Sequence[Picture], states: torch.Tensor
    ) -> list[list[torch.Tensor]]:
        # A class token comes first.
        return [[own[-picture.parts[0].positions.numel() :]] for own, picture in zip(states, pictures, strict=True)]


class _Info(PrunedInfo, LlavaProcessingInfo):
    pass


class _Processor(PrunedProcessor, LlavaMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(_Processor, info=_Info, dummy_inputs=LlavaDummyInputsBuilder)
class TopVLlavaForConditionalGeneration(PrunedModel, LinearPositions, LlavaForConditionalGeneration):
    """LLaVA-1.5, pruned."""

    topv_adapter = LlavaAdapter()
