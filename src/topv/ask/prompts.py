"""From images and questions to a model's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import nn

from ..errors import InputError

__all__ = ["build_batch", "build_inputs"]


def build_inputs(model: nn.Module, processor: Any, image: Image.Image, question: str) -> Any:
    """The inputs for one question about one image, by the processor's chat template, on the model's device.

    Raises:
        InputError: when the question is empty or holds image placeholders of its own, or when the processor has no
            chat template and the model is not a LLaVA, whose format is known.
    """
    return build_batch(model, processor, [image], [question])


def build_batch(model: nn.Module, processor: Any, images: Sequence[Image.Image], questions: Sequence[str]) -> Any:
    """`build_inputs` for B questions, each about its own image: padded on the left where they differ in length.

    Raises:
        InputError: as `build_inputs`.
    """
    placeholder = getattr(processor, "image_token", None)
    for question in questions:
        if not question.strip():
            raise InputError("the prompt is empty. Expected a question about the image.")
        if placeholder and placeholder in question:
            raise InputError(
                f"the prompt holds the image placeholder {placeholder!r}. Leave it out: topv puts the image in front."
            )
    # One question needs no padding, for which some tokenizers lack a token.
    padding = {"padding": True, "padding_side": "left"} if len(questions) > 1 else {}
    if _has_template(processor):
        inputs = processor.apply_chat_template(
            [_conversation(image, question) for image, question in zip(images, questions, strict=True)],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=padding,
        )
    elif getattr(model.config, "model_type", None) == "llava":
        texts = [f"USER: {placeholder or '<image>'}\n{question} ASSISTANT:" for question in questions]
        inputs = processor(images=list(images), text=texts, return_tensors="pt", **padding)
    else:
        raise InputError(
            f"the processor of this {type(model).__name__} has no chat template, so topv does not know how to ask it. "
            "Save one with the processor: `processor.chat_template = ...; processor.save_pretrained(directory)`."
        )
    parameter = next(model.parameters())
    return inputs.to(parameter.device, parameter.dtype)


def _conversation(image: Image.Image, question: str) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def _has_template(processor: Any) -> bool:
    tokenizer = getattr(processor, "tokenizer", None)
    return bool(getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None))
