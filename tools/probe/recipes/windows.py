"""Architectures whose decoder layers see through windows, sliding or chunked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ..recipe import VOCABULARY, FixedGridRecipe, Pictures, Recipe
from .packed import (
    AUDIO,
    BOS_IMAGE,
    BREAK,
    EOS_IMAGE,
    IMAGE,
    SECOND,
    VIDEO,
    GridRecipe,
    NestedRecipe,
    PatchedRecipe,
    token_types,
)
from .parts import LLAMA

__all__ = ["RECIPES"]

WINDOW = 24
"""Far shorter than a prompt, so that most tokens are out of sight of each other."""

SLIDING = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]
"""Both kinds of layer before and after the second one."""

TEXT: dict[str, Any] = LLAMA | {"head_dim": 8}
SLIDING_TEXT: dict[str, Any] = TEXT | {"sliding_window": WINDOW, "layer_types": SLIDING}


class Gemma3(FixedGridRecipe):
    model_type = "gemma3"
    before = (BOS_IMAGE,)
    after = (EOS_IMAGE,)

    def config(self) -> Any:
        from transformers import Gemma3Config, Gemma3TextConfig, SiglipVisionConfig

        vision = SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=self.side,
            patch_size=3,
            vision_use_head=False,
        )
        return Gemma3Config(
            text_config=Gemma3TextConfig(**SLIDING_TEXT, query_pre_attn_scalar=8),
            vision_config=vision,
            mm_tokens_per_image=16,
            boi_token_index=BOS_IMAGE,
            image_token_index=IMAGE,
            eoi_token_index=EOS_IMAGE,
        )

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        # An image sees itself whole, which the model reads off these.
        return {"token_type_ids": token_types(inputs["input_ids"])}


class ShieldGemma2(Gemma3):
    model_type = "shieldgemma2"

    def build(self) -> Any:
        from transformers import Gemma3ForConditionalGeneration

        # The mapping gives this model type to Gemma 3's class, whose configuration it keeps.
        model: Any = Gemma3ForConditionalGeneration(self.config())
        self.randomise(model)
        return model.float().eval()


class Gemma3n(FixedGridRecipe):
    """Layers at the end read the keys and values of an earlier layer; hidden states have a leading axis of 4."""

    model_type = "gemma3n"
    needs = "timm"
    before = (BOS_IMAGE,)
    after = (EOS_IMAGE,)
    side = 128

    def config(self) -> Any:
        from transformers import Gemma3nAudioConfig, Gemma3nConfig, Gemma3nTextConfig, Gemma3nVisionConfig

        text = SLIDING_TEXT | {
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 2,
            "laurel_rank": 4,
        }
        audio = Gemma3nAudioConfig(
            hidden_size=32,
            conf_num_hidden_layers=1,
            conf_num_attention_heads=2,
            sscp_conv_channel_size=(4, 4),
            input_feat_size=16,
            vocab_size=4,
            vocab_offset=VOCABULARY + 4,
        )
        # A small network of timm's stands in for the real tower of 300 million parameters.
        vision = Gemma3nVisionConfig(
            architecture="resnet10t",
            hidden_size=512,
            vocab_size=4,
            vocab_offset=VOCABULARY,
        )
        return Gemma3nConfig(
            text_config=Gemma3nTextConfig(**text),
            vision_config=vision,
            audio_config=audio,
            vision_soft_tokens_per_image=16,
            boi_token_id=BOS_IMAGE,
            image_token_id=IMAGE,
            eoi_token_id=EOS_IMAGE,
            boa_token_id=BREAK,
            audio_token_id=AUDIO,
            eoa_token_id=SECOND,
        )


GEMMA4_IDS: dict[str, Any] = {
    "boi_token_id": BOS_IMAGE,
    "image_token_id": IMAGE,
    "eoi_token_id": EOS_IMAGE,
    "video_token_id": VIDEO,
    "audio_token_id": AUDIO,
    "boa_token_id": BREAK,
    "eoa_token_index": SECOND,
}


class Gemma4(PatchedRecipe):
    """As the small models are: layers read an embedding of their own, the last ones an earlier layer's keys."""

    model_type = "gemma4"
    text: ClassVar[dict[str, Any]] = {
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "num_kv_shared_layers": 2,
        "global_head_dim": 16,
    }

    def config(self) -> Any:
        from transformers import Gemma4Config, Gemma4TextConfig, Gemma4VisionConfig

        vision = Gemma4VisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            patch_size=self.patch,
            pooling_kernel_size=self.pool,
            position_embedding_size=32,
        )
        return Gemma4Config(
            text_config=Gemma4TextConfig(**SLIDING_TEXT | self.text), vision_config=vision, **GEMMA4_IDS
        )


class Gemma4Large(Gemma4):
    """As the large models are: an image sees itself whole, a mixture of experts. Not in `RECIPES`."""

    text: ClassVar[dict[str, Any]] = {
        "hidden_size_per_layer_input": 0,
        "use_bidirectional_attention": "vision",
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "global_head_dim": 16,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
    }


class Gemma4Unified(PatchedRecipe):
    """No tower: patches are projected into the decoder as they are, and an image sees itself whole."""

    model_type = "gemma4_unified"
    pooled = False

    def config(self) -> Any:
        from transformers import Gemma4UnifiedConfig, Gemma4UnifiedTextConfig, Gemma4UnifiedVisionConfig

        text = SLIDING_TEXT | {"global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True}
        vision = Gemma4UnifiedVisionConfig(
            patch_size=self.patch,
            pooling_kernel_size=self.pool,
            mm_embed_dim=16,
            mm_posemb_size=32,
            output_proj_dims=16,
        )
        return Gemma4UnifiedConfig(text_config=Gemma4UnifiedTextConfig(**text), vision_config=vision, **GEMMA4_IDS)


class Llama4(Recipe):
    """Chunks of tokens that see only each other, and layers without positions that see everything."""

    model_type = "llama4"
    wide = True
    side = 24
    tiles: ClassVar[dict[str, tuple[int, int]]] = {"image": (1, 1), "wide": (1, 2)}

    def config(self) -> Any:
        from transformers import Llama4Config, Llama4TextConfig, Llama4VisionConfig

        text = Llama4TextConfig(
            **TEXT,
            intermediate_size_mlp=48,
            num_local_experts=4,
            num_experts_per_tok=2,
            # One layer of four sees everything in the real pattern.
            no_rope_layers=[1, 0, 1, 1, 0],
            attention_chunk_size=WINDOW,
            # Queries are scaled by their place from here on, in steps of as many tokens.
            floor_scale=16,
        )
        vision = Llama4VisionConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            vision_output_dim=24,
            image_size=self.side,
            patch_size=3,
            projector_input_dim=24,
            projector_output_dim=24,
        )
        return Llama4Config(
            text_config=text,
            vision_config=vision,
            boi_token_index=BOS_IMAGE,
            eoi_token_index=EOS_IMAGE,
            image_token_index=IMAGE,
        )

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        tile = [IMAGE] * 16
        count = 0
        tokens = []
        for kind in kinds:
            rows, columns = self.tiles[kind]
            ids = [BOS_IMAGE]
            if rows * columns > 1:
                for _ in range(rows):
                    for column in range(columns):
                        ids += [*tile, BREAK] if column < columns - 1 else tile
                    ids.append(SECOND)
                count += rows * columns
            # 12: the picture as a whole follows.
            tokens.append([*ids, 12, *tile, EOS_IMAGE])
            count += 1
        return Pictures({"pixel_values": torch.randn(count, 3, self.side, self.side, generator=generator)}, tokens)


class MuseGlimmer(GridRecipe):
    """Layers that see everything have no positions."""

    model_type = "muse_glimmer"
    video_ends = ((BREAK,), (12,))
    before_frame = (40, 41)
    after_frame = (SECOND,)
    text: ClassVar[dict[str, Any]] = SLIDING_TEXT | {"qk_scale_factor": 2.0}

    def _vision(self) -> dict[str, Any]:
        return {
            "patch_size": 4,
            "pos_emb_height": 4,
            "pos_emb_width": 4,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "layer_types": ["window_attention", "full_attention"],
        }

    def _top(self) -> dict[str, Any]:
        return {
            "image_token_id": IMAGE,
            "video_token_id": VIDEO,
            "out_hidden_size": 64,
            "projector_hidden_size": 24,
        }

    def config(self) -> Any:
        from transformers import MuseGlimmerConfig, MuseGlimmerTextConfig, MuseGlimmerVisionConfig

        text = MuseGlimmerTextConfig(**self.text, layer_rope_theta=[1e4, 0, 1e4, 1e4, 0])
        return MuseGlimmerConfig(
            text_config=text, vision_config=MuseGlimmerVisionConfig(**self._vision()), **self._top()
        )


class MuseSpark(MuseGlimmer):
    model_type = "muse_spark"

    def config(self) -> Any:
        from transformers import MuseSparkAudioConfig, MuseSparkConfig, MuseSparkTextConfig, MuseSparkVisionConfig

        text = MuseSparkTextConfig(
            **self.text,
            layer_rope_theta=[1e4, 0, 1e4, 1e4, 0],
            moe_intermediate_size=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            moe_hidden_size=16,
        )
        audio = MuseSparkAudioConfig(
            patch_sizes=(4, 2), hidden_sizes=(8, 8), depths=(1, 1), num_hidden_layers=2, out_hidden_size=32
        )
        return MuseSparkConfig(
            text_config=text,
            vision_config=MuseSparkVisionConfig(**self._vision()),
            audio_config=audio,
            audio_token_id=AUDIO,
            **self._top(),
        )


class Idefics2(NestedRecipe):
    """Every image becomes the same number of tokens, each gathered from all of it."""

    model_type = "idefics2"
    latents = 16
    tiles: ClassVar[dict[str, int]] = {"image": 1}

    def config(self) -> Any:
        from transformers import Idefics2Config, MistralConfig
        from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig, Idefics2VisionConfig

        vision = Idefics2VisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=self.side,
            patch_size=4,
        )
        perceiver = Idefics2PerceiverConfig(
            hidden_size=32,
            resampler_n_latents=self.latents,
            resampler_depth=1,
            resampler_n_heads=2,
            resampler_head_dim=8,
            num_key_value_heads=1,
        )
        return Idefics2Config(
            text_config=MistralConfig(**TEXT, sliding_window=WINDOW),
            vision_config=vision,
            perceiver_config=perceiver,
            image_token_id=IMAGE,
        )

    def picture_tokens(self, kind: str) -> list[int]:
        return [BOS_IMAGE, *[IMAGE] * self.latents, BOS_IMAGE]


RECIPES: tuple[Recipe, ...] = (
    Gemma3(),
    ShieldGemma2(),
    Gemma3n(),
    Gemma4(),
    Gemma4Unified(),
    Llama4(),
    MuseGlimmer(),
    MuseSpark(),
    Idefics2(),
)
