"""Architectures with tiles nested by sample, a querying transformer, or image tokens that the call marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ..recipe import FIRST_TEXT_TOKEN, VOCABULARY, FixedGridRecipe, Pictures, Recipe
from .packed import BOS_IMAGE, BREAK, EOS_IMAGE, IMAGE, SECOND, VIDEO, NestedRecipe
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
OPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "word_embed_proj_dim": 32,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
QFORMER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
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


class Blip2(FixedGridRecipe):
    """With a decoder-only language model. Its `generate` runs that model alone."""

    model_type = "blip-2"
    several_images = False
    queries = 16

    def _parts(self) -> dict[str, Any]:
        from transformers import OPTConfig

        return {"text_config": OPTConfig(**OPT), "num_query_tokens": self.queries}

    def config(self) -> Any:
        from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig

        return Blip2Config(
            vision_config=Blip2VisionConfig(**VISION),
            qformer_config=Blip2QFormerConfig(**QFORMER),
            image_token_index=IMAGE,
            **self._parts(),
        )

    def randomise(self, model: Any) -> None:
        super().randomise(model)
        # Queries that are all alike would look at the same.
        with torch.no_grad():
            model.query_tokens.normal_()

    def placeholders(self, model: Any, pixels: dict[str, Any], images: int) -> int:
        return self.queries


class InstructBlip(Blip2):
    """The queries read the text as well."""

    model_type = "instructblip"

    def config(self) -> Any:
        from transformers import InstructBlipConfig, InstructBlipQFormerConfig, InstructBlipVisionConfig

        return InstructBlipConfig(
            vision_config=InstructBlipVisionConfig(**VISION),
            qformer_config=InstructBlipQFormerConfig(**QFORMER),
            image_token_index=IMAGE,
            **self._parts(),
        )

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        texts = [row[row >= FIRST_TEXT_TOKEN] for row in inputs["input_ids"]]
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        return {"qformer_input_ids": ids, "qformer_attention_mask": (ids > 0).long()}


class InstructBlipVideo(InstructBlip):
    """Every picture is a video of 4 frames."""

    model_type = "instructblipvideo"
    frames = 4

    def config(self) -> Any:
        from transformers import InstructBlipVideoConfig, InstructBlipVideoQFormerConfig, InstructBlipVideoVisionConfig

        return InstructBlipVideoConfig(
            vision_config=InstructBlipVideoVisionConfig(**VISION),
            qformer_config=InstructBlipVideoQFormerConfig(**QFORMER),
            video_token_index=VIDEO,
            **self._parts() | {"num_query_tokens": 8},
        )

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        pixels = torch.randn(len(kinds), self.frames, 3, self.side, self.side, generator=generator)
        return Pictures({"pixel_values": pixels}, [[VIDEO] * (8 * self.frames) for _ in kinds])


class Kosmos2(FixedGridRecipe):
    """The call marks the image tokens, each of which has an id of its own."""

    model_type = "kosmos-2"
    several_images = False
    latents = 12
    ids: ClassVar[list[int]] = [6, *range(8, 19)]
    before = (BOS_IMAGE,)
    after = (EOS_IMAGE,)

    def _text(self) -> dict[str, Any]:
        return {
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 512,
            "embed_dim": 32,
            "layers": 5,
            "ffn_dim": 48,
            "attention_heads": 4,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": None,
        }

    def config(self) -> Any:
        from transformers import Kosmos2Config
        from transformers.models.kosmos2.configuration_kosmos2 import Kosmos2TextConfig, Kosmos2VisionConfig

        return Kosmos2Config(
            text_config=Kosmos2TextConfig(**self._text()),
            vision_config=Kosmos2VisionConfig(**VISION),
            latent_query_num=self.latents,
        )

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        pixels = torch.randn(len(kinds), 3, self.side, self.side, generator=generator)
        return Pictures({"pixel_values": pixels}, [[*self.before, *self.ids, *self.after] for _ in kinds])

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        marks = torch.isin(inputs["input_ids"], torch.tensor(self.ids)).long()
        return {"image_embeds_position_mask": marks} if "pixel_values" in inputs else {}


class Kosmos25(Kosmos2):
    """Patches come with their row and column as their first two numbers."""

    model_type = "kosmos-2.5"
    ids: ClassVar[list[int]] = [IMAGE] * Kosmos2.latents

    def config(self) -> Any:
        from transformers import Kosmos2_5Config
        from transformers.models.kosmos2_5.configuration_kosmos2_5 import Kosmos2_5TextConfig, Kosmos2_5VisionConfig

        vision = Kosmos2_5VisionConfig(
            hidden_size=16,
            patch_embed_hidden_size=27,
            intermediate_size=32,
            head_dim=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_num_patches=32,
        )
        return Kosmos2_5Config(
            text_config=Kosmos2_5TextConfig(**self._text()), vision_config=vision, latent_query_num=self.latents
        )

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        cells = torch.arange(20)
        places = torch.stack([1 + cells // 5, 1 + cells % 5], dim=1).float().expand(len(kinds), -1, -1)
        pixels = torch.randn(len(kinds), 20, 27, generator=generator)
        inputs = {
            "flattened_patches": torch.cat([places, pixels], dim=2),
            "width": torch.full((len(kinds),), 15.0),
            "height": torch.full((len(kinds),), 12.0),
        }
        return Pictures(inputs, [[*self.before, *self.ids, *self.after] for _ in kinds])

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        if "flattened_patches" not in inputs:
            return {}
        ids = inputs["input_ids"]
        ends = (ids == BOS_IMAGE) | (ids == EOS_IMAGE)
        return {"image_embeds_position_mask": (ids == IMAGE).long() - ends.long()}


RECIPES: tuple[Recipe, ...] = (
    Idefics3(),
    SmolVlm(),
    GraniteDocling(),
    Molmo2(),
    Blip2(),
    InstructBlip(),
    InstructBlipVideo(),
    Kosmos2(),
    Kosmos25(),
)
