"""InternVL: tiles and a thumbnail, every two by two patches a visual token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from topv.scenes import Tiles

from .architecture import Architecture, text_config
from .presets import Preset
from .tokenizer import CHAT_TEMPLATE, END, IMAGE, PAD, USER

__all__ = ["CONTEXT", "START", "STOP", "InternVl", "with_image_marks"]

START, STOP, CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"


def with_image_marks(tokenizer: Any) -> Any:
    """A copy of a tokenizer that knows InternVL's image tokens too; the other tokens keep their ids."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in (START, STOP, CONTEXT)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens={
            "image_token": IMAGE,
            "start_image_token": START,
            "end_image_token": STOP,
            "context_image_token": CONTEXT,
        },
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


class InternVl(Architecture):
    """``InternVLForConditionalGeneration`` with a Llama decoder.

    Its processor is Qianfan-OCR's, which writes InternVL's format: InternVL's own needs torchvision to load, for the
    sake of videos.
    """

    model_type = "internvl"
    before = (USER, START)
    after = (STOP,)

    def processor(self, preset: Preset, tokenizer: Any) -> Any:
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
        from transformers.models.qianfan_ocr.processing_qianfan_ocr import QianfanOCRProcessor

        side = _tiles(preset).tile.size
        images = GotOcr2ImageProcessorPil(
            size={"height": side, "width": side},
            crop_to_patches=True,
            # Exactly this many, also for a picture that fits into one tile.
            min_patches=preset.tiles**2,
            max_patches=preset.tiles**2,
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        )
        return QianfanOCRProcessor(
            image_processor=images,
            tokenizer=with_image_marks(tokenizer),
            image_seq_length=_tokens(preset),
            chat_template=CHAT_TEMPLATE,
            image_placeholder_token=IMAGE,
        )

    def model(self, preset: Preset, tokenizer: Any) -> Any:
        from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig

        vision = InternVLVisionConfig(
            image_size=_tiles(preset).tile.size,
            patch_size=preset.patch_size,
            hidden_size=preset.vision_width,
            intermediate_size=preset.vision_mlp,
            num_hidden_layers=preset.vision_layers,
            num_attention_heads=preset.vision_heads,
            # As the LLaVA's tower, so that its weights fit; the layer scale is neutral.
            attention_bias=True,
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
            layer_scale_init_value=1.0,
        )
        config = InternVLConfig(
            vision_config=vision,
            text_config=text_config(preset, tokenizer),
            image_token_id=tokenizer.convert_tokens_to_ids(CONTEXT),
            image_seq_length=_tokens(preset),
            downsample_ratio=0.5,
            tie_word_embeddings=True,
        )
        return InternVLForConditionalGeneration(config)

    def see(self, model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        scaled = pixels.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
        seen = model.model.get_image_features(pixel_values=scaled, return_dict=True)
        rows = len(pixels)
        features, visual = seen.last_hidden_state[:, 1:], seen.pooler_output
        return features.reshape(rows, -1, features.shape[-1]), visual.reshape(rows, -1, visual.shape[-1])

    def begin(self, model: Any, tokenizer: Any, start: Path) -> None:
        """Besides a model of the same preset, a LLaVA with a tower and a decoder of the same sizes will do."""
        if json.loads((start / "config.json").read_text())["model_type"] != "llava":
            super().begin(model, tokenizer, start)
            return
        from .transplant import transplant

        transplant(start, model, tokenizer)


def _tiles(preset: Preset) -> Tiles:
    view = preset.view
    if not isinstance(view, Tiles):
        raise ValueError(f"Preset {preset.name!r} shows images whole; InternVL needs tiles, at least 2 a side.")
    return view


def _tokens(preset: Preset) -> int:
    """Visual tokens of a tile."""
    return (_tiles(preset).tile.grid // 2) ** 2
