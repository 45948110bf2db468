"""Qwen's architectures, and those that take over its decoder with positions of frame, row and column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..recipe import Recipe
from .patch_grids import DECODER, MOE, ROPE, VISION, PatchGridRecipe

__all__ = ["RECIPES"]

TIME = (11, 12, 13)
"""A time stamp as a video's processor writes it before a frame."""

LINEAR = ["linear_attention", "full_attention", "linear_attention", "linear_attention", "full_attention"]
WINDOWED = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]


class Qwen2VL(PatchGridRecipe):
    model_type = "qwen2_vl"

    def config(self) -> Any:
        from transformers import Qwen2VLConfig

        vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
        return Qwen2VLConfig(text_config=DECODER | {"rope_parameters": ROPE}, vision_config=vision, **self.ids)


class Qwen25VL(PatchGridRecipe):
    model_type = "qwen2_5_vl"

    @property
    def vision(self) -> dict[str, Any]:
        # Windows of 2 x 2 tokens, so that the tower's order of patches differs from the raster order.
        return VISION | {"out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1]}

    def config(self) -> Any:
        from transformers import Qwen2_5_VLConfig

        text = DECODER | {"rope_parameters": ROPE}
        return Qwen2_5_VLConfig(text_config=text, vision_config=self.vision, **self.ids)

    def along(self, grids: Sequence[tuple[int, int, int]], is_video: bool) -> dict[str, Any]:
        return {"second_per_grid_ts": [1.0] * len(grids)} if is_video else {}


class Qwen3VL(PatchGridRecipe):
    model_type = "qwen3_vl"
    time = TIME

    @property
    def vision(self) -> dict[str, Any]:
        # Two features to add behind decoder layers 0 and 1.
        return VISION | {"out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}

    @property
    def text(self) -> dict[str, Any]:
        return DECODER | {"head_dim": 8, "rope_parameters": ROPE | {"mrope_interleaved": True}}

    def config(self) -> Any:
        from transformers import Qwen3VLConfig

        return Qwen3VLConfig(text_config=self.text, vision_config=self.vision, **self.ids)


class Qwen3VLMoe(Qwen3VL):
    model_type = "qwen3_vl_moe"

    def config(self) -> Any:
        from transformers import Qwen3VLMoeConfig

        return Qwen3VLMoeConfig(text_config=self.text | MOE, vision_config=self.vision, **self.ids)


class Qwen35(PatchGridRecipe):
    model_type = "qwen3_5"
    time = TIME

    @property
    def vision(self) -> dict[str, Any]:
        return VISION | {"out_hidden_size": 32, "num_position_embeddings": 64}

    @property
    def text(self) -> dict[str, Any]:
        return DECODER | {
            "head_dim": 16,
            "rope_parameters": ROPE | {"mrope_interleaved": True, "partial_rotary_factor": 0.5},
            "layer_types": LINEAR,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        }

    def config(self) -> Any:
        from transformers import Qwen3_5Config

        return Qwen3_5Config(text_config=self.text, vision_config=self.vision, **self.ids)


class Qwen35Moe(Qwen35):
    model_type = "qwen3_5_moe"

    @property
    def text(self) -> dict[str, Any]:
        return super().text | MOE | {"shared_expert_intermediate_size": 16}

    def config(self) -> Any:
        from transformers import Qwen3_5MoeConfig

        return Qwen3_5MoeConfig(text_config=self.text, vision_config=self.vision, **self.ids)


class Qwen4Exp(Qwen35Moe):
    model_type = "qwen4_exp"

    @property
    def text(self) -> dict[str, Any]:
        indexer = {
            "indexer_n_heads": 16,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
        }
        # Layers 0 and 3 read the ids of the tokens themselves; that needs an id that ends a text.
        ngrams = {
            "ple_layer_ids": [1, 4],
            "ple_embed_dim": 16,
            "heads_per_ngram": 2,
            "ngram_vocab_size_base": 50,
            "make_ngram_vocab_size_divisible_by": 4,
            "eos_token_id": 2,
        }
        return super().text | indexer | ngrams | {"hc_count": 2, "hc_lowrank": 8}

    def build(self) -> Any:
        model = super().build()
        model.generation_config.eos_token_id = None
        return model

    def config(self) -> Any:
        from transformers import Qwen4ExpConfig

        return Qwen4ExpConfig(text_config=self.text, vision_config=self.vision, **self.ids)


class Qwen25Omni(Qwen25VL):
    model_type = "qwen2_5_omni_thinker"

    def config(self) -> Any:
        from transformers import Qwen2_5OmniThinkerConfig

        audio = {
            "num_mel_bins": 16,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "d_model": 16,
            "max_source_positions": 20,
            "output_dim": 32,
        }
        text = DECODER | {"rope_parameters": ROPE}
        ids = {
            "image_token_index": self.image_id,
            "video_token_index": self.video_id,
            "audio_token_index": 14,
            "audio_start_token_id": 15,
            "audio_end_token_id": 16,
            "user_token_id": 17,
            "vision_start_token_id": self.start[0],
            "vision_end_token_id": self.end[0],
        }
        return Qwen2_5OmniThinkerConfig(text_config=text, vision_config=self.vision, audio_config=audio, **ids)

    def along(self, grids: Sequence[tuple[int, int, int]], is_video: bool) -> dict[str, Any]:
        return {"video_second_per_grid": torch.tensor([1.0] * len(grids))} if is_video else {}

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        return {}


class Qwen3Omni(Qwen25Omni):
    model_type = "qwen3_omni_moe_thinker"

    def config(self) -> Any:
        from transformers import Qwen3OmniMoeThinkerConfig

        audio = {
            "num_mel_bins": 16,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "d_model": 16,
            "max_source_positions": 20,
            "output_dim": 32,
            "downsample_hidden_size": 8,
        }
        text = DECODER | MOE | {"head_dim": 8, "rope_parameters": ROPE | {"mrope_interleaved": True}}
        vision = VISION | {"out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
        ids = {"audio_token_id": 14, "audio_start_token_id": 15, "user_token_id": 17}
        return Qwen3OmniMoeThinkerConfig(text_config=text, vision_config=vision, audio_config=audio, **self.ids, **ids)


class VideoLlama3(PatchGridRecipe):
    model_type = "video_llama_3"
    grids: Mapping[str, tuple[int, int, int]] = {"image": (1, 4, 4), "wide": (1, 3, 7), "video": (3, 4, 6)}
    frames_per_patch = 1
    dropped: tuple[int, ...] = (13, 16)
    """Tokens of each video that the processor left out, because they hardly differ from the frame before."""

    def config(self) -> Any:
        from transformers import VideoLlama3Config

        vision = {
            "num_hidden_layers": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "patch_size": 4,
        }
        ids = {"image_token_id": self.image_id, "video_token_id": self.video_id}
        return VideoLlama3Config(text_config=DECODER | {"model_type": "qwen2"}, vision_config=vision, **ids)

    def along(self, grids: Sequence[tuple[int, int, int]], is_video: bool) -> dict[str, Any]:
        if not is_video:
            return {"image_merge_sizes": torch.ones(len(grids), dtype=torch.long)}
        kept = [torch.ones(frames * height * width // 4, dtype=torch.bool) for frames, height, width in grids]
        for video in kept:
            video[list(self.dropped)] = False
        return {
            "video_merge_sizes": torch.full((len(grids),), 2),
            "video_compression_mask": torch.cat(kept),
        }

    def tokens(self, kind: str) -> list[int]:
        frames, height, width = self.grids[kind]
        if kind != "video":
            return [*self.start, *[self.image_id] * (height * width), *self.end]
        row = list(self.start)
        cells = height * width // 4
        for frame in range(frames):
            own = range(frame * cells, frame * cells + cells)
            row += [*TIME, *[self.video_id for token in own if token not in self.dropped], 9]
        return [*row, *self.end]

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        return {}


class Cosmos3Edge(PatchGridRecipe):
    model_type = "cosmos3_edge"
    frames_per_patch = 1
    time = TIME

    def config(self) -> Any:
        from transformers import Cosmos3EdgeConfig

        vision = {
            "num_hidden_layers": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "patch_size": 4,
            "num_patches": 64,
        }
        text = DECODER | {"head_dim": 8, "rope_parameters": ROPE}
        return Cosmos3EdgeConfig(text_config=text, vision_config=vision, projector_hidden_size=32, **self.ids)


class Cosmos3Omni(Qwen3VL):
    model_type = "cosmos3_omni"

    def config(self) -> Any:
        from transformers import Cosmos3OmniConfig

        text = self.text | {"model_type": "qwen3_vl_text"}
        vision = self.vision | {"model_type": "qwen3_vl_vision"}
        return Cosmos3OmniConfig(text_config=text, vision_config=vision, **self.ids)


class Exaone45(Qwen25VL):
    model_type = "exaone4_5"

    def config(self) -> Any:
        from transformers import Exaone4_5_Config

        text = DECODER | {"model_type": "exaone4", "sliding_window": 24, "layer_types": WINDOWED}
        vision = self.vision | {"num_key_value_heads": 1}
        ids = {"image_token_id": self.image_id, "video_token_id": self.video_id}
        return Exaone4_5_Config(text_config=text, vision_config=vision, **ids)

    def along(self, grids: Sequence[tuple[int, int, int]], is_video: bool) -> dict[str, Any]:
        return {}

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        return {}


class HyperClovaXVision(Exaone45):
    model_type = "hyperclovax_vision_v2"

    def config(self) -> Any:
        from transformers import HyperCLOVAXVisionV2Config

        scaling = {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}
        text = DECODER | scaling | {"model_type": "hyperclovax"}
        vision = self.vision | {"model_type": "qwen2_5_vl_vision"}
        ids = {"image_token_id": self.image_id, "video_token_id": self.video_id}
        return HyperCLOVAXVisionV2Config(text_config=text, vision_config=vision, **ids)


RECIPES: tuple[Recipe, ...] = (
    Qwen2VL(),
    Qwen25VL(),
    Qwen3VL(),
    Qwen3VLMoe(),
    Qwen35(),
    Qwen35Moe(),
    Qwen4Exp(),
    Qwen25Omni(),
    Qwen3Omni(),
    VideoLlama3(),
    Cosmos3Edge(),
    Cosmos3Omni(),
    Exaone45(),
    HyperClovaXVision(),
)
