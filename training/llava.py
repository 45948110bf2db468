"""LLaVA: one grid of patches, each a visual token."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .architecture import Architecture, text_config
from .presets import Preset
from .tokenizer import CHAT_TEMPLATE, IMAGE, USER

__all__ = ["Llava"]


class Llava(Architecture):
    """``LlavaForConditionalGeneration`` with a CLIP tower and a Llama decoder."""

    model_type = "llava"
    before = (USER,)

    def processor(self, preset: Preset, tokenizer: Any) -> Any:
        from transformers import LlavaProcessor
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        side = {"height": preset.image_size, "width": preset.image_size}
        images = CLIPImageProcessorPil(
            size=side,
            crop_size=side,
            do_center_crop=False,
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        )
        return LlavaProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            patch_size=preset.patch_size,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=CHAT_TEMPLATE,
            image_token=IMAGE,
        )

    def model(self, preset: Preset, tokenizer: Any) -> Any:
        from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

        vision = CLIPVisionConfig(
            image_size=preset.image_size,
            patch_size=preset.patch_size,
            hidden_size=preset.vision_width,
            intermediate_size=preset.vision_mlp,
            num_hidden_layers=preset.vision_layers,
            num_attention_heads=preset.vision_heads,
            projection_dim=preset.vision_width,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=text_config(preset, tokenizer),
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            image_seq_length=preset.geometry.grid**2,
            tie_word_embeddings=True,
        )
        return LlavaForConditionalGeneration(config)

    def see(self, model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        scaled = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        hidden = model.model.vision_tower(pixel_values=scaled).last_hidden_state[:, 1:]
        return hidden, model.model.multi_modal_projector(hidden)
