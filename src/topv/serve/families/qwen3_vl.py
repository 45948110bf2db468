"""Qwen3-VL: its first decoder layers are given more features of each visual token, which stay with it."""

from __future__ import annotations

from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ..model import PrunedModel
from ..positions import GridPositions
from ..processing import PrunedProcessor
from .qwen2_5_vl import QwenAdapter, QwenInfo

__all__ = ["TopVQwen3VLForConditionalGeneration"]


class _Info(QwenInfo, Qwen3VLProcessingInfo):
    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """What a request may set of the processor, without what upstream adds for videos."""
        supported: dict[str, set[str]] = super(Qwen3VLProcessingInfo, self).get_supported_mm_processor_kwargs()
        return supported


class _Processor(PrunedProcessor, Qwen3VLMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(_Processor, info=_Info, dummy_inputs=Qwen3VLDummyInputsBuilder)
class TopVQwen3VLForConditionalGeneration(PrunedModel, GridPositions, Qwen3VLForConditionalGeneration):
    """Qwen3-VL, pruned."""

    topv_adapter = QwenAdapter()
