"""Tiny random vision-language models and inputs for tests: real transformers classes, no network."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE_TOKEN = 5
SIDE = 6
TOKENS = SIDE * SIDE
PATCH = 4
VOCABULARY = 96


def tiny_llava(
    *,
    layers: int = 5,
    backend: str = "sdpa",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    strategy: str = "default",
) -> LlavaForConditionalGeneration:
    """A LLaVA with a 6 x 6 grid of visual tokens, grouped-query attention and random weights."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIDE * PATCH,
            patch_size=PATCH,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=None,
            pad_token_id=0,
        ),
        image_token_id=IMAGE_TOKEN,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                # Larger than the default init, so that layers and positions differ by more than rounding.
                parameter.normal_(0, 0.25)
    model.set_attn_implementation(backend)
    return model.to(dtype).eval()


@functools.lru_cache(maxsize=8)
def shared_llava(layers: int = 5, backend: str = "sdpa") -> LlavaForConditionalGeneration:
    """One model per setting for tests that leave it as it was."""
    return tiny_llava(layers=layers, backend=backend)


def prompt(
    samples: Sequence[Sequence[int | str]],
    *,
    padding: str = "left",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """Model inputs for samples made of text lengths and "image" marks: `[[3, "image", 2], [4]]`."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[list[int]] = []
    images = 0
    for sample in samples:
        row: list[int] = []
        for part in sample:
            if part == "image":
                row += [IMAGE_TOKEN] * TOKENS
                images += 1
            else:
                row += torch.randint(10, VOCABULARY, (int(part),), generator=generator).tolist()
        rows.append(row)
    width = max(map(len, rows))
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if padding == "left" else slice(0, len(row))
        input_ids[index, place] = torch.tensor(row)
        attention_mask[index, place] = 1
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    if images:
        side = SIDE * PATCH
        inputs["pixel_values"] = torch.randn(images, 3, side, side, generator=generator).to(dtype)
    return inputs
