"""InternVL in transformers' format: an image becomes one square tile, or several and then a thumbnail of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from vllm.model_executor.models.interns1 import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from ...errors import UnsupportedError
from ...layout import Picture
from ...models.runs import tiled
from ..adapter import Adapter, cut_rows, last_block
from ..choosing import split_parts
from ..model import PrunedModel
from ..positions import LinearPositions
from ..processing import PrunedInfo, PrunedProcessor

__all__ = ["InternVlAdapter", "TopVInternVLForConditionalGeneration"]


class InternVlAdapter(Adapter):
    """`InternVLForConditionalGeneration`, and what other checkpoints of the family share with it."""

    pixels = "pixel_values"
    """The argument that holds the tiles of all images."""

    def check(self, config: Any) -> None:
        layer = getattr(config, "vision_feature_layer", -1)
        if layer != -1 or getattr(config, "vision_feature_select_strategy", "default") != "default":
            raise UnsupportedError(
                f"vLLM reads the last layer of this tower without its class token, and the configuration asks for "
                f"vision_feature_layer={layer}. Expected -1, with vision_feature_select_strategy='default'."
            )

    def image_token(self, config: Any) -> int | None:
        return int(config.image_token_id)

    def pictures(self, config: Any, inputs: Mapping[str, Any]) -> list[Picture]:
        counts = inputs.get("image_num_patches")
        if counts is None:
            return []
        side = self._side(config)
        return [tiled([(side, side)] * int(count)) for count in counts]

    def cut(self, inputs: Mapping[str, Any], images: slice) -> dict[str, Any]:
        return cut_rows(inputs, self.pixels, [int(count) for count in inputs["image_num_patches"]], images)

    def block(self, model: Any) -> nn.Module:
        return last_block(model.vision_tower)

    def parts(
        self, model: Any, inputs: Mapping[str, Any], pictures: Sequence[Picture], states: torch.Tensor
    ) -> list[list[torch.Tensor]]:
        patches = states[:, 1:]
        side = round(patches.shape[1] ** 0.5)
        grouped = model.pixel_shuffle(
            patches.reshape(len(patches), side, side, -1), scale_factor=model.downsample_ratio
        ).flatten(1, 2)
        rows = grouped.flatten(0, 1).split([picture.tokens for picture in pictures])
        return [split_parts(own, picture) for own, picture in zip(rows, pictures, strict=True)]

    def _side(self, config: Any) -> int:
        """Rows, and columns, of a tile."""
        vision = config.vision_config
        return int(vision.image_size[0] // vision.patch_size[0] * config.downsample_ratio)


class _Info(PrunedInfo, InternS1ProcessingInfo):
    pass


class _Processor(PrunedProcessor, InternS1MultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(_Processor, info=_Info, dummy_inputs=InternS1DummyInputsBuilder)
class TopVInternVLForConditionalGeneration(PrunedModel, LinearPositions, InternS1ForConditionalGeneration):
    """InternVL in transformers' format, pruned."""

    topv_adapter = InternVlAdapter()
