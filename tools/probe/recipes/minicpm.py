"""MiniCPM's architectures, which cut an image into an overview and slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..recipe import Pictures, Recipe
from .patch_grids import PatchGridRecipe
from .qwen import Qwen35

__all__ = ["RECIPES"]


class MiniCpmV46(Qwen35):
    """Pictures of several crops, each between markers: an overview and, of the wide image, two slices."""

    model_type = "minicpmv4_6"
    crops: Mapping[str, tuple[tuple[int, int], ...]] = {
        "image": ((16, 16),),
        "wide": ((8, 20), (8, 12), (8, 12), (8, 12), (8, 12)),
        "video": ((8, 16), (8, 16)),
    }
    stride = 4
    mode = "16x"

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "text_config": self.text | {"model_type": "qwen3_5_text"},
            "vision_config": {
                "num_hidden_layers": 2,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_attention_heads": 2,
                "patch_size": 4,
                "image_size": 64,
            },
            "image_token_id": self.image_id,
            "video_token_id": self.video_id,
            "insert_layer_id": 0,
            "downsample_mode": self.mode,
        }

    def config(self) -> Any:
        from transformers import MiniCPMV4_6Config

        return MiniCPMV4_6Config(**self.fields)

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        inputs: dict[str, Any] = {}
        for is_video, suffix in ((False, ""), (True, "_videos")):
            sizes = [size for kind in kinds if (kind == "video") == is_video for size in self.crops[kind]]
            if sizes:
                patches = sum(height * width for height, width in sizes)
                pixels = torch.randn(1, 3, self.patch, patches * self.patch, generator=generator)
                inputs |= {f"pixel_values{suffix}": pixels, f"target_sizes{suffix}": torch.tensor(sizes).int()}
        return Pictures(inputs, [self.tokens(kind) for kind in kinds])

    def tokens(self, kind: str) -> list[int]:
        token = self.video_id if kind == "video" else self.image_id
        row = [14, 40, 15]  # The number of the picture between its own two markers.
        for number, (height, width) in enumerate(self.crops[kind]):
            cells = [token] * (height * width // self.stride**2)
            is_slice = kind != "video" and number > 0
            row += [16, *cells, 17] if is_slice else [7, *cells, 8]
            row += [9] if is_slice and number == 2 else []
        return row

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        return {}


class MiniCpmV47(MiniCpmV46):
    model_type = "minicpmv4_7"

    def config(self) -> Any:
        from transformers import MiniCPMV4_7Config

        marks = {
            "image_start_id": 7,
            "image_end_id": 8,
            "slice_start_id": 16,
            "slice_end_id": 17,
            "newline_id": 9,
        }
        return MiniCPMV4_7Config(**self.fields, **marks)

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        return PatchGridRecipe.extra(self, model, inputs)


class MiniCpmOcr(MiniCpmV46):
    model_type = "minicpm_ocr"
    crops: Mapping[str, tuple[tuple[int, int], ...]] = {
        "image": ((8, 8),),
        "wide": ((4, 10), (4, 6), (4, 6), (4, 6), (4, 6)),
        "video": ((4, 8), (4, 8)),
    }
    stride = 2
    mode = "4x"

    def config(self) -> Any:
        from transformers import MiniCPMOcrConfig

        return MiniCPMOcrConfig(**self.fields)


RECIPES: tuple[Recipe, ...] = (
    MiniCpmV46(),
    MiniCpmV47(),
    MiniCpmOcr(),
)
