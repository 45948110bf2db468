"""Architectures with tiles nested by sample, or image tokens that the call marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ..recipe import Pictures, Recipe
from .packed import BOS_IMAGE, BREAK, EOS_IMAGE, IMAGE, SECOND, NestedRecipe
from .parts import LLAMA

__all__ = ["RECIPES"]

TEXT = LLAMA
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 3,
}
GLOBAL = 12
"""Says that the picture as a whole follows."""


class Idefics3(NestedRecipe):
    """A small image is one tile; a larger one is cut, row by row, and the whole of it follows."""

    model_type = "idefics3"
    wide = True
    tiles: ClassVar[dict[str, int]] = {"image": 1, "wide": 3}
    shapes: ClassVar[dict[str, tuple[int, int]]] = {"image": (0, 0), "wide": (1, 2)}
    """Rows and columns of tiles; none where the picture is not cut."""
    tokens = 16

    def picture_tokens(self, kind: str) -> list[int]:
        rows, columns = self.shapes[kind]
        ids: list[int] = []
        for row in range(rows):
            for column in range(columns):
                # 20, 21, ... say which row and column of tiles follows.
                ids += [BOS_IMAGE, 20 + row * columns + column, *[IMAGE] * self.tokens]
            ids.append(BREAK)
        return [*ids, *([SECOND] if rows else []), BOS_IMAGE, GLOBAL, *[IMAGE] * self.tokens, BOS_IMAGE]

    def config(self) -> Any:
        from transformers import Idefics3Config, LlamaConfig
        from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

        return Idefics3Config(
            text_config=LlamaConfig(**TEXT),
            vision_config=Idefics3VisionConfig(**VISION),
            image_token_id=IMAGE,
            scale_factor=2,
        )


class SmolVlm(Idefics3):
    """A video's frames are images whose placeholders nothing tells from those of images."""

    model_type = "smolvlm"
    video = True
    tiles: ClassVar[dict[str, int]] = {"image": 1, "wide": 3, "video": 2}

    def picture_tokens(self, kind: str) -> list[int]:
        if kind != "video":
            return super().picture_tokens(kind)
        # An introduction, and the time of each frame, are text.
        return [40, 41, *[42, 43, *super().picture_tokens("image")] * self.tiles["video"], 44]

    def config(self) -> Any:
        from transformers import LlamaConfig, SmolVLMConfig
        from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

        return SmolVLMConfig(
            text_config=LlamaConfig(**TEXT),
            vision_config=SmolVLMVisionConfig(**VISION),
            image_token_id=IMAGE,
            scale_factor=2,
        )


class GraniteDocling(Idefics3):
    """As Idefics 3, and features of the tower's middle are added to the image tokens behind the first layers."""

    model_type = "granite_docling"
    side = 32
    shapes: ClassVar[dict[str, tuple[int, int]]] = {"image": (1, 1), "wide": (1, 2)}

    def picture_tokens(self, kind: str) -> list[int]:
        ids = super().picture_tokens(kind)
        # A page of one tile is that tile, and no whole follows.
        return ids if kind == "wide" else [BOS_IMAGE, 20, *[IMAGE] * self.tokens, BREAK]

    def config(self) -> Any:
        from transformers import GraniteDoclingConfig, GraniteDoclingTextConfig, GraniteDoclingVisionConfig

        vision = GraniteDoclingVisionConfig(
            **VISION | {"num_hidden_layers": 3, "image_size": self.side, "patch_size": 2},
            out_hidden_size=32,
            scale_factor=4,
            deepstack_visual_indexes=[0, 1, 2],
        )
        text = GraniteDoclingTextConfig(**TEXT, embedding_multiplier=1.0, attention_multiplier=0.35)
        return GraniteDoclingConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, pad_token_id=0)

    def prompt(self, model: Any, samples: Sequence[Sequence[int | str]], *, seed: int = 0) -> dict[str, Any]:
        inputs = super().prompt(model, samples, seed=seed)
        if "pixel_attention_mask" in inputs:
            # Here it says which tiles are real.
            inputs["pixel_attention_mask"] = inputs["pixel_attention_mask"][:, :, 0, 0].bool()
        return inputs


class Molmo2(Recipe):
    """A small view of a picture and then all of it in one grid. A batch holds images or videos, never both."""

    model_type = "molmo2"
    wide = True
    video = True
    side = 8
    """Patches along the side of a crop."""
    patch = 3
    start, low_start, end, column, frame_start, frame_end = BOS_IMAGE, 13, EOS_IMAGE, BREAK, 14, 15
    crops: ClassVar[dict[str, tuple[int, int]]] = {"image": (1, 1), "wide": (1, 2), "video": (2, 1)}
    """Crops down and across behind the small view; of a video, frames."""

    def config(self) -> Any:
        from transformers import Molmo2AdapterConfig, Molmo2Config, Molmo2TextConfig, Molmo2VisionConfig

        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
        vision = Molmo2VisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            image_size=[self.side * self.patch] * 2,
            patch_size=self.patch,
            **heads,
        )
        adapter = Molmo2AdapterConfig(
            hidden_size=16, vision_feature_layer=[1, 0], intermediate_size=32, text_hidden_size=32, **heads
        )
        text = {name: value for name, value in TEXT.items() if name != "bos_token_id"}
        return Molmo2Config(
            vision_config=vision,
            adapter_config=adapter,
            text_config=Molmo2TextConfig(**text, head_dim=8, additional_vocab_size=8),
            image_start_token_id=self.start,
            low_res_image_start_token_id=self.low_start,
            image_end_token_id=self.end,
            image_patch_id=IMAGE,
            frame_start_token_id=self.frame_start,
            frame_end_token_id=self.frame_end,
        )

    def _pooling(self, rows: int, columns: int, first: int) -> torch.Tensor:
        """For each token, the 4 patches that it pools, of crops that stand in `rows` x `columns`."""
        side = self.side
        patches = first + torch.arange(rows * columns * side**2).view(rows, columns, side, side)
        grid = patches.permute(0, 2, 1, 3).reshape(rows * side // 2, 2, columns * side // 2, 2)
        return grid.permute(0, 2, 1, 3).reshape(-1, 4)

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        inputs: dict[str, Any] = {}
        half = self.side // 2
        for video in (False, True):
            own = [self.crops[kind] for kind in kinds if (kind == "video") == video]
            pooling, grids, counts = [], [], []
            patches = 0
            for rows, columns in own:
                parts = [(rows, columns)] if video else [(1, 1), (rows, columns)]
                for part in parts:
                    pooling.append(self._pooling(*part, patches))
                    patches += part[0] * part[1] * self.side**2
                grids.append([rows, half, half] if video else [half, half, half * rows, half * columns])
                counts.append(sum(a * b for a, b in parts))
            if own:
                pixels = torch.randn(sum(counts), self.side**2, 3 * self.patch**2, generator=generator)
                name = "video" if video else "image"
                inputs["pixel_values_videos" if video else "pixel_values"] = pixels
                inputs[f"{name}_token_pooling"] = torch.cat(pooling)
                inputs[f"{name}_grids"] = torch.tensor(grids)
                if not video:
                    inputs["image_num_crops"] = torch.tensor(counts)
        tokens = []
        for kind in kinds:
            rows, columns = self.crops[kind]
            if kind == "video":
                tokens.append([40, 41, self.frame_start, *[IMAGE] * half**2, self.frame_end] * rows)
                continue
            small = [*[IMAGE] * half, self.column] * half
            whole = [*[IMAGE] * half * columns, self.column] * (half * rows)
            tokens.append([self.low_start, *small, self.end, self.start, *whole, self.end])
        return Pictures(inputs, tokens)

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        # All of a prompt's image tokens see each other, separators included.
        ids = torch.tensor([IMAGE, self.column, self.start, self.low_start, self.frame_start, self.end, self.frame_end])
        return {"mm_token_type_ids": torch.isin(inputs["input_ids"], ids).long()}


RECIPES: tuple[Recipe, ...] = (
    Idefics3(),
    SmolVlm(),
    GraniteDocling(),
    Molmo2(),
)
