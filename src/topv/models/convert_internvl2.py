"""Original InternVL2 checkpoints (`internvl_chat`) as models of transformers' `internvl` class, with no remote code.

The published InternVL2 checkpoints run on modules of their own, so that no tool for transformers reaches them. Their
parts are all known to transformers: an InternViT is `InternVLVisionModel`; InternLM2 (InternVL2-2B and 8B) is a Llama
whose query, key and value weights are packed in one matrix; Qwen2 and Llama decoders need new names only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, UnsupportedError

__all__ = ["DECODERS", "convert_config", "convert_internvl2", "convert_weights"]

DECODERS = {"internlm2": "llama", "qwen2": "qwen2", "llama": "llama"}
"""Decoders of the published checkpoints, and the transformers model that each becomes."""

_VISION = (
    (r"^vision_model\.embeddings\.class_embedding$", "model.vision_tower.embeddings.cls_token"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "model.vision_tower.embeddings.patch_embeddings.projection."),
    (r"^vision_model\.embeddings\.position_embedding$", "model.vision_tower.embeddings.position_embeddings"),
    (r"^vision_model\.encoder\.layers\.(\d+)\.attn\.proj\.", (r"model.vision_tower.encoder.layer.\1.attention."
     "projection_layer.")),
    (r"^vision_model\.encoder\.layers\.(\d+)\.attn\.(q_norm|k_norm)\.", (r"model.vision_tower.encoder.layer.\1."
     r"attention.\2.")),
    (r"^vision_model\.encoder\.layers\.(\d+)\.ls1$", r"model.vision_tower.encoder.layer.\1.lambda_1"),
    (r"^vision_model\.encoder\.layers\.(\d+)\.ls2$", r"model.vision_tower.encoder.layer.\1.lambda_2"),
    (r"^vision_model\.encoder\.layers\.(\d+)\.norm1\.", r"model.vision_tower.encoder.layer.\1.layernorm_before."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.norm2\.", r"model.vision_tower.encoder.layer.\1.layernorm_after."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.", r"model.vision_tower.encoder.layer.\1.mlp."),
    (r"^mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "model.multi_modal_projector.linear_2."),
)  # fmt: skip
_INTERNLM2 = (
    (r"^language_model\.model\.tok_embeddings\.", "model.language_model.embed_tokens."),
    (r"^language_model\.model\.layers\.(\d+)\.attention\.wo\.", r"model.language_model.layers.\1.self_attn.o_proj."),
    (r"^language_model\.model\.layers\.(\d+)\.feed_forward\.w1\.", r"model.language_model.layers.\1.mlp.gate_proj."),
    (r"^language_model\.model\.layers\.(\d+)\.feed_forward\.w3\.", r"model.language_model.layers.\1.mlp.up_proj."),
    (r"^language_model\.model\.layers\.(\d+)\.feed_forward\.w2\.", r"model.language_model.layers.\1.mlp.down_proj."),
    (r"^language_model\.model\.layers\.(\d+)\.attention_norm\.", r"model.language_model.layers.\1.input_layernorm."),
    (r"^language_model\.model\.layers\.(\d+)\.ffn_norm\.", (r"model.language_model.layers.\1."
     "post_attention_layernorm.")),
    (r"^language_model\.model\.norm\.", "model.language_model.norm."),
    (r"^language_model\.output\.", "lm_head."),
)  # fmt: skip
_STANDARD = (
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
)
_VISION_QKV = re.compile(r"^vision_model\.encoder\.layers\.(\d+)\.attn\.qkv\.(weight|bias)$")
_TEXT_QKV = re.compile(r"^language_model\.model\.layers\.(\d+)\.attention\.wqkv\.(weight|bias)$")


def convert_config(original: dict[str, Any], image_token_id: int) -> Any:
    """The `InternVLConfig` of an original configuration.

    Args:
        original: the content of the checkpoint's `config.json`, `model_type` "internvl_chat".
        image_token_id: the tokenizer's id of `<IMG_CONTEXT>`.

    Raises:
        UnsupportedError: when it is not an InternVL2 configuration, or its decoder is of another kind.
    """
    from transformers import CONFIG_MAPPING, InternVLConfig, InternVLVisionConfig

    if original.get("model_type") != "internvl_chat":
        raise UnsupportedError(
            f"model_type {original.get('model_type')!r} is not an original InternVL2 checkpoint, which says "
            "'internvl_chat'. A checkpoint whose name ends in -hf needs no conversion."
        )
    text = dict(original["llm_config"])
    kind = text.get("model_type")
    if kind not in DECODERS:
        raise UnsupportedError(f"its decoder is a {kind!r}; expected one of {', '.join(DECODERS)}.")
    if original.get("ps_version", "v2") != "v2":
        raise UnsupportedError(f"ps_version {original['ps_version']!r} orders pixels in another way than 'v2' does.")
    vision = original["vision_config"]
    size = original.get("force_image_size") or vision["image_size"]
    tower = InternVLVisionConfig(
        hidden_size=vision["hidden_size"],
        num_hidden_layers=vision["num_hidden_layers"],
        num_attention_heads=vision["num_attention_heads"],
        intermediate_size=vision["intermediate_size"],
        attention_bias=vision.get("qkv_bias", True),
        use_qk_norm=vision.get("qk_normalization", False),
        norm_type=vision.get("norm_type", "layer_norm"),
        layer_norm_eps=vision.get("layer_norm_eps", 1e-6),
        hidden_act=vision.get("hidden_act", "gelu"),
        layer_scale_init_value=vision.get("initializer_factor", 0.1),
        image_size=[size, size],
        patch_size=[vision["patch_size"]] * 2,
        use_mean_pooling=True,
    )
    for name in ("architectures", "auto_map", "model_type", "_name_or_path", "torch_dtype", "attn_implementation"):
        text.pop(name, None)
    if kind == "internlm2":
        text["attention_bias"] = text.pop("bias", False)
        text["mlp_bias"] = False
    decoder = CONFIG_MAPPING[DECODERS[kind]](**text)
    return InternVLConfig(
        vision_config=tower,
        text_config=decoder,
        image_token_id=image_token_id,
        image_seq_length=int((size // vision["patch_size"] * original.get("downsample_ratio", 0.5)) ** 2),
        downsample_ratio=original.get("downsample_ratio", 0.5),
        vision_feature_layer=original.get("select_layer", -1),
        tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
    )


def convert_weights(weights: dict[str, torch.Tensor], original: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Original names and weights as those of `InternVLForConditionalGeneration`.

    InternLM2 packs, for every key-value head in turn, its query heads, its key head and its value head:
    (kv heads, queries per kv head + 2, head dimension, width).

    Raises:
        UnsupportedError: at a weight of unknown name, so that none is left out.
    """
    text = original["llm_config"]
    names = (*_VISION, *(_INTERNLM2 if text["model_type"] == "internlm2" else _STANDARD))
    for name, value in weights.items():
        vision, packed = _VISION_QKV.match(name), _TEXT_QKV.match(name)
        if vision is not None:
            layer, part = vision.groups()
            for which, piece in zip("qkv", value.chunk(3), strict=True):
                yield f"model.vision_tower.encoder.layer.{layer}.attention.{which}_proj.{part}", piece.contiguous()
        elif packed is not None:
            layer, part = packed.groups()
            heads, shared = text["num_attention_heads"], text["num_key_value_heads"]
            dim = text["hidden_size"] // heads
            grouped = value.view(shared, heads // shared + 2, dim, *value.shape[1:])
            pieces = {"q": grouped[:, :-2], "k": grouped[:, -2], "v": grouped[:, -1]}
            for which, piece in pieces.items():
                whole = piece.reshape(-1, *value.shape[1:]).contiguous()
                yield f"model.language_model.layers.{layer}.self_attn.{which}_proj.{part}", whole
        else:
            yield _renamed(name, names), value


def _renamed(name: str, names: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in names:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    raise UnsupportedError(f"the checkpoint holds a weight {name!r} that no InternVL2 known to topv has.")


def convert_internvl2(source: Path, destination: Path, image_token_id: int) -> None:
    """Write an original checkpoint folder's weights and configuration in transformers' format.

    Args:
        source: folder with `config.json` and `*.safetensors`.
        destination: folder to write; made if it is not there.
        image_token_id: the tokenizer's id of `<IMG_CONTEXT>`, in the checkpoint's `added_tokens.json`.

    Raises:
        InputError: when the folder holds no such checkpoint, or its weights do not fill the model.
        UnsupportedError: as `convert_config` and `convert_weights`.
    """
    from safetensors.torch import load_file
    from transformers import InternVLForConditionalGeneration

    if not (source / "config.json").is_file():
        raise InputError(f"{source} has no config.json; give the folder of an original InternVL2 checkpoint.")
    shards = sorted(source.glob("*.safetensors"))
    if not shards:
        raise InputError(f"{source} has no *.safetensors files, the only kind of weights that topv reads.")
    original = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = convert_config(original, image_token_id)
    state: dict[str, torch.Tensor] = {}
    for shard in shards:
        state.update(convert_weights(load_file(shard), original))
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(config)
    missing, unknown = model.load_state_dict(state, strict=False, assign=True)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if set(missing) - tied or unknown:
        raise InputError(
            f"{source} does not fill the model that its config describes: {sorted(set(missing) - tied)[:3]} are "
            f"missing, {sorted(unknown)[:3]} have no place."
        )
    model.tie_weights()
    model.save_pretrained(destination)
