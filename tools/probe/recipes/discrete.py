"""Architectures whose pictures become codes of a vocabulary before the decoder sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ..recipe import VOCABULARY, Pictures, Recipe
from .parts import LLAMA

__all__ = ["RECIPES"]

IMAGE_TOKEN, AUDIO_TOKEN, END_OF_ROW = 5, 6, 7
CODES = 64


class Apertus1p5(Recipe):
    """The codes of a picture are looked up in the decoder's own embeddings; each row of them ends in a token."""

    model_type = "apertus1p5"
    wide = True
    grids: ClassVar[dict[str, tuple[int, int]]] = {"image": (4, 5), "wide": (3, 7)}

    def config(self) -> Any:
        from transformers import Apertus1p5Config

        vision = {
            "codebook_size": CODES,
            "embed_dim": 8,
            "latent_channels": 32,
            "base_channels": 32,
            "channel_multiplier": (1, 1),
            "num_res_blocks": 1,
            "attn_resolutions": (),
            "resolution": 16,
        }
        audio = {
            "model_type": "wavtokenizer_encoder",
            "num_filters": 4,
            "hidden_size": 16,
            "codebook_size": CODES,
            "codebook_dim": 16,
            "num_lstm_layers": 1,
        }
        rope = {"rope_type": "default", "rope_theta": 10000.0}
        # Only text can be generated.
        text = LLAMA | {
            "vocab_size": VOCABULARY + 2 * CODES,
            "output_vocab_size": VOCABULARY,
            "rope_parameters": rope,
        }
        return Apertus1p5Config(
            text_config=text,
            vision_config=vision,
            audio_config=audio,
            image_token_id=IMAGE_TOKEN,
            audio_token_id=AUDIO_TOKEN,
            image_token_offset=VOCABULARY,
            audio_token_offset=VOCABULARY + CODES,
        )

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        grids = [self.grids[kind] for kind in kinds]
        sizes = torch.tensor([(2 * rows, 2 * columns) for rows, columns in grids])
        pixels = torch.randn(len(kinds), 3, *sizes.amax(0).tolist(), generator=generator)
        tokens = [[*rows * [*[IMAGE_TOKEN] * columns, END_OF_ROW]] for rows, columns in grids]
        return Pictures({"pixel_values": pixels, "image_sizes": sizes}, tokens)


RECIPES: tuple[Recipe, ...] = (Apertus1p5(),)
