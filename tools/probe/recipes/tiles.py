"""Architectures that cut an image into tiles by its own shape: LLaVA-NeXT and its like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ..recipe import Pictures, Recipe
from .fixed_grids import VideoFrames
from .parts import LLAMA, TOWER
from .sized_grids import IMAGE_TOKEN, TiledRecipe

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


RECIPES: tuple[Recipe, ...] = (
    InternVl(),
    QianfanOcr(),
    LlavaNext(),
    LlavaNextVideo(),
    LlavaOnevision(),
    Granite4Vision(),
    Mistral3(),
    LightOnOcr(),
)
