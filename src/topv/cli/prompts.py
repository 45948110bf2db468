"""From an image and a question to a model's inputs."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import nn

from ..errors import InputError

__all__ = ["build_inputs"]


def build_inputs(model: nn.Module, processor: Any, image: Image.Image, question: str) -> Any:
    """The inputs for one question about one image, by the processor's chat template, on the model's device.

    Raises:
        InputError: when the question is empty or holds image placeholders of its own, or when the processor has no
            chat template and the model is not a LLaVA, whose format is known.
    """
    if not question.strip():
        raise InputError("the prompt is empty. Expected a question about the image.")
    placeholder = getattr(processor, "image_token", None)
    if placeholder and placeholder in question:
        raise InputError(
            f"the prompt holds the image placeholder {placeholder!r}. Leave it out: topv puts the image in front."
        )
    if _has_template(processor):
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    elif getattr(model.config, "model_type", None) == "llava":
        text = f"USER: {placeholder or '<image>'}\n{question} ASSISTANT:"
        inputs = processor(images=image, text=text, return_tensors="pt")
    else:
        raise InputError(
            f"the processor of this {type(model).__name__} has no chat template, so topv does not know how to ask it. "
            "Save one with the processor: `processor.chat_template = ...; processor.save_pretrained(directory)`."
        )
    parameter = next(model.parameters())
    return inputs.to(parameter.device, parameter.dtype)


def _has_template(processor: Any) -> bool:
    tokenizer = getattr(processor, "tokenizer", None)
    return bool(getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None))
