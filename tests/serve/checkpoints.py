"""Tiny random models with their processors, saved as vLLM reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lmms.checkpoints import CHECKPOINTS
from topv.serve import export_for_vllm

__all__ = ["FAMILIES", "save_tiny"]

# vLLM's attention on a CPU takes heads of 32 and more.
TEXT: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 4,
}
QWEN_TOWER: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": 64,
}
ROPE: dict[str, Any] = {"rope_theta": 10000.0, "rope_type": "default", "mrope_section": [6, 5, 5]}
PINPOINTS = [[48, 24], [24, 48], [48, 48]]


def _llava() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    return LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER, image_size=32, projection_dim=32),
        text_config=LlamaConfig(**TEXT),
        vision_feature_layer=-2,
    )


def _llava_next() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig

    return LlavaNextConfig(
        vision_config=CLIPVisionConfig(**TOWER, image_size=24, projection_dim=32),
        text_config=LlamaConfig(**TEXT),
        image_grid_pinpoints=PINPOINTS,
    )


def _llava_onevision() -> Any:
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**TOWER, image_size=24, vision_use_head=False),
        text_config=Qwen2Config(**TEXT),
        image_grid_pinpoints=PINPOINTS,
    )


def _internvl() -> Any:
    from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config

    config = InternVLConfig(vision_config=InternVLVisionConfig(**TOWER, image_size=32), text_config=Qwen2Config(**TEXT))
    config.image_seq_length = 16
    return config


def _qwen2_5_vl() -> Any:
    from transformers import Qwen2_5_VLConfig

    # Windows of 2 x 2 tokens, so that the tower's order of patches differs from the raster order.
    vision = QWEN_TOWER | {"window_size": 16, "fullatt_block_indexes": [2]}
    return Qwen2_5_VLConfig(text_config=TEXT | {"rope_parameters": ROPE}, vision_config=vision)


def _qwen3_vl() -> Any:
    from transformers import Qwen3VLConfig

    vision = QWEN_TOWER | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    text = TEXT | {"head_dim": 32, "rope_parameters": ROPE | {"mrope_interleaved": True}}
    return Qwen3VLConfig(text_config=text, vision_config=vision)


FAMILIES = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
}
"""transformers' model types to functions that make a configuration."""


def _llava_processor(config: Any) -> Any:
    from transformers import CLIPImageProcessor, LlavaProcessor

    from lmms.checkpoints import make_tokenizer

    side = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    tokenizer = make_tokenizer("<image>", image_token="<image>")
    return LlavaProcessor(
        CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False),
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


def save_tiny(model_type: str, folder: Path, seed: int = 0) -> tuple[Any, Any]:
    """Save a tiny random model of an architecture, in float32, with a processor of its own.

    Returns:
        The model, in evaluation mode, and its processor.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    config = FAMILIES[model_type]()
    processor = (CHECKPOINTS | {"llava": _llava_processor})[model_type](config)
    tokenizer = processor.tokenizer
    config.text_config.vocab_size = len(tokenizer)
    config.image_token_id = processor.image_token_id
    if hasattr(config, "video_token_id"):
        config.video_token_id = tokenizer.convert_tokens_to_ids(processor.video_token)
    if hasattr(config, "vision_start_token_id"):
        config.vision_start_token_id = tokenizer.convert_tokens_to_ids("<|vision_start|>")
        config.vision_end_token_id = tokenizer.convert_tokens_to_ids("<|vision_end|>")
    torch.manual_seed(seed)
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, min(0.25, 0.7 * parameter[0].numel() ** -0.5))
    export_for_vllm(model, processor, folder)
    return model, processor
