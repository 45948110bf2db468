"""Architectures that read an image through learnt queries: Q-Formers and the resamplers of Kosmos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ..recipe import FIRST_TEXT_TOKEN, VOCABULARY, FixedGridRecipe, Pictures, Recipe
from .others import VISION
from .packed import BOS_IMAGE, EOS_IMAGE, IMAGE, VIDEO

__all__ = ["RECIPES"]

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
    Blip2(),
    InstructBlip(),
    InstructBlipVideo(),
    Kosmos2(),
    Kosmos25(),
)
