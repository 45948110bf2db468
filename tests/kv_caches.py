"""KV caches by the name that the installed transformers gives them, for tests that hand one over."""

from __future__ import annotations

from typing import Any

from transformers import LlamaForCausalLM

from topv.runtime.arguments import CACHE, Signature

_MODEL = Signature(LlamaForCausalLM.forward)


def with_cache(cache: Any) -> dict[str, Any]:
    """The keyword argument of a model, or of its `generate`, that holds its KV cache."""
    return _MODEL.spell({CACHE: cache})
