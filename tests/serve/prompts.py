"""The bundled questions as prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve.engines import Case
from topv.evaluate import Example

__all__ = ["prompts_of"]


def prompts_of(processor: Any, examples: Sequence[Example]) -> list[Case]:
    """Each example's picture and question, as the bundled model is asked."""
    found = []
    for example in examples:
        content = [{"type": "image"}, {"type": "text", "text": example.prompt}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        found.append(Case([example.image], text))
    return found
