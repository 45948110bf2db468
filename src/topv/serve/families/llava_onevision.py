"""LLaVA-OneVision: as LLaVA-NeXT, with large images scaled down again."""

from __future__ import annotations

from typing import ClassVar

from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ...models.llava_next import LlavaOnevisionPictures
from ..model import PrunedModel
from ..positions import LinearPositions
from ..processing import PrunedInfo, PrunedProcessor
from .llava_next import LlavaNextAdapter

__all__ = ["TopVLlavaOnevisionForConditionalGeneration"]


class _Adapter(LlavaNextAdapter):
    # vLLM cuts every image of a prompt into tiles, where transformers leaves several images whole.
    rules: ClassVar[type[LlavaOnevisionPictures]] = LlavaOnevisionPictures


class _Info(PrunedInfo, LlavaOnevisionProcessingInfo):
    pass


class _Processor(PrunedProcessor, LlavaOnevisionMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(_Processor, info=_Info, dummy_inputs=LlavaOnevisionDummyInputsBuilder)
class TopVLlavaOnevisionForConditionalGeneration(PrunedModel, LinearPositions, LlavaOnevisionForConditionalGeneration):
    """LLaVA-OneVision, pruned."""

    topv_adapter = _Adapter()
