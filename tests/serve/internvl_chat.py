"""A tiny InternVL in its original format, with a configuration class of its own as such checkpoints bring one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from serve.checkpoints import TEXT, TOWER, save_tiny

__all__ = ["IMAGES", "save_original"]

IMAGES = {"min_dynamic_patch": 1, "max_dynamic_patch": 4, "dynamic_image_size": True, "use_thumbnail": True}
"""How images are cut into tiles."""

CODE = """
from transformers import PretrainedConfig, Qwen2Config


class InternVisionConfig(PretrainedConfig):
    model_type = "intern_vit_6b"


class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"
    has_no_defaults_at_init = True

    def __init__(self, vision_config=None, llm_config=None, **kwargs):
        self.vision_config = InternVisionConfig(**(vision_config or {}))
        self.llm_config = Qwen2Config(**(llm_config or {}))
        super().__init__(**kwargs)
"""

NAMES = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"embeddings\.cls_token$", "embeddings.class_embedding"),
    (r"embeddings\.patch_embeddings\.projection\.", "embeddings.patch_embedding."),
    (r"embeddings\.position_embeddings$", "embeddings.position_embedding"),
    (r"encoder\.layer\.(\d+)\.attention\.projection_layer\.", r"encoder.layers.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.lambda_(\d)$", r"encoder.layers.\1.ls\2"),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.", r"encoder.layers.\1.norm1."),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.", r"encoder.layers.\1.norm2."),
    (r"encoder\.layer\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"^model\.vision_tower\.", "vision_model."),
    (r"^model\.multi_modal_projector\.layer_norm\.", "mlp1.0."),
    (r"^model\.multi_modal_projector\.linear_1\.", "mlp1.1."),
    (r"^model\.multi_modal_projector\.linear_2\.", "mlp1.3."),
)


def save_original(folder: Path) -> tuple[Any, Any]:
    """Save a model in the original format.

    Returns:
        The same model in transformers, and its processor.
    """
    model, processor = save_tiny("internvl", folder / "hf")
    original = folder / "original"
    processor.tokenizer.save_pretrained(original)
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if re.search(r"attention\.[qkv]_proj\.", name):
            continue
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        # Tied weights are written twice.
        weights[name] = tensor.clone()
    for number, layer in enumerate(model.model.vision_tower.encoder.layer):
        own = layer.attention
        for kind in ("weight", "bias"):
            pieces = [getattr(getattr(own, f"{part}_proj"), kind, None) for part in "qkv"]
            if pieces[0] is not None:
                weights[f"vision_model.encoder.layers.{number}.attn.qkv.{kind}"] = torch.cat(pieces).detach()
    save_file(weights, original / "model.safetensors")
    vision = {name: TOWER[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "patch_size")}
    tower = model.config.vision_config
    vision |= {"num_attention_heads": tower.num_attention_heads, "image_size": 32, "num_channels": 3}
    vision |= {"qkv_bias": tower.attention_bias, "qk_normalization": False, "norm_type": "layer_norm"}
    vision |= {"layer_norm_eps": tower.layer_norm_eps, "hidden_act": tower.hidden_act, "initializer_factor": 1.0}
    text = TEXT | {"vocab_size": model.config.text_config.vocab_size, "architectures": ["Qwen2ForCausalLM"]}
    config = {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "force_image_size": 32,
        "select_layer": -1,
        "ps_version": "v2",
        "vision_config": vision,
        "llm_config": {**text, "model_type": "qwen2"},
        **IMAGES,
    }
    (original / "config.json").write_text(json.dumps(config))
    (original / "configuration_internvl_chat.py").write_text(CODE)
    return model, processor
