"""Architectures that cut an image into tiles by its own shape: LLaVA-NeXT and its like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from topv.runtime.arguments import cache_argument

from ..recipe import Pictures, Recipe
from .fixed_grids import VideoFrames
from .parts import LLAMA, SAM, TOWER
from .sized_grids import IMAGE_TOKEN, WINDOW, TiledRecipe

__all__ = ["RECIPES"]

VIDEO_TOKEN = 8


class InternVl(TiledRecipe):
    """A video's frames are images, each announced in words."""

    model_type = "internvl"
    video = True

    def config(self) -> Any:
        from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config

        return InternVLConfig(
            vision_config=InternVLVisionConfig(**TOWER, image_size=self.side),
            text_config=Qwen2Config(**LLAMA),
            image_token_id=IMAGE_TOKEN,
        )

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        tokens: list[list[int]] = []
        tiles = 0
        for kind in kinds:
            tiles += (count := 1 if kind == "image" else self.tiles)
            if kind == "video":
                frames = [[40, 41 + frame, *self.write(1), 32] for frame in range(count)]
                tokens.append([token for frame in frames for token in frame][:-1])
            else:
                tokens.append(self.write(count))
        return Pictures({"pixel_values": torch.randn(tiles, 3, self.side, self.side, generator=generator)}, tokens)


class QianfanOcr(TiledRecipe):
    model_type = "qianfan_ocr"

    def config(self) -> Any:
        from transformers import Qwen3Config
        from transformers.models.qianfan_ocr.configuration_qianfan_ocr import QianfanOCRConfig, QianfanOCRVisionConfig

        return QianfanOCRConfig(
            vision_config=QianfanOCRVisionConfig(**TOWER, image_size=self.side),
            text_config=Qwen3Config(**LLAMA, head_dim=8),
            image_token_id=IMAGE_TOKEN,
        )


class AnyResolution(VideoFrames):
    """For models that lay an image's tiles out as one grid, cut off what pads it and end its rows with a newline.

    Attributes:
        sizes: an image's original height and width.
        pinpoints: the sizes that tiles may fill.
    """

    wide = True
    video = False
    side = 16
    sizes: ClassVar = {"image": (32, 8), "wide": (14, 30)}
    pinpoints: ClassVar = [[32, 16], [16, 32], [32, 32]]

    def cells(self, config: Any) -> int:
        """Rows, and columns, of a tile's grid."""
        return int(config.vision_config.image_size) // int(config.vision_config.patch_size)

    def placeholders(self, config: Any, size: tuple[int, int]) -> int:
        """How many placeholders the processor writes for an image of this height and width."""
        from transformers.image_processing_utils import select_best_resolution

        side = self.cells(config)
        height, width = select_best_resolution(size, self.pinpoints)
        rows, columns = height // self.side * side, width // self.side * side
        if size[1] / size[0] > columns / rows:
            rows -= (rows - int(round(size[0] * columns / size[1], 7))) // 2 * 2
        else:
            columns -= (columns - int(round(size[1] * rows / size[0], 7))) // 2 * 2
        return side * side + rows * (columns + 1)

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        from transformers.image_processing_utils import select_best_resolution

        videos = super().pictures(model, [kind for kind in kinds if kind == "video"], generator)
        written = iter(videos.tokens)
        sizes = [self.sizes[kind] for kind in kinds if kind != "video"]
        images = iter([[model.config.image_token_id] * self.placeholders(model.config, size) for size in sizes])
        inputs = videos.inputs
        if sizes:
            bests = [select_best_resolution(size, self.pinpoints) for size in sizes]
            tiles = [1 + height * width // self.side**2 for height, width in bests]
            pixels = torch.randn(len(sizes), max(tiles), 3, self.side, self.side, generator=generator)
            for image, count in zip(pixels, tiles, strict=True):
                image[count:] = 0
            inputs |= {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}
        return Pictures(inputs, [next(written if kind == "video" else images) for kind in kinds])


class LlavaNext(AnyResolution):
    model_type = "llava_next"

    def config(self) -> Any:
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig

        return LlavaNextConfig(
            vision_config=CLIPVisionConfig(**TOWER, image_size=self.side, projection_dim=16),
            text_config=LlamaConfig(**LLAMA),
            image_token_index=IMAGE_TOKEN,
            image_grid_pinpoints=self.pinpoints,
        )


class LlavaNextVideo(AnyResolution):
    model_type = "llava_next_video"
    video = True
    frames = 4
    # Frames are pooled two by two.
    per_video = 4 * 4

    def config(self) -> Any:
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextVideoConfig

        return LlavaNextVideoConfig(
            vision_config=CLIPVisionConfig(**TOWER, image_size=self.side, projection_dim=16),
            text_config=LlamaConfig(**LLAMA),
            image_token_index=IMAGE_TOKEN,
            video_token_index=VIDEO_TOKEN,
            image_grid_pinpoints=self.pinpoints,
        )


class LlavaOnevision(AnyResolution):
    model_type = "llava_onevision"
    video = True
    frames = 4
    # Frames are pooled two by two, and one newline ends the video.
    per_video = 4 * 4 + 1

    def config(self) -> Any:
        from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

        return LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(**TOWER, image_size=self.side, vision_use_head=False),
            text_config=Qwen2Config(**LLAMA),
            image_token_index=IMAGE_TOKEN,
            video_token_index=VIDEO_TOKEN,
            image_grid_pinpoints=self.pinpoints,
        )


class Granite4Vision(AnyResolution):
    """Visual features enter before layer after layer, at depths of the decoder given by its configuration."""

    model_type = "granite4_vision"
    side = 32
    sizes: ClassVar = {"image": (60, 34), "wide": (30, 62)}
    pinpoints: ClassVar = [[64, 32], [32, 64]]

    def config(self) -> Any:
        from transformers import CLIPVisionConfig
        from transformers.models.granite4_vision.configuration_granite4_vision import (
            Granite4VisionConfig,
            Granite4VisionTextConfig,
        )

        # Its resampler takes one head for every 64 channels.
        vision = CLIPVisionConfig(**TOWER | {"hidden_size": 64}, image_size=self.side, projection_dim=16)
        text = LLAMA | {"num_hidden_layers": 7, "embedding_multiplier": 2.0, "residual_multiplier": 0.7}
        return Granite4VisionConfig(
            vision_config=vision,
            text_config=Granite4VisionTextConfig(**text, attention_multiplier=0.35, logits_scaling=2.0),
            qformer_config={
                "model_type": "blip_2_qformer",
                "num_hidden_layers": 1,
                "intermediate_size": 64,
                "cross_attention_frequency": 1,
                "use_qformer_text_input": False,
                "vocab_size": 32,
                # Newer releases of transformers read these off the tower.
                "hidden_size": vision.hidden_size,
                "encoder_hidden_size": vision.hidden_size,
                "num_attention_heads": vision.hidden_size // 64,
            },
            image_token_index=IMAGE_TOKEN,
            image_grid_pinpoints=self.pinpoints,
            downsample_rate="2/4",
            deepstack_layer_map=[(-1, 0), (-2, 1)],
            spatial_target_layers=[2, 3, 4, 5],
        )

    def cells(self, config: Any) -> int:
        # Windows of 4 x 4 patches become 2 x 2 tokens.
        return super().cells(config) // 2


class Mistral3(Recipe):
    """Patches merged two by two, a break after each row and an end after the last."""

    model_type = "mistral3"
    wide = True
    sizes: ClassVar = {"image": (32, 32), "wide": (24, 48)}

    def config(self) -> Any:
        from transformers import Mistral3Config, MistralConfig, PixtralVisionConfig

        return Mistral3Config(
            vision_config=PixtralVisionConfig(**TOWER, image_size=64),
            text_config=MistralConfig(**LLAMA, head_dim=8, sliding_window=None),
            image_token_index=IMAGE_TOKEN,
        )

    def write(self, rows: int, columns: int) -> list[int]:
        """The ids of an image of so many cells."""
        line = [*[IMAGE_TOKEN] * columns, 6]
        return [*line * (rows - 1), *line[:-1], 7]

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        sizes = [self.sizes[kind] for kind in kinds]
        pixels = torch.zeros(len(kinds), 3, max(size[0] for size in sizes), max(size[1] for size in sizes))
        for image, (height, width) in zip(pixels, sizes, strict=True):
            image[:, :height, :width] = torch.randn(3, height, width, generator=generator)
        tokens = [self.write(height // 8, width // 8) for height, width in sizes]
        return Pictures({"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}, tokens)


class LightOnOcr(Mistral3):
    """As Mistral 3, with nothing between the rows."""

    model_type = "lighton_ocr"

    def config(self) -> Any:
        from transformers import PixtralVisionConfig, Qwen3Config
        from transformers.models.lighton_ocr.configuration_lighton_ocr import LightOnOcrConfig

        return LightOnOcrConfig(
            vision_config=PixtralVisionConfig(**TOWER, image_size=64),
            text_config=Qwen3Config(**LLAMA, head_dim=8),
            image_token_id=IMAGE_TOKEN,
        )

    def write(self, rows: int, columns: int) -> list[int]:
        return [IMAGE_TOKEN] * (rows * columns)


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
    InternVl(),
    QianfanOcr(),
    LlavaNext(),
    LlavaNextVideo(),
    LlavaOnevision(),
    Granite4Vision(),
    Mistral3(),
    LightOnOcr(),
    Step3p7(),
    DeepseekOcr2(),
    UnlimitedOcr(),
)
