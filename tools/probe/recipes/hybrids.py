"""Architectures in which layers mix tokens by convolution, by a running state, or attend to what an indexer ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ..recipe import VOCABULARY, Pictures, Recipe
from .packed import AUDIO, BOS_IMAGE, BREAK, EOS_IMAGE, IMAGE, VIDEO, GridRecipe
from .parts import LLAMA

__all__ = ["RECIPES"]

WINDOW = 24

TEXT = LLAMA
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 4,
}
HYBRID = ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid_sliding", "hybrid"]


class Lfm2Vl(Recipe):
    """Short convolutions between the attention layers."""

    model_type = "lfm2_vl"
    wide = True
    shapes: ClassVar[dict[str, list[tuple[int, int]]]] = {"image": [(8, 6)], "wide": [(8, 8), (8, 8), (6, 10)]}
    """Patches down and across of each tile; the last of several is the whole picture."""
    most = 80

    def config(self) -> Any:
        from transformers import Lfm2Config, Lfm2VlConfig, Siglip2VisionConfig

        text = Lfm2Config(
            **TEXT,
            layer_types=["conv", "full_attention", "conv", "conv", "full_attention"],
            block_auto_adjust_ff_dim=False,
        )
        vision = Siglip2VisionConfig(**VISION, num_patches=16, vision_use_head=False)
        return Lfm2VlConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, projector_hidden_size=32)

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        shapes = [shape for kind in kinds for shape in self.shapes[kind]]
        pixels = torch.zeros(len(shapes), self.most, 3 * 4 * 4)
        mask = torch.zeros(len(shapes), self.most, dtype=torch.int32)
        for at, (rows, columns) in enumerate(shapes):
            pixels[at, : rows * columns] = torch.randn(rows * columns, 3 * 4 * 4, generator=generator)
            mask[at, : rows * columns] = 1
        tokens = []
        for kind in kinds:
            own = self.shapes[kind]
            ids = [BOS_IMAGE]
            for tile, (rows, columns) in enumerate(own):
                # 20, 21, ... say which row and column of tiles follows, 12 that the whole picture does.
                label = [12] if tile == len(own) - 1 else [20 + tile]
                ids += [*(label if len(own) > 1 else []), *[IMAGE] * (rows * columns // 4)]
            tokens.append([*ids, EOS_IMAGE])
        inputs = {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor(shapes)}
        return Pictures(inputs, tokens)


class Lfm3Vl(GridRecipe):
    """Convolutions, windows and full attention."""

    model_type = "lfm3_vl"
    before_frame = (40, 41, 42, BOS_IMAGE)
    after_frame = (EOS_IMAGE,)
    video_ends = ((), (EOS_IMAGE,))

    def config(self) -> Any:
        from transformers import Lfm3Config, Lfm3VlConfig, Lfm3VlVisionConfig

        kinds = ["conv", "full_attention", "sliding_attention", "conv", "full_attention", "sliding_attention"]
        text = Lfm3Config(
            **TEXT | {"num_hidden_layers": 6}, head_dim=8, sliding_window=WINDOW, layer_types=kinds, conv_L_cache=3
        )
        vision = Lfm3VlVisionConfig(
            **VISION | {"num_hidden_layers": 2}, num_key_value_heads=1, layer_types=["conv", "full_attention"]
        )
        return Lfm3VlConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=BOS_IMAGE,
            vision_end_token_id=EOS_IMAGE,
            projector_hidden_size=32,
        )


class Inkling(Recipe):
    """Convolutions and windows in every layer; attention is biased by the distance in tokens, not in positions."""

    model_type = "inkling_mm_model"
    wide = True
    grids: ClassVar[dict[str, tuple[int, int]]] = {"image": (3, 5), "wide": (6, 4)}

    def _text(self) -> dict[str, Any]:
        return TEXT | {
            "head_dim": 8,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 8,
            "sliding_window_size": WINDOW,
            "rel_extent": 32,
            "d_rel": 4,
            "layer_types": HYBRID,
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
        }

    def config(self) -> Any:
        from transformers import InklingAudioConfig, InklingConfig, InklingTextConfig, InklingVisionConfig

        text = self._text() | {
            "n_shared_experts": 1,
            "mlp_layer_types": ["dense", "sparse", "dense", "sparse", "sparse"],
            "logits_mup_width_multiplier": 1.0,
            "unpadded_vocab_size": VOCABULARY,
        }
        return InklingConfig(
            text_config=InklingTextConfig(**text),
            vision_config=InklingVisionConfig(patch_size=4, hidden_size=16, num_hidden_layers=4, text_hidden_size=32),
            audio_config=InklingAudioConfig(n_mel_bins=4, mel_vocab_size=8, text_hidden_size=32),
            image_token_id=IMAGE,
            audio_token_id=AUDIO,
            image_bos_token_id=BOS_IMAGE,
            audio_bos_token_id=BREAK,
        )

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        counts = [rows * columns for rows, columns in (self.grids[kind] for kind in kinds)]
        pixels = torch.randn(sum(counts), 2, 4, 4, 3, generator=generator)
        return Pictures({"pixel_values": pixels}, [[BOS_IMAGE, *[IMAGE] * count] for count in counts])


class Inkling2(Inkling):
    """Besides, layers read what earlier layers put out, which they get as a tensor of its own."""

    model_type = "inkling2"

    def config(self) -> Any:
        from transformers import Inkling2Config, Inkling2TextConfig, Inkling2VisionConfig

        text = self._text() | {
            "n_layers_per_attn_res_block": 2,
            "unpadded_vocab_size": VOCABULARY,
            "log_scaling_n_floor": 16,
        }
        # One number under two names.
        del text["intermediate_size"]
        vision = Inkling2VisionConfig(**VISION, posemb_grid_size=4, projection_hidden_dim=32, text_hidden_size=32)
        return Inkling2Config(text_config=Inkling2TextConfig(**text), vision_config=vision, image_token_id=IMAGE)

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        grids = torch.tensor([(1, *self.grids[kind]) for kind in kinds])
        counts = grids.prod(1).tolist()
        pixels = torch.randn(sum(counts), 8, 8, 3, generator=generator)
        return Pictures(
            {"pixel_values": pixels, "image_grid_thw": grids}, [[BOS_IMAGE, *[IMAGE] * count] for count in counts]
        )


class MiniMaxM3Vl(GridRecipe):
    """Some layers see only the blocks of tokens that an indexer ranks highest."""

    model_type = "minimax_m3_vl"
    before_frame = (40, 41, 42, BOS_IMAGE)
    after_frame = (EOS_IMAGE,)
    video_ends = ((), (EOS_IMAGE,))

    def config(self) -> Any:
        from transformers import MiniMaxM3VLConfig, MiniMaxM3VLTextConfig, MiniMaxM3VLVisionConfig

        sparse = "minimax_m3_sparse"
        text = MiniMaxM3VLTextConfig(
            **TEXT,
            head_dim=8,
            rotary_dim=8,
            num_local_experts=4,
            num_experts_per_tok=2,
            dense_intermediate_size=48,
            shared_intermediate_size=16,
            mlp_layer_types=["dense", "sparse", "sparse", "dense", "sparse"],
            layer_types=["full_attention", sparse, "full_attention", sparse, sparse],
            index_n_heads=2,
            index_head_dim=8,
            index_block_size=8,
            index_topk_blocks=3,
        )
        # Three axes of positions, each in pairs.
        vision = MiniMaxM3VLVisionConfig(**VISION | {"hidden_size": 24})
        return MiniMaxM3VLConfig(
            text_config=text,
            vision_config=vision,
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            projector_hidden_size=32,
        )


class MistralLarge4(Recipe):
    """A query sees only the tokens that an indexer ranks highest; keys and values are cached compressed."""

    model_type = "mistral_large4"
    wide = True
    grids: ClassVar[dict[str, tuple[int, int]]] = {"image": (4, 4), "wide": (3, 6)}
    """Tokens down and across."""
    patch = 4

    def config(self) -> Any:
        from transformers import MistralLarge4Config, MistralLarge4TextConfig, PixtralVisionConfig

        text = TEXT | {
            "num_key_value_heads": 4,
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "index_topk": WINDOW,
            "index_head_dim": 16,
            "index_n_heads": 16,
            "no_rope_layers": [1, 0, 1, 1, 0],
        }
        vision = PixtralVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=64,
            patch_size=self.patch,
        )
        return MistralLarge4Config(
            text_config=MistralLarge4TextConfig(**text), vision_config=vision, image_token_index=IMAGE
        )

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        sizes = [[2 * self.patch * size for size in self.grids[kind]] for kind in kinds]
        pixels = torch.zeros(len(kinds), 3, max(h for h, _ in sizes), max(w for _, w in sizes))
        tokens = []
        for at, (kind, (height, width)) in enumerate(zip(kinds, sizes, strict=True)):
            pixels[at, :, :height, :width] = torch.randn(3, height, width, generator=generator)
            rows, columns = self.grids[kind]
            row = [*[IMAGE] * columns, BREAK]
            tokens.append([*(row * rows)[:-1], EOS_IMAGE])
        return Pictures({"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}, tokens)


class NemotronHOmni(Recipe):
    """Each layer is one of: state space, attention, experts, MLP.

    No video: the model joins a video's features as if they were a list, which they are not.
    """

    model_type = "nemotron_h_omni"
    wide = True
    grids: ClassVar[dict[str, tuple[int, int]]] = {"image": (8, 6), "wide": (6, 12)}
    """Patches down and across, 4 to a token."""

    def config(self) -> Any:
        from transformers import NemotronH_Omni_Reasoning_V3_Config, NemotronHConfig, RadioConfig

        kinds = ["linear_attention", "full_attention", "moe", "linear_attention", "full_attention", "mlp"]
        text = TEXT | {
            "head_dim": 8,
            "layers_block_type": kinds,
            "ssm_state_size": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "chunk_size": 16,
            "use_mamba_kernels": False,
            "n_routed_experts": 4,
            "moe_intermediate_size": 16,
            "moe_shared_expert_intermediate_size": 16,
        }
        # The depth is the length of the list of kinds.
        del text["num_hidden_layers"]
        vision = RadioConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            patch_size=4,
            image_size=32,
            max_img_size=64,
            video_temporal_patch_size=2,
            dtype="float32",
        )
        return NemotronH_Omni_Reasoning_V3_Config(
            text_config=NemotronHConfig(**text),
            vision_config=vision,
            projector_hidden_size=32,
            vision_hidden_size=16,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            audio_token_id=AUDIO,
        )

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        grids = torch.tensor([self.grids[kind] for kind in kinds])
        counts = grids.prod(1).tolist()
        pixels = torch.randn(sum(counts), 3 * 4 * 4, generator=generator)
        tokens = [[BOS_IMAGE, *[IMAGE] * (count // 4), EOS_IMAGE] for count in counts]
        return Pictures({"pixel_values": pixels, "image_grid_hw": grids}, tokens)


RECIPES: tuple[Recipe, ...] = (
    Lfm2Vl(),
    Lfm3Vl(),
    Inkling2(),
    Inkling(),
    MiniMaxM3Vl(),
    MistralLarge4(),
    NemotronHOmni(),
)
