"""Why an architecture cannot be pruned in its decoder: a closed list, each entry told by code."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import UnsupportedError
from .decoder import find_decoder

__all__ = ["REASONS", "reason_against"]

REASONS = {
    "encoder-decoder": "an encoder reads the image and a decoder attends to it: no visual token enters a causal one",
    "cross-attention": "the decoder looks at the image through cross-attention: no visual token enters it",
    "no visual tokens": "it is no vision-language model: nothing of an image enters its decoder",
    "hidden prefix": "its visual tokens stand in front of the prompt, in no position of input_ids",
    "not generative": "the model generates no text token by token",
    "missing package": "a package that transformers builds it with is not installed",
    "fails unpruned": "the model's own forward fails in this release of transformers",
    "loop": "its decoder runs layers more than once, so there is no layer behind which tokens could leave",
    "window": "its attention window cannot be expressed once tokens are gone",
}
"""The reasons, by name."""

_CROSS = ("cross_attn", "crossattention", "encoder_attn", "cross_attention")


def reason_against(model: nn.Module) -> str | None:
    """The name of the reason why `model` has no visual tokens to prune in a causal decoder, or None."""
    config: Any = getattr(model, "config", None)
    text: Any = getattr(config, "text_config", None)
    if getattr(config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False):
        return "encoder-decoder"
    can_generate: Any = getattr(model, "can_generate", None)
    if can_generate is not None and not can_generate() and not hasattr(model, "get_image_features"):
        return "not generative"
    if (getattr(text, "loop_num_passes", None) or 1) > 1:
        return "loop"
    try:
        decoder: nn.Module = find_decoder(model)
    except UnsupportedError:
        decoder = model
    if any(_is_crossed(name, type(module).__name__) for name, module in decoder.named_modules()):
        return "cross-attention"
    if any(hasattr(module, "image_patch_tokens") for module in model.modules()):
        return "hidden prefix"
    if any(hasattr(module, "topk_blocks") and hasattr(module, "block_size") for module in decoder.modules()):
        # Keys are chosen by blocks of the cache's slots, which say nothing of the prompt's blocks.
        return "window"
    return None


def _is_crossed(name: str, kind: str) -> bool:
    """Whether a module is or lies in a decoder's cross-attention (a Q-Former's serves the vision side)."""
    return "qformer" not in name and (any(part in name for part in _CROSS) or "CrossAttention" in kind)
