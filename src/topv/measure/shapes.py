"""Presets: vision-language models at their published shapes, and small ones of the same proportions, to measure with.

What a prefill costs depends on shapes and not on what the weights say, so random weights serve. The shapes are those of
the checkpoints' `config.json`:

- `llava-1.5-7b`, `llava-1.5-13b`: llava-hf/llava-1.5-7b-hf and -13b-hf (arXiv 2310.03744).
- `internvl2-2b`, `internvl2-8b`: OpenGVLab/InternVL2-2B and -8B (arXiv 2404.16821), as `topv convert` makes them.
- `qwen2.5-vl-7b`: Qwen/Qwen2.5-VL-7B-Instruct (arXiv 2502.13923).
- `qwen3-vl-8b`: Qwen/Qwen3-VL-8B-Instruct (arXiv 2511.21631).

Those that end in `-cpu` have as many layers and about the same ratios of widths and heads, and run on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import InputError, unknown_name
from .preset import Picture, Preset

__all__ = ["PRESETS", "preset"]


def preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        InputError: when there is none.
    """
    if name not in PRESETS:
        raise InputError(str(unknown_name("preset", name, PRESETS)))
    return PRESETS[name]


# ---- LLaVA-1.5 ------------------------------------------------------------------------------------------------

_CLIP_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}


def _llava(text: dict[str, Any], vision: dict[str, Any], **fields: Any) -> Callable[[int | None], Any]:
    def config(layers: int | None) -> Any:
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

        return LlavaConfig(
            vision_config=CLIPVisionConfig(**vision),
            text_config=LlamaConfig(**_depth(text, layers)),
            **fields,
        )

    return config


def _vicuna(width: int, intermediate: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }


def _llava_1_5(text: dict[str, Any]) -> Callable[[int | None], Any]:
    return _llava(
        text, _CLIP_LARGE, image_token_id=32000, vision_feature_layer=-2, vision_feature_select_strategy="default"
    )


_LLAVA_CPU_TEXT = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
}
_LLAVA_CPU_VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 336,
    "patch_size": 14,
}


# ---- InternVL2 ------------------------------------------------------------------------------------------------


def _internvl2(llm: dict[str, Any], vision: dict[str, Any], image_token_id: int) -> Callable[[int | None], Any]:
    def config(layers: int | None) -> Any:
        from ..models.convert_internvl2 import convert_config

        original = {
            "model_type": "internvl_chat",
            "llm_config": {"model_type": "internlm2", "bias": False, **_depth(llm, layers)},
            "vision_config": {
                "qkv_bias": True,
                "qk_normalization": False,
                "image_size": 448,
                "patch_size": 14,
                **vision,
            },
            "force_image_size": 448,
            "downsample_ratio": 0.5,
            "select_layer": -1,
            "ps_version": "v2",
        }
        return convert_config(original, image_token_id)

    return config


_INTERNVIT_300M = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}


def _internlm2(
    width: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
    }


# ---- Qwen-VL --------------------------------------------------------------------------------------------------


def _qwen(class_name: str, text: dict[str, Any], vision: dict[str, Any], **ids: int) -> Callable[[int | None], Any]:
    def config(layers: int | None) -> Any:
        import transformers

        configuration: Any = getattr(transformers, class_name)
        return configuration(text_config=_depth(text, layers), vision_config=vision, tie_word_embeddings=False, **ids)

    return config


_QWEN_IDS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
_QWEN_COMMON: dict[str, Any] = {
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
_SMALL_IDS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}


def _qwen2_5_text(**shape: int) -> dict[str, Any]:
    quarter = shape["hidden_size"] // shape["num_attention_heads"] // 8
    return {
        **shape,
        **_QWEN_COMMON,
        "max_position_embeddings": 128000,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1_000_000.0,
            "mrope_section": [quarter, 3 * quarter // 2, 3 * quarter // 2],
        },
    }


def _qwen2_5_vision(**shape: int) -> dict[str, Any]:
    return {
        **shape,
        "depth": 32,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "hidden_act": "silu",
    }


def _qwen3_text(**shape: int) -> dict[str, Any]:
    half = shape["head_dim"] // 2
    height = half * 5 // 16
    return {
        **shape,
        **_QWEN_COMMON,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5_000_000.0,
            "mrope_section": [half - 2 * height, height, height],
            "mrope_interleaved": True,
        },
    }


def _qwen3_vision(**shape: int) -> dict[str, Any]:
    return {
        **shape,
        "depth": 27,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
        "hidden_act": "gelu_pytorch_tanh",
    }


def _depth(text: dict[str, Any], layers: int | None) -> dict[str, Any]:
    """A decoder's fields, `layers` deep."""
    if layers is None:
        return dict(text)
    if layers < 2:
        raise InputError(f"layers={layers}: a decoder of fewer than 2 layers has nothing to prune.")
    return {**text, "num_hidden_layers": layers}


_SQUARE = Picture("square", (336, 336))

PRESETS: dict[str, Preset] = {
    entry.name: entry
    for entry in (
        Preset("llava-1.5-7b", _llava_1_5(_vicuna(4096, 11008, 32, 32)), _SQUARE, 7_063_427_072),
        Preset("llava-1.5-13b", _llava_1_5(_vicuna(5120, 13824, 40, 40)), _SQUARE, 13_351_494_656),
        Preset(
            "internvl2-2b",
            _internvl2(_internlm2(2048, 8192, 24, 16, 8, 92553), _INTERNVIT_300M, 92546),
            Picture("tiles", (448, 448), 6),
            2_205_754_368,
        ),
        Preset(
            "internvl2-8b",
            _internvl2(_internlm2(4096, 14336, 32, 32, 8, 92553), _INTERNVIT_300M, 92546),
            Picture("tiles", (448, 448), 6),
            8_075_365_376,
        ),
        Preset(
            "qwen2.5-vl-7b",
            _qwen(
                "Qwen2_5_VLConfig",
                _qwen2_5_text(
                    hidden_size=3584,
                    intermediate_size=18944,
                    num_hidden_layers=28,
                    num_attention_heads=28,
                    num_key_value_heads=4,
                    vocab_size=152064,
                ),
                _qwen2_5_vision(hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=3584),
                **_QWEN_IDS,
            ),
            Picture("patches", (1008, 1008)),
            8_292_166_656,
        ),
        Preset(
            "qwen3-vl-8b",
            _qwen(
                "Qwen3VLConfig",
                _qwen3_text(
                    hidden_size=4096,
                    intermediate_size=12288,
                    num_hidden_layers=36,
                    num_attention_heads=32,
                    num_key_value_heads=8,
                    head_dim=128,
                    vocab_size=151936,
                ),
                _qwen3_vision(hidden_size=1152, intermediate_size=4304, num_heads=16, out_hidden_size=4096),
                **_QWEN_IDS,
            ),
            Picture("patches", (1024, 1024)),
            8_767_123_696,
        ),
        Preset(
            "llava-cpu",
            _llava(_LLAVA_CPU_TEXT, _LLAVA_CPU_VISION, image_token_id=3, vision_feature_layer=-1),
            _SQUARE,
        ),
        Preset(
            "internvl2-cpu",
            _internvl2(
                _internlm2(384, 1536, 24, 6, 3, 17354),
                {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 24, "num_attention_heads": 3},
                5,
            ),
            Picture("tiles", (448, 448), 6),
        ),
        Preset(
            "qwen2.5-vl-cpu",
            _qwen(
                "Qwen2_5_VLConfig",
                _qwen2_5_text(
                    hidden_size=448,
                    intermediate_size=2368,
                    num_hidden_layers=28,
                    num_attention_heads=7,
                    num_key_value_heads=1,
                    vocab_size=19008,
                ),
                _qwen2_5_vision(hidden_size=160, intermediate_size=428, num_heads=2, out_hidden_size=448),
                **_SMALL_IDS,
            ),
            Picture("patches", (672, 672)),
        ),
        Preset(
            "qwen3-vl-cpu",
            _qwen(
                "Qwen3VLConfig",
                _qwen3_text(
                    hidden_size=512,
                    intermediate_size=1536,
                    num_hidden_layers=36,
                    num_attention_heads=8,
                    num_key_value_heads=2,
                    head_dim=64,
                    vocab_size=18992,
                ),
                _qwen3_vision(hidden_size=144, intermediate_size=538, num_heads=2, out_hidden_size=512),
                **_SMALL_IDS,
            ),
            Picture("patches", (768, 768)),
        ),
    )
}
"""Every preset by name."""
