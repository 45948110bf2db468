"""Qwen2.5-VL: images of any size, looked at in windows; tokens have a row and a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ...layout import Picture
from ...models.patch_grids import PatchPictures
from ...models.tower import merged_patches
from ..adapter import Adapter, cut_rows, last_block
from ..choosing import split_parts
from ..model import PrunedModel
from ..positions import GridPositions
from ..processing import PrunedInfo, PrunedProcessor

__all__ = ["QwenAdapter", "QwenInfo", "TopVQwen2_5_VLForConditionalGeneration"]


class QwenAdapter(Adapter):
    """Qwen-VL models of vLLM."""

    mrope = True

    def image_token(self, config: Any) -> int | None:
        return int(config.image_token_id)

    def pictures(self, config: Any, inputs: Mapping[str, Any]) -> list[Picture]:
        grids = inputs.get("image_grid_thw")
        return [] if grids is None else list(PatchPictures(config).images({"image_grid_thw": grids}))

    def cut(self, inputs: Mapping[str, Any], images: slice) -> dict[str, Any]:
        patches = torch.as_tensor(inputs["image_grid_thw"]).prod(1).tolist()
        return cut_rows(inputs, "pixel_values", patches, images)

    def block(self, model: Any) -> nn.Module:
        return last_block(model.visual)

    def parts(
        self, model: Any, inputs: Mapping[str, Any], pictures: Sequence[Picture], states: torch.Tensor
    ) -> list[list[torch.Tensor]]:
        merge = model.visual.spatial_merge_size
        grids = torch.as_tensor(inputs["image_grid_thw"]).cpu()
        merged = merged_patches(model.visual, states.flatten(0, -2), merge, grids)
        rows = merged.split([picture.tokens for picture in pictures])
        return [split_parts(own, picture) for own, picture in zip(rows, pictures, strict=True)]


class QwenInfo(PrunedInfo):
    """Stands before the processing info of a Qwen-VL."""

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int] | None:
        """The most tokens of an image."""
        most: Mapping[str, int] = super().get_mm_max_tokens_per_item(seq_len, mm_counts)  # type: ignore[misc]
        return {"image": most["image"]}


class _Info(QwenInfo, Qwen2_5_VLProcessingInfo):
    pass


class _Processor(PrunedProcessor, Qwen2_5_VLMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(_Processor, info=_Info, dummy_inputs=Qwen2_5_VLDummyInputsBuilder)
class TopVQwen2_5_VLForConditionalGeneration(PrunedModel, GridPositions, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL, pruned."""

    topv_adapter = QwenAdapter()
