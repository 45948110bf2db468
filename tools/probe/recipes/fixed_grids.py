"""Architectures in which every image fills the same grid: LLaVA-1.5 and its like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ..recipe import FixedGridRecipe, Pictures, Recipe, takes
from .parts import LLAMA, SAM, TOWER
from .sized_grids import RECIPES as SIZED_GRIDS

__all__ = ["LLAMA", "RECIPES", "TOWER", "VideoFrames"]


class Llava(FixedGridRecipe):
    model_type = "llava"

    def config(self) -> Any:
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

        return LlavaConfig(
            vision_config=CLIPVisionConfig(**TOWER, image_size=self.side, projection_dim=16),
            text_config=LlamaConfig(**LLAMA),
            image_token_id=5,
            vision_feature_layer=-1,
        )


class VipLlava(FixedGridRecipe):
    model_type = "vipllava"

    def config(self) -> Any:
        from transformers import CLIPVisionConfig, LlamaConfig, VipLlavaConfig

        # The older of the two names that releases of transformers have for it.
        older = not hasattr(VipLlavaConfig, "vision_feature_layer")
        return VipLlavaConfig(
            vision_config=CLIPVisionConfig(**TOWER, image_size=self.side, projection_dim=16),
            text_config=LlamaConfig(**LLAMA),
            image_token_index=5,
            **{"vision_feature_layers" if older else "vision_feature_layer": [-2, -1]},
        )


class Aria(FixedGridRecipe):
    model_type = "aria"

    def config(self) -> Any:
        from transformers import AriaConfig, AriaTextConfig
        from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

        return AriaConfig(
            vision_config=Idefics3VisionConfig(**TOWER, image_size=self.side),
            text_config=AriaTextConfig(**LLAMA, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
            projector_patch_to_query_dict={(self.side // TOWER["patch_size"]) ** 2: 16},
            image_token_index=5,
        )

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        pictures = super().pictures(model, kinds, generator)
        mask = torch.ones(len(kinds), self.side, self.side, dtype=torch.bool)
        # The processor pads an image's bottom or right up to a square.
        mask[0, -TOWER["patch_size"] :] = False
        pictures.inputs["pixel_mask"] = mask
        return pictures


class InnerFeatures(FixedGridRecipe):
    """For models that offer their image features only on the model without a head."""

    def placeholders(self, model: Any, pixels: dict[str, Any], images: int) -> int:
        return super().placeholders(model.model, pixels, images)


class DeepseekVl(InnerFeatures):
    model_type = "deepseek_vl"

    def config(self) -> Any:
        from transformers import DeepseekVLConfig, LlamaConfig, SiglipVisionConfig

        return DeepseekVLConfig(
            vision_config=SiglipVisionConfig(**TOWER, image_size=self.side, vision_use_head=False),
            text_config=LlamaConfig(**LLAMA),
            image_token_id=5,
        )


class DeepseekVlHybrid(InnerFeatures):
    model_type = "deepseek_vl_hybrid"
    fine_side = 48

    def config(self) -> Any:
        from transformers import DeepseekVLHybridConfig, LlamaConfig, SamVisionConfig, SiglipVisionConfig

        return DeepseekVLHybridConfig(
            vision_config=SiglipVisionConfig(**TOWER, image_size=self.side, vision_use_head=False),
            high_res_vision_config=SamVisionConfig(**SAM, image_size=self.fine_side, num_pos_feats=4),
            text_config=LlamaConfig(**LLAMA),
            image_token_id=5,
        )

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        shape = (len(kinds), 3, self.fine_side, self.fine_side)
        pixels = {
            "pixel_values": torch.randn(len(kinds), 3, self.side, self.side, generator=generator),
            "high_res_pixel_values": torch.randn(shape, generator=generator),
        }
        return Pictures(pixels, [[5] * self.placeholders(model, pixels, len(kinds)) for _ in kinds])


class PpChart2Table(FixedGridRecipe):
    model_type = "pp_chart2table"
    side = 64
    before = (6,)
    after = (7,)

    def config(self) -> Any:
        from transformers import Qwen2Config
        from transformers.models.pp_chart2table.configuration_pp_chart2table import (
            PPChart2TableConfig,
            PPChart2TableVisionConfig,
        )

        return PPChart2TableConfig(
            vision_config=PPChart2TableVisionConfig(**SAM, image_size=self.side),
            text_config=Qwen2Config(**LLAMA),
            image_token_index=5,
        )


class Janus(InnerFeatures):
    model_type = "janus"
    before = (6,)
    after = (7,)

    def config(self) -> Any:
        from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

        vision = {name: value for name, value in TOWER.items() if name != "intermediate_size"}
        return JanusConfig(
            vision_config=JanusVisionConfig(
                **vision, image_size=self.side, mlp_ratio=2.0, projection_dim=32, num_image_tokens=36
            ),
            # Only the drawing of images uses it.
            vq_config=JanusVQVAEConfig(
                base_channels=32,
                channel_multiplier=[1, 1],
                num_res_blocks=1,
                embed_dim=8,
                num_embeddings=16,
                latent_channels=32,
                projection_dim=32,
                image_token_embed_dim=32,
            ),
            text_config=LlamaConfig(**LLAMA),
            image_token_id=5,
        )


class Chameleon(FixedGridRecipe):
    """Its logits for image codes are always the lowest number of their type."""

    model_type = "chameleon"
    before = (6,)
    after = (7,)
    codes = 16

    def config(self) -> Any:
        from transformers import ChameleonConfig, ChameleonVQVAEConfig

        # A code's name spells its number in letters, between a prefix and one more letter.
        names = [
            "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z" for code in range(self.codes)
        ]
        vocabulary = {"<image>": 5} | {name: 16 + code for code, name in enumerate(names)}
        quantizer = ChameleonVQVAEConfig(
            embed_dim=8,
            num_embeddings=self.codes,
            latent_channels=8,
            resolution=self.side,
            base_channels=32,
            channel_multiplier=[1, 1, 1],
            num_res_blocks=1,
        )
        return ChameleonConfig(**LLAMA, vq_config=quantizer, vocabulary_map=vocabulary)


class PaliGemma(FixedGridRecipe):
    model_type = "paligemma"
    # What was asked is seen in both directions, what is answered is not.
    continuation: ClassVar[dict[str, int]] = {"token_type_ids": 1}

    def config(self) -> Any:
        from transformers import GemmaConfig, PaliGemmaConfig, SiglipVisionConfig

        return PaliGemmaConfig(
            vision_config=SiglipVisionConfig(**TOWER, image_size=self.side, vision_use_head=False),
            text_config=GemmaConfig(**LLAMA, head_dim=8),
            image_token_index=5,
            projection_dim=32,
            hidden_size=32,
        )

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        # Zero marks a prompt, whose tokens all see each other.
        return {"token_type_ids": torch.zeros_like(inputs["input_ids"])}


class VideoFrames(Recipe):
    """For models that encode a video frame by frame.

    Attributes:
        side: height and width of images and frames.
        frames: frames of a video.
        per_image, per_video: placeholders of an image and of a video.
    """

    several_images = True
    video = True
    side: int = 16
    frames: int = 3
    per_image: int
    per_video: int

    def pixels(self, kind: str, generator: torch.Generator) -> torch.Tensor:
        """The contents of one image or video, without a batch dimension."""
        shape = (self.frames, 3, self.side, self.side) if kind == "video" else (3, self.side, self.side)
        return torch.randn(shape, generator=generator)

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        held: dict[str, list[torch.Tensor]] = {"pixel_values": [], "pixel_values_videos": []}
        tokens: list[list[int]] = []
        for kind in kinds:
            is_video = kind == "video"
            held["pixel_values_videos" if is_video else "pixel_values"].append(self.pixels(kind, generator))
            own = [model.config.video_token_id] * self.per_video if is_video else None
            tokens.append(own or [model.config.image_token_id] * self.per_image)
        return Pictures({name: torch.stack(pixels) for name, pixels in held.items() if pixels}, tokens)


class VideoLlava(VideoFrames):
    model_type = "video_llava"
    per_image = 16
    # Each frame of a video keeps its class token.
    per_video = 3 * 17

    def config(self) -> Any:
        from transformers import CLIPVisionConfig, LlamaConfig, VideoLlavaConfig

        return VideoLlavaConfig(
            vision_config=CLIPVisionConfig(**TOWER, image_size=self.side, projection_dim=16),
            text_config=LlamaConfig(**LLAMA),
            image_token_index=5,
            video_token_index=8,
        )

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        pictures = super().pictures(model, kinds, generator)
        # Older releases of transformers know them by this name alone.
        if "pixel_values" in pictures.inputs and not takes(model, "pixel_values"):
            pictures.inputs["pixel_values_images"] = pictures.inputs.pop("pixel_values")
        return pictures


class PerceptionLm(VideoFrames):
    """Each image comes as a thumbnail and one tile."""

    model_type = "perception_lm"
    needs = "timm"
    side = 24
    per_image = 2 * 9
    per_video = 3 * 9

    def config(self) -> Any:
        from transformers import LlamaConfig, PerceptionLMConfig, TimmWrapperConfig

        arguments = {
            "embed_dim": 32,
            "depth": 2,
            "num_heads": 2,
            "img_size": (self.side, self.side),
            "patch_size": 4,
            "ref_feat_shape": (6, 6),
            "global_pool": "",
            "use_post_transformer_norm": False,
            "init_values": 0.1,
        }
        return PerceptionLMConfig(
            vision_config=TimmWrapperConfig(architecture="vit_pe_core_large_patch14_336", model_args=arguments),
            text_config=LlamaConfig(**LLAMA),
            projector_pooling_ratio=2,
            image_token_id=5,
            video_token_id=8,
        )

    def pixels(self, kind: str, generator: torch.Generator) -> torch.Tensor:
        pieces = self.frames if kind == "video" else 2
        return torch.randn(pieces, 3, self.side, self.side, generator=generator)


class FastVlm(FixedGridRecipe):
    model_type = "fast_vlm"
    needs = "timm"
    side = 128

    def config(self) -> Any:
        from transformers import FastVlmConfig, Qwen2Config, TimmWrapperConfig

        vision = TimmWrapperConfig(
            architecture="fastvit_t8",
            do_pooling=True,
            global_pool="avg",
            # The tower doubles its last width.
            hidden_size=128,
            model_args={"inference_mode": True, "embed_dims": (8, 16, 32, 64), "layers": (1, 1, 1, 1)},
        )
        return FastVlmConfig(vision_config=vision, text_config=Qwen2Config(**LLAMA), image_token_index=5)


RECIPES: tuple[Recipe, ...] = (
    Llava(),
    VipLlava(),
    Aria(),
    DeepseekVl(),
    DeepseekVlHybrid(),
    PpChart2Table(),
    Janus(),
    Chameleon(),
    PaliGemma(),
    VideoLlava(),
    PerceptionLm(),
    FastVlm(),
    *SIZED_GRIDS,
)
