"""GLM's architectures and others that take patches with a grid: Ernie, HunYuan, PaddleOCR, Kimi, dots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..recipe import Recipe
from .patch_grids import DECODER, ROPE, VISION, PatchGridRecipe

__all__ = ["RECIPES"]

PLAIN_TOWER: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "patch_size": 4,
}
"""A vision tower whose configuration has the usual names."""

EXPERTS: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
}
"""A mixture of experts in DeepSeek's names."""

LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
"""Attention with keys and values in a narrower space."""


class Glm4v(PatchGridRecipe):
    """The frames of a video take the placeholders of images, between the marks of a video."""

    model_type = "glm4v"
    around_video = (9, 10)
    time = (11, 12)

    @property
    def ids(self) -> dict[str, int]:
        return {
            "image_token_id": self.image_id,
            "video_token_id": self.video_id,
            "image_start_token_id": self.start[0],
            "image_end_token_id": self.end[0],
            "video_start_token_id": self.around_video[0],
            "video_end_token_id": self.around_video[1],
        }

    @property
    def vision(self) -> dict[str, Any]:
        return VISION | {"out_hidden_size": 32, "image_size": 32}

    @property
    def text(self) -> dict[str, Any]:
        return DECODER | {"head_dim": 16, "rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}

    def config(self) -> Any:
        from transformers import Glm4vConfig

        return Glm4vConfig(text_config=self.text, vision_config=self.vision, **self.ids)

    def tokens(self, kind: str) -> list[int]:
        frames, height, width = self.grids[kind]
        frame = [*self.start, *[self.image_id] * (height * width // self.merge**2), *self.end]
        if kind != "video":
            return frame
        # The time stands behind each frame.
        return [self.around_video[0], *frames * [*frame, *self.time], self.around_video[1]]

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        ids = inputs["input_ids"]
        first, last = self.around_video
        inside = (ids == first).cumsum(1) > (ids == last).cumsum(1)
        return {"mm_token_type_ids": (ids == self.image_id).int() * (1 + inside.int())}


class Glm4vMoe(Glm4v):
    model_type = "glm4v_moe"

    def config(self) -> Any:
        from transformers import Glm4vMoeConfig

        text = self.text | EXPERTS | {"first_k_dense_replace": 1}
        return Glm4vMoeConfig(text_config=text, vision_config=self.vision, **self.ids)


class Glm46V(Glm4v):
    model_type = "glm46v"

    def config(self) -> Any:
        from transformers import Glm46VConfig

        text = self.text | {"model_type": "glm4v_text"}
        vision = self.vision | {"model_type": "glm4v_vision"}
        return Glm46VConfig(text_config=text, vision_config=vision, **self.ids)


class Glmga(Glm4v):
    model_type = "glmga"

    def config(self) -> Any:
        from transformers.models.glmga.configuration_glmga import GlmgaConfig

        text = self.text | {"model_type": "glm4v_text"}
        vision = self.vision | {"model_type": "glm4v_vision"}
        return GlmgaConfig(text_config=text, vision_config=vision, **self.ids)


class GlmOcr(Glm4v):
    model_type = "glm_ocr"

    def config(self) -> Any:
        from transformers import GlmOcrConfig

        return GlmOcrConfig(text_config=self.text, vision_config=self.vision, **self.ids)


class Glm5Next(Glm4v):
    """Layers of linear attention, and layers that attend to the best of their keys in groups of four."""

    model_type = "glm5_next"

    def config(self) -> Any:
        from transformers import Glm5NextConfig

        sparse = {
            "index_topk": 16,
            "index_kpool": 4,
            "index_head_dim": 8,
            "index_n_heads": 16,
        }
        # Whatever a transformers calls the attention that chooses keys, it takes this for it.
        kinds = ["linear_attention", "full_attention"]
        linear = {
            "layer_types": [kinds[0], kinds[1], kinds[0], kinds[0], kinds[1]],
            "linear_head_dim": 8,
            "linear_num_heads": 4,
        }
        layers = {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse", "sparse"], "hc_mult": 2}
        text = DECODER | LATENT | EXPERTS | sparse | linear | layers | {"qk_rope_head_dim": 0}
        vision = self.vision | {"projection_intermediate_size": 32}
        return Glm5NextConfig(text_config=text, vision_config=vision, **self.ids)

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        return {}


class Ernie45VLMoe(PatchGridRecipe):
    """A video's frames are merged two by two behind the tower; tokens of images have experts of their own."""

    model_type = "ernie4_5_vl_moe"
    grids: Mapping[str, tuple[int, int, int]] = {"image": (1, 8, 8), "wide": (1, 6, 14), "video": (4, 4, 8)}
    frames_per_patch = 1
    around_video = (9, 10)

    def config(self) -> Any:
        from transformers import Ernie4_5_VLMoeConfig

        experts = {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_num_shared_experts": 1,
            "moe_intermediate_size": [16, 8],
        }
        text = DECODER | experts | {"rope_parameters": ROPE | {"mrope_section": [1, 1, 2]}}
        ids = {
            "image_token_id": self.image_id,
            "video_token_id": self.video_id,
            "image_start_token_id": self.start[0],
            "image_end_token_id": self.end[0],
            "video_start_token_id": self.around_video[0],
            "video_end_token_id": self.around_video[1],
        }
        return Ernie4_5_VLMoeConfig(text_config=text, vision_config=VISION, **ids)

    def tokens(self, kind: str) -> list[int]:
        frames, height, width = self.grids[kind]
        cells = height * width // self.merge**2
        if kind == "video":
            return [self.around_video[0], *[self.video_id] * (cells * frames // 2), self.around_video[1]]
        return [*self.start, *[self.image_id] * cells, *self.end]

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        ids = inputs["input_ids"]
        image = torch.isin(ids, torch.tensor([self.image_id, *self.start, *self.end]))
        video = torch.isin(ids, torch.tensor([self.video_id, *self.around_video]))
        return super().extra(model, inputs) | {"moe_mm_token_type_ids": image.long() + 2 * video.long()}


class PaddleOcrVL(PatchGridRecipe):
    model_type = "paddleocr_vl"
    video = False
    frames_per_patch = 1

    def config(self) -> Any:
        from transformers import PaddleOCRVLConfig

        text = DECODER | {"head_dim": 8, "rope_parameters": ROPE}
        return PaddleOCRVLConfig(text_config=text, vision_config=PLAIN_TOWER | {"image_size": 32}, **self.ids)

    def pixels(self, grids: Sequence[tuple[int, int, int]], is_video: bool, generator: torch.Generator) -> torch.Tensor:
        return super().pixels(grids, is_video, generator).unflatten(1, (3, self.patch, self.patch))


class KimiK25(PaddleOcrVL):
    """Every chunk of a video has a grid of its own. Its frames would share the tokens of one, but transformers 5.23
    fails to split the features of a chunk of several, so here each holds one frame."""

    model_type = "kimi_k25"
    video = True
    grids: Mapping[str, tuple[int, int, int]] = {"image": (1, 8, 8), "wide": (1, 6, 14), "video": (1, 4, 6)}
    start = (7, 17, 18)
    chunks = 3

    def config(self) -> Any:
        from transformers import Kimi_K25Config

        rope = {"rope_type": "default", "rope_theta": 10000.0}
        latent = LATENT | {"qk_rope_head_dim": 4, "rope_parameters": rope}
        text = DECODER | latent | EXPERTS | {"model_type": "deepseek_v3", "first_k_dense_replace": 1}
        vision = PLAIN_TOWER | {"pos_emb_height": 8, "pos_emb_width": 8}
        return Kimi_K25Config(text_config=text, vision_config=vision, projection_hidden_size=16, **self.ids)

    def rows(self, kind: str) -> list[tuple[int, int, int]]:
        return [self.grids[kind]] * (self.chunks if kind == "video" else 1)

    def tokens(self, kind: str) -> list[int]:
        frame = super().tokens(kind)
        return self.chunks * [11, 12, *frame] if kind == "video" else frame

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        return {}


class Dots3Note(PatchGridRecipe):
    """Layers that attend to the best of their keys, and layers with a window."""

    model_type = "dots3_note"
    frames_per_patch = 1

    def config(self) -> Any:
        from transformers import Dots3NoteConfig

        sparse = {"index_topk": 16, "index_head_dim": 8, "index_n_heads": 16, "qk_rope_head_dim": 4, "head_dim": 12}
        window = {
            "sliding_window": 24,
            "swa_num_attention_heads": 2,
            "swa_num_key_value_heads": 2,
            "swa_q_lora_rank": 8,
            "swa_kv_lora_rank": 8,
            "swa_head_dim": 12,
            "swa_qk_nope_head_dim": 8,
            "swa_v_head_dim": 8,
        }
        # Of six layers the third to the fifth have the window.
        experts = EXPERTS | {"moe_shared_expert_intermediate_size": 16}
        text = DECODER | LATENT | experts | sparse | window | {"num_hidden_layers": 6}
        vision = PLAIN_TOWER | {
            "mlp_layer_types": ["dense", "sparse"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "adapter_in_dim": 16,
            "adapter_out_dim": 32,
        }
        audio = {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "feature_size": 16,
            "downsample_hidden_size": 8,
            "adapter_input_size": 16,
            "adapter_out_dim": 32,
        }
        ids = {"image_token_id": self.image_id, "video_token_id": self.video_id, "audio_token_id": 14}
        return Dots3NoteConfig(text_config=text, vision_config=vision, audio_config=audio, **ids)

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        return {}


RECIPES: tuple[Recipe, ...] = (
    Glm4v(),
    Glm4vMoe(),
    Glm46V(),
    Glmga(),
    GlmOcr(),
    Glm5Next(),
    Ernie45VLMoe(),
    PaddleOcrVL(),
    KimiK25(),
    Dots3Note(),
)
