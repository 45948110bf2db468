"""LLaVA-NeXT: a thumbnail, then all tiles as one grid whose rows end in a newline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ...errors import UnsupportedError
from ...layout import Picture
from ...models.llava_next import LlavaNextPictures
from ..adapter import Adapter, last_block
from ..model import PrunedModel
from ..positions import LinearPositions
from ..processing import PrunedInfo, PrunedProcessor
from .tiles import thumbnail_and_grid

__all__ = ["LlavaNextAdapter", "TopVLlavaNextForConditionalGeneration"]


class LlavaNextAdapter(Adapter):
    """`LlavaNextForConditionalGeneration` with a CLIP or SigLIP tower."""

    rules: ClassVar[type[LlavaNextPictures]] = LlavaNextPictures
    """Lays its images out."""

    def check(self, config: Any) -> None:
        if not isinstance(config.vision_feature_layer, int):
            raise UnsupportedError(
                f"visual tokens are made of several layers of the vision tower ({config.vision_feature_layer}), not "
                "of one, so there is no one block to read evidence from."
            )
        has_class_token = not config.vision_config.model_type.startswith("siglip")
        if has_class_token != (config.vision_feature_select_strategy == "default"):
            raise UnsupportedError(
                f"vision_feature_select_strategy={config.vision_feature_select_strategy!r} with a "
                f"{config.vision_config.model_type} tower leaves a class token among the patches, or drops a patch. "
                "Expected 'default' with a class token and 'full' without one."
            )

    def image_token(self, config: Any) -> int | None:
        return int(config.image_token_index)

    def pictures(self, config: Any, inputs: Mapping[str, Any]) -> list[Picture]:
        if inputs.get("pixel_values") is None:
            return []
        sizes = {"pixel_values": inputs["pixel_values"], "image_sizes": inputs["image_sizes"]}
        return list(self.rules(config).images(sizes) or ())

    def block(self, model: Any) -> nn.Module:
        return last_block(model.vision_tower)

    def parts(
        self, model: Any, inputs: Mapping[str, Any], pictures: Sequence[Picture], states: torch.Tensor
    ) -> list[list[torch.Tensor]]:
        config = model.config
        patches = states[:, -pictures[0].parts[0].positions.numel() :]
        tiles = patches.split([len(pixels) for pixels in inputs["pixel_values"]])
        pinpoints = [list(pinpoint) for pinpoint in config.image_grid_pinpoints]
        sizes = torch.as_tensor(inputs["image_sizes"]).tolist()
        return [
            thumbnail_and_grid(own, picture, (int(height), int(width)), pinpoints, config.vision_config.image_size)
            for own, picture, (height, width) in zip(tiles, pictures, sizes, strict=True)
        ]


class _Info(PrunedInfo, LlavaNextProcessingInfo):
    pass


class _Processor(PrunedProcessor, LlavaNextMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(_Processor, info=_Info, dummy_inputs=LlavaDummyInputsBuilder)
class TopVLlavaNextForConditionalGeneration(PrunedModel, LinearPositions, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT, pruned."""

    topv_adapter = LlavaNextAdapter()
