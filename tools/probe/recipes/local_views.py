"""Architectures that show an image whole and in local views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from topv.runtime.arguments import cache_argument

from ..recipe import Pictures, Recipe
from .parts import LLAMA, SAM, TOWER
from .sized_grids import IMAGE_TOKEN, WINDOW

__all__ = ["RECIPES"]


class LocalViews(Recipe):
    """For models that see an image whole and, where it is large, in a grid of local views too.

    Attributes:
        side, local_side: height and width of the whole image and of a view.
        grid: rows and columns of a wide image's views.
    """

    wide = True
    side: int = 64
    local_side: int = 32
    grid: tuple[int, int] = (2, 3)

    def write(self, grid: tuple[int, int] | None) -> list[int]:
        """The ids of an image with this grid of local views."""
        raise NotImplementedError

    def views(self, grids: Sequence[tuple[int, int] | None]) -> dict[str, Any]:
        """What tells the model how many views each image has."""
        return {"num_local_patches": torch.tensor([rows * columns for rows, columns in (g or (0, 0) for g in grids)])}

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        grids = [self.grid if kind == "wide" else None for kind in kinds]
        inputs = {"pixel_values": torch.randn(len(kinds), 3, self.side, self.side, generator=generator)}
        views = sum(rows * columns for rows, columns in filter(None, grids))
        if views:
            inputs["pixel_values_local"] = torch.randn(views, 3, self.local_side, self.local_side, generator=generator)
        return Pictures(inputs | self.views(grids), [self.write(grid) for grid in grids])


class Step3p7(LocalViews):
    """Its windowed layers have more query heads than the others."""

    model_type = "step3p7"

    def config(self) -> Any:
        from transformers.models.step3p7.configuration_step3p7 import (
            Step3p7Config,
            Step3p7TextConfig,
            Step3p7VisionConfig,
        )

        vision = {name: value for name, value in TOWER.items() if name != "intermediate_size"}
        pattern = ["full_attention", "sliding_attention", "sliding_attention"]
        text = Step3p7TextConfig(
            **LLAMA | {"num_hidden_layers": 6},
            head_dim=8,
            layer_types=pattern * 2,
            mlp_layer_types=[*["dense"] * 3, *["sparse"] * 3],
            sliding_window=WINDOW,
            num_sliding_attention_heads=6,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            share_expert_dim=32,
        )
        return Step3p7Config(
            vision_config=Step3p7VisionConfig(**vision, image_size=self.side, mlp_ratio=2.0),
            text_config=text,
            image_token_id=IMAGE_TOKEN,
        )

    def write(self, grid: tuple[int, int] | None) -> list[int]:
        rows, columns = grid or (0, 0)
        line = [8, *[IMAGE_TOKEN] * 4, 9] * columns
        views = [*line, 10] * (rows - 1) + line
        return [*views, 6, *[IMAGE_TOKEN] * 16, 7]


class DeepseekOcr2(LocalViews):
    """Its 144 queries gather from all of a view, however small that is."""

    model_type = "deepseek_ocr2"
    side = 96
    local_side = 96
    grid = (1, 2)

    def config(self) -> Any:
        from transformers.models.deepseek_ocr2.configuration_deepseek_ocr2 import (
            DeepseekOcr2Config,
            DeepseekOcr2SamVisionConfig,
            DeepseekOcr2TextConfig,
            DeepseekOcr2VisionConfig,
            DeepseekOcr2VisionEncoderConfig,
        )

        encoder = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision = DeepseekOcr2VisionConfig(
            sam_config=DeepseekOcr2SamVisionConfig(**SAM, image_size=self.side, downsample_channels=[8, 16]),
            encoder_config=DeepseekOcr2VisionEncoderConfig(**encoder, num_key_value_heads=2, vocab_size=8),
        )
        text = DeepseekOcr2TextConfig(
            **LLAMA | {"max_position_embeddings": 2048},
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_shared_experts=1,
            moe_intermediate_size=32,
            mlp_layer_types=["dense", *["sparse"] * 4],
        )
        return DeepseekOcr2Config(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN)

    def write(self, grid: tuple[int, int] | None) -> list[int]:
        rows, columns = grid or (0, 0)
        # The last placeholder separates views.
        return [IMAGE_TOKEN] * (144 * (rows * columns + 1) + 1)


class UnlimitedOcr(LocalViews):
    """Every token sees the whole prompt; the window runs over what has been generated."""

    model_type = "unlimited_ocr"

    def config(self) -> Any:
        from transformers.models.unlimited_ocr.configuration_unlimited_ocr import (
            UnlimitedOcrConfig,
            UnlimitedOcrSamVisionConfig,
            UnlimitedOcrTextConfig,
            UnlimitedOcrVisionConfig,
            UnlimitedOcrVisionEncoderConfig,
        )

        vision = UnlimitedOcrVisionConfig(
            sam_config=UnlimitedOcrSamVisionConfig(**SAM, image_size=self.side, downsample_channels=[8, 16]),
            encoder_config=UnlimitedOcrVisionEncoderConfig(**TOWER, image_size=16),
        )
        text = UnlimitedOcrTextConfig(
            # Its eager attention wants as many key-value heads as query heads.
            **LLAMA | {"num_key_value_heads": 4},
            sliding_window=2,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_shared_experts=1,
            moe_intermediate_size=32,
        )
        return UnlimitedOcrConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN)

    def continued(self, model: Any, length: int) -> dict[str, Any]:
        from transformers import DynamicCache

        cache = DynamicCache(config=model.config.get_text_config())
        for layer in cache.layers:
            layer.set_prefill_length(length)
        return {**cache_argument(model, cache), "use_cache": True}

    def write(self, grid: tuple[int, int] | None) -> list[int]:
        rows, columns = grid or (0, 0)
        # A newline fills a placeholder at the end of each row of cells; the very last separates views.
        return [IMAGE_TOKEN] * (rows * 2 * (columns * 2 + 1) * bool(rows) + 4 * (4 + 1) + 1)

    def views(self, grids: Sequence[tuple[int, int] | None]) -> dict[str, Any]:
        return {
            "num_local_patches": [rows * columns for rows, columns in (grid or (0, 0) for grid in grids)],
            "patches_grid": [[columns, rows] for rows, columns in (grid or (1, 1) for grid in grids)],
        }


RECIPES: tuple[Recipe, ...] = (
    Step3p7(),
    DeepseekOcr2(),
    UnlimitedOcr(),
)
