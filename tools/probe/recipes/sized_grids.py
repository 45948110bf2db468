"""Architectures whose images take more or other grids as they grow: numbered tiles, patches of any count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ..recipe import VOCABULARY, Pictures, Recipe, takes
from .parts import LLAMA, SAM, TOWER

__all__ = ["RECIPES", "TiledRecipe"]

IMAGE_TOKEN = 5
WINDOW = 24


class TiledRecipe(Recipe):
    """For models that see an image as equal tiles, all in one `pixel_values`: a wide one as several.

    Attributes:
        side: height and width of a tile.
        per_tile: placeholders of a tile.
        tiles: how many tiles a wide image takes, a thumbnail included.
    """

    wide = True
    side: int = 32
    per_tile: int = 16
    tiles: int = 3

    def write(self, tiles: int) -> list[int]:
        """The ids of an image of so many tiles."""
        return [6, *[IMAGE_TOKEN] * self.per_tile * tiles, 7]

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        counts = [self.tiles if kind == "wide" else 1 for kind in kinds]
        pixels = torch.randn(sum(counts), 3, self.side, self.side, generator=generator)
        return Pictures({"pixel_values": pixels}, [self.write(count) for count in counts])


class GotOcr2(TiledRecipe):
    model_type = "got_ocr2"
    side = 64

    def config(self) -> Any:
        from transformers import Qwen2Config
        from transformers.models.got_ocr2.configuration_got_ocr2 import GotOcr2Config, GotOcr2VisionConfig

        return GotOcr2Config(
            vision_config=GotOcr2VisionConfig(**SAM, image_size=self.side),
            text_config=Qwen2Config(**LLAMA),
            image_token_index=IMAGE_TOKEN,
        )


class AyaVision(TiledRecipe):
    """Every fourth layer sees everything, the others a window."""

    model_type = "aya_vision"

    def config(self) -> Any:
        from transformers import AyaVisionConfig, Cohere2Config, SiglipVisionConfig

        return AyaVisionConfig(
            vision_config=SiglipVisionConfig(**TOWER, image_size=self.side, vision_use_head=False),
            text_config=Cohere2Config(**LLAMA, sliding_window=WINDOW),
            image_token_index=IMAGE_TOKEN,
        )

    def write(self, tiles: int) -> list[int]:
        own = [IMAGE_TOKEN] * self.per_tile
        # Tiles are numbered in words, and the whole image comes last.
        numbered = [token for tile in range(tiles - 1) for token in [8, 12 + tile, *own]]
        return [6, *numbered, 9, *own, 7]


class Cohere2Vision(TiledRecipe):
    model_type = "cohere2_vision"

    def config(self) -> Any:
        from transformers import Cohere2Config, Cohere2VisionConfig, SiglipVisionConfig

        return Cohere2VisionConfig(
            vision_config=SiglipVisionConfig(**TOWER, image_size=self.side, vision_use_head=False),
            text_config=Cohere2Config(**LLAMA, sliding_window=WINDOW),
            image_token_id=IMAGE_TOKEN,
            alignment_intermediate_size=64,
        )

    def write(self, tiles: int) -> list[int]:
        return [6, *[*[IMAGE_TOKEN] * self.per_tile, 8] * tiles, 7]


class Ovis2(TiledRecipe):
    model_type = "ovis2"

    def config(self) -> Any:
        from transformers import Ovis2Config, Ovis2VisionConfig, Qwen2Config

        return Ovis2Config(
            vision_config=Ovis2VisionConfig(**TOWER, image_size=self.side, hidden_stride=2, vocab_size=64),
            text_config=Qwen2Config(**LLAMA),
            image_token_id=IMAGE_TOKEN,
            visual_indicator_token_ids=[6, 7, 8, 9, 10],
            vocab_size=VOCABULARY,
            hidden_size=32,
        )

    def write(self, tiles: int) -> list[int]:
        own = [IMAGE_TOKEN] * self.per_tile
        # The whole image comes first, then one row of its tiles with a separator between them.
        row = [token for tile in range(tiles - 1) for token in ([8] if tile else []) + own]
        return [6, *own, 10, *row, 7]


class CohereCompass(Recipe):
    """Its first layers add further visual features to their output; every fourth layer has no positions."""

    model_type = "cohere_compass"
    wide = True
    video = True
    patches: ClassVar = {"image": (1, 8, 8), "wide": (1, 4, 12), "video": (2, 4, 6)}
    """Frames, rows and columns of patches, which are merged two by two."""

    def config(self) -> Any:
        from transformers.models.cohere_compass.configuration_cohere_compass import (
            CohereCompassConfig,
            CohereCompassTextConfig,
            CohereCompassVisionConfig,
        )

        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
        vision = {
            name: value for name, value in TOWER.items() if name not in ("num_hidden_layers", "num_attention_heads")
        }
        return CohereCompassConfig(
            vision_config=CohereCompassVisionConfig(
                **vision,
                depth=3,
                num_heads=2,
                out_hidden_size=32,
                num_position_embeddings=64,
                deepstack_visual_indexes=[0, 1, 2],
            ),
            text_config=CohereCompassTextConfig(
                **LLAMA,
                sliding_window=WINDOW,
                layer_types=[*["sliding_attention"] * 3, "full_attention", "sliding_attention"],
                rope_parameters={"sliding_attention": rope, "full_attention": None},
            ),
            image_token_id=IMAGE_TOKEN,
            video_token_id=8,
            vision_start_token_id=6,
            vision_end_token_id=7,
        )

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        pixels: dict[bool, list[torch.Tensor]] = {True: [], False: []}
        grids: dict[bool, list[tuple[int, int, int]]] = {True: [], False: []}
        tokens: list[list[int]] = []
        for kind in kinds:
            frames, rows, columns = grid = self.patches[kind]
            grids[kind == "video"].append(grid)
            pixels[kind == "video"].append(torch.randn(frames * rows * columns, 3 * 2 * 4 * 4, generator=generator))
            own = rows * columns // 4
            if kind == "video":
                # Each frame is announced by its time.
                tokens.append([token for frame in range(frames) for token in [40, 41 + frame, 6, *[8] * own, 7]])
            else:
                tokens.append([6, *[IMAGE_TOKEN] * own, 7])
        inputs: dict[str, Any] = {}
        for is_video, names in (
            (False, ("pixel_values", "image_grid_thw")),
            (True, ("pixel_values_videos", "video_grid_thw")),
        ):
            if pixels[is_video]:
                inputs |= {names[0]: torch.cat(pixels[is_video]), names[1]: torch.tensor(grids[is_video])}
        return Pictures(inputs, tokens)

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        ids = inputs["input_ids"]
        return {"mm_token_type_ids": (ids == IMAGE_TOKEN).int() + 2 * (ids == 8).int()}


class Emu3(Recipe):
    """Images as codes; a line break fills a placeholder at the end of each row."""

    model_type = "emu3"
    wide = True
    codes = 16
    sizes: ClassVar = {"image": (24, 24), "wide": (16, 32)}

    def config(self) -> Any:
        from transformers import Emu3Config, Emu3TextConfig, Emu3VQVAEConfig

        codes = {f"<|visual token {code:06d}|>": 16 + code for code in range(self.codes)}
        return Emu3Config(
            vq_config=Emu3VQVAEConfig(
                codebook_size=self.codes,
                base_channels=32,
                channel_multiplier=[1, 1, 1],
                num_res_blocks=1,
                attn_resolutions=[2],
                hidden_size=32,
            ),
            text_config=Emu3TextConfig(**LLAMA),
            vocabulary_map={"<image>": IMAGE_TOKEN, "<|extra_200|>": 6} | codes,
        )

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        sizes = [self.sizes[kind] for kind in kinds]
        pixels = torch.zeros(len(kinds), 3, max(size[0] for size in sizes), max(size[1] for size in sizes))
        tokens = []
        for image, (height, width) in zip(pixels, sizes, strict=True):
            image[:, :height, :width] = torch.randn(3, height, width, generator=generator)
            rows, columns = height // 4, width // 4
            # The size is written out before the image.
            tokens.append([7, 40 + rows, 32, 40 + columns, 8, *[IMAGE_TOKEN] * (rows * (columns + 1)), 9, 10])
        return Pictures({"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}, tokens)


class Fuyu(Recipe):
    """No vision tower; rows of patches end in a token of their own, and the image stands first."""

    model_type = "fuyu"
    several_images = False
    wide = True
    grids: ClassVar = {"image": (4, 6), "wide": (3, 8)}

    def config(self) -> Any:
        from transformers import FuyuConfig, PersimmonConfig

        text = PersimmonConfig(**LLAMA)
        # Older releases of transformers project patches to the width that is named outside the text's settings.
        sizes = {"image_size": 32, "patch_size": 4, "hidden_size": text.hidden_size}
        return FuyuConfig(text_config=text, **sizes, image_token_id=IMAGE_TOKEN)

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        grids = [self.grids[kind] for kind in kinds]
        patches = torch.randn(sum(rows * columns for rows, columns in grids), 3 * 4 * 4, generator=generator)
        tokens = [[*[*[IMAGE_TOKEN] * columns, 6] * rows, 1] for rows, columns in grids]
        # Older releases of transformers give them another name.
        return Pictures({"pixel_values" if takes(model, "pixel_values") else "image_patches": patches}, tokens)


RECIPES: tuple[Recipe, ...] = (
    GotOcr2(),
    AyaVision(),
    Cohere2Vision(),
    Ovis2(),
    CohereCompass(),
    Emu3(),
    Fuyu(),
)
