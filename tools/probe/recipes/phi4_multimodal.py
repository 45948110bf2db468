"""Phi-4-multimodal, which transformers maps as a causal language model and not as an image-text-to-text one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..recipe import VOCABULARY, Pictures, Recipe

__all__ = ["Phi4Multimodal"]

IMAGE, AUDIO = 5, 6
CROP, SIDE = 32, 4
TILES = {"image": (1, 1), "wide": (1, 2)}


class Phi4Multimodal(Recipe):
    """Not in `RECIPES`, whose rows are those of the image-text-to-text mapping."""

    model_type = "phi4_multimodal"
    wide = True

    def config(self) -> Any:
        from transformers import Phi4MultimodalAudioConfig, Phi4MultimodalConfig, Phi4MultimodalVisionConfig

        vision = Phi4MultimodalVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=CROP,
            patch_size=4, crop_size=CROP, image_token_id=IMAGE, feature_layer=-2,
        )  # fmt: skip
        audio = Phi4MultimodalAudioConfig(
            hidden_size=16, intermediate_size=16, num_blocks=1, num_attention_heads=2, ext_pw_out_channel=16,
            depthwise_separable_out_channel=16, nemo_conv_channels=16, audio_token_id=AUDIO,
        )  # fmt: skip
        return Phi4MultimodalConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, original_max_position_embeddings=512,
            bos_token_id=1, eos_token_id=None, pad_token_id=0, vision_config=vision, audio_config=audio,
        )  # fmt: skip

    def build(self) -> Any:
        from transformers import Phi4MultimodalForCausalLM

        model = Phi4MultimodalForCausalLM(self.config())
        self.randomise(model)
        return model.float().eval()

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        most = max(down * across for down, across in TILES.values())
        pixels = torch.zeros(len(kinds), 1 + most, 3, CROP, CROP)
        mask = torch.zeros(len(kinds), 1 + most, CROP // 4, CROP // 4, dtype=torch.bool)
        sizes, tokens = [], []
        for at, kind in enumerate(kinds):
            down, across = TILES[kind]
            used = 1 + down * across
            pixels[at, :used] = torch.randn(used, 3, CROP, CROP, generator=generator)
            mask[at, :used] = True
            sizes.append([down * CROP, across * CROP])
            count = down * SIDE * (across * SIDE + 1) + 1 + SIDE * (SIDE + 1)
            tokens.append([IMAGE] * count)
        inputs = {"image_pixel_values": pixels, "image_sizes": torch.tensor(sizes), "image_attention_mask": mask}
        return Pictures(inputs, tokens)
