"""InternVL in its original format, `internvl_chat`."""

from __future__ import annotations

from typing import Any

from torch import nn
from vllm.model_executor.models.internvl import (
    InternVLChatModel,
    InternVLDummyInputsBuilder,
    InternVLMultiModalProcessor,
    InternVLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ..adapter import last_block
from ..model import PrunedModel
from ..positions import LinearPositions
from ..processing import PrunedInfo, PrunedProcessor
from .internvl import InternVlAdapter

__all__ = ["TopVInternVLChatModel"]


class _Adapter(InternVlAdapter):
    pixels = "pixel_values_flat"

    def check(self, config: Any) -> None:
        """vLLM builds the tower as deep as `select_layer`."""

    def image_token(self, config: Any) -> int | None:
        # The id is the tokenizer's, and no configuration names it.
        return None

    def block(self, model: Any) -> nn.Module:
        return last_block(model.vision_model)

    def _side(self, config: Any) -> int:
        size = config.force_image_size or config.vision_config.image_size
        return int(size // config.vision_config.patch_size * config.downsample_ratio)


class _Info(PrunedInfo, InternVLProcessingInfo):
    pass


class _Processor(PrunedProcessor, InternVLMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(_Processor, info=_Info, dummy_inputs=InternVLDummyInputsBuilder)
class TopVInternVLChatModel(PrunedModel, LinearPositions, InternVLChatModel):
    """InternVL in its original format, pruned."""

    topv_adapter = _Adapter()
