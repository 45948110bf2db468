"""Architectures in which every image fills the same grid: LLaVA-1.5 and its like."""

from __future__ import annotations

from typing import Any

from ..recipe import VOCABULARY, FixedGridRecipe, Recipe

__all__ = ["LLAMA", "RECIPES"]

LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
"""A Llama-like decoder."""


class Llava(FixedGridRecipe):
    model_type = "llava"

    def config(self) -> Any:
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

        vision = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=self.side,
            patch_size=4,
            projection_dim=16,
        )
        return LlavaConfig(
            vision_config=vision, text_config=LlamaConfig(**LLAMA), image_token_id=5, vision_feature_layer=-1
        )


RECIPES: tuple[Recipe, ...] = (Llava(),)
