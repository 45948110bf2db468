"""What a release of transformers broke in models of its own, mended so that topv can be tested on them."""

from __future__ import annotations

import transformers
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

__all__ = ["repair_models"]


def repair_models() -> None:
    """Let Llama 4 run: in 5.24.0 it asks its decoder's output for a field that the output does not have."""
    if transformers.__version__ == "5.24.0":
        MoeCausalLMOutputWithPast.image_outputs = None
