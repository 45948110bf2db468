"""How many numbers one token adds to a decoder layer's KV cache, read off the layer's modules."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedError
from .decoder import Decoder
from .flops import is_linear, output_projection, unwrapped

__all__ = ["kv_width"]

_LATENT = "kv_a_proj_with_mqa"
_FUSED = ("query_key_value", "qkv_proj", "qkv", "wqkv")


def kv_width(decoder: Decoder, index: int) -> int:
    """Numbers in the keys and values that decoder layer `index` keeps of one token: 0 where it keeps none of its own.

    Raises:
        UnsupportedError: when the layer's maps to keys and values are not found.
    """
    if not decoder.keeps_keys(index) or decoder.key_layer(index) != index:
        return 0
    attention: Any = decoder.attention(decoder.layers[index])
    latent, keys, values = (unwrapped(getattr(attention, name, None)) for name in (_LATENT, "k_proj", "v_proj"))
    if is_linear(latent):
        # What multi-head latent attention caches is still compressed.
        return int(latent.out_features)
    if is_linear(keys):
        return int(keys.out_features + (values if is_linear(values) else keys).out_features)
    fused = next((m for name in _FUSED if is_linear(m := unwrapped(getattr(attention, name, None)))), None)
    output = output_projection(attention)
    if fused is not None and output is not None:
        return int(fused.out_features - output.in_features)
    raise UnsupportedError(
        f"{type(attention).__name__} of decoder layer {index} has none of the linear maps k_proj, "
        f"{', '.join((_LATENT, *_FUSED))}, off which topv reads the size of its KV cache. Choose the budget by keep=."
    )
