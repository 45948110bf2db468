"""Folders with tiny random models and their processors, as lmms-eval's classes load them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tools.probe.recipes import recipes
from topv.mini import MINI_PATH

__all__ = ["CHECKPOINTS", "make_tokenizer", "save_checkpoint"]

MARKS = ("<image>", "<video>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
MARKS += ("<img>", "</img>", "<IMG_CONTEXT>")
CHAT = (
    "{% for message in messages %}{{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %} {% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)


def make_tokenizer(image: str, **extra: str) -> Any:
    """A tokenizer with the marks of every family, whose chat template writes `image` for an image."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_file(str(MINI_PATH / "tokenizer.json"))
    backend.add_special_tokens([mark for mark in MARKS if backend.token_to_id(mark) is None])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        extra_special_tokens=extra,
        padding_side="left",
        chat_template=CHAT.replace("IMAGE", image),
    )


def _llava_next(config: Any) -> Any:
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    side = config.vision_config.image_size
    tokenizer = make_tokenizer("<image>", image_token="<image>")
    return LlavaNextProcessor(
        LlavaNextImageProcessor(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_grid_pinpoints=config.image_grid_pinpoints,
        ),
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


def _llava_onevision(config: Any) -> Any:
    from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

    side = config.vision_config.image_size
    size = {"height": side, "width": side}
    tokenizer = make_tokenizer("<image>", image_token="<image>", video_token="<video>")
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=config.image_grid_pinpoints),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(side // config.vision_config.patch_size) ** 2,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
    )


def _internvl(config: Any) -> Any:
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    side = config.vision_config.image_size[0]
    size = {"height": side, "width": side}
    marks = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = make_tokenizer("<IMG_CONTEXT>", video_token="<video>", **marks)
    return InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=True),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=config.image_seq_length,
        chat_template=tokenizer.chat_template,
    )


def _qwen(config: Any) -> Any:
    import transformers

    names = {
        "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
        "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
        "qwen3_vl": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
        "qwen3_5": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    }
    processor, videos = (getattr(transformers, name) for name in names[config.model_type])
    patches = {"patch_size": config.vision_config.patch_size, "merge_size": config.vision_config.spatial_merge_size}
    tokenizer = make_tokenizer("<|vision_start|><|image_pad|><|vision_end|>")
    return processor(
        transformers.Qwen2VLImageProcessor(**patches),
        tokenizer,
        videos(**patches),
        chat_template=tokenizer.chat_template,
    )


CHECKPOINTS: dict[str, Callable[[Any], Any]] = {
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "qwen3_5": _qwen,
}
"""transformers' model types to functions that make a processor for a configuration."""


def save_checkpoint(model_type: str, folder: Path) -> None:
    """Save a tiny random model of an architecture, in float32, with a processor of its own."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    recipe = recipes()[model_type]
    config = recipe.config()
    if model_type == "internvl":
        config.image_seq_length = recipe.per_tile
    processor = CHECKPOINTS[model_type](config)
    tokenizer = processor.tokenizer
    config.text_config.vocab_size = len(tokenizer)
    config.image_token_id = processor.image_token_id
    if hasattr(config, "video_token_id"):
        config.video_token_id = tokenizer.convert_tokens_to_ids(processor.video_token)
    if hasattr(config, "vision_start_token_id"):
        config.vision_start_token_id = tokenizer.convert_tokens_to_ids("<|vision_start|>")
        config.vision_end_token_id = tokenizer.convert_tokens_to_ids("<|vision_end|>")
    torch.manual_seed(0)
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config)
    recipe.randomise(model)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
