"""Tiny decoders and vision towers that several recipes share."""

from __future__ import annotations

from typing import Any

from ..recipe import VOCABULARY

__all__ = ["LLAMA", "SAM", "TOWER"]

LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
"""A Llama-like decoder."""

TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
}
"""A CLIP-like vision tower."""

SAM: dict[str, Any] = {
    "hidden_size": 16,
    "output_channels": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
    "window_size": 4,
    "global_attn_indexes": [1],
    "mlp_dim": 32,
}
"""A vision tower like Segment Anything's, with one windowed layer and one global one."""
