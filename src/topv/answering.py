"""Greedy answers to a batch of prompts under one method."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .methods import Method
from .runtime import Pruning, prune

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Answerer"]


class Answerer:
    """Answers prompts under one method. Use it as a context manager: the method is attached inside.

    Args:
        model: the vision-language model, with nothing attached.
        processor: its processor.
        method: how to prune, or None for the unpruned model.

    Attributes:
        pruning: the attached method; None for the unpruned model, and outside the context.
    """

    def __init__(self, model: Any, processor: Any, method: Method | None) -> None:
        self._model, self._processor, self._method = model, processor, method
        self._attached = contextlib.ExitStack()
        self.pruning: Pruning | None = None

    def __enter__(self) -> Self:
        if self._method is not None:
            self.pruning = self._attached.enter_context(prune(self._model, self._method))
        return self

    def __exit__(self, *exception: object) -> None:
        self._attached.close()
        self.pruning = None

    def answer(self, inputs: Any, *, max_new_tokens: int, streamer: Any = None) -> list[str]:
        """What the model writes behind each prompt, greedily, without spaces around it.

        Args:
            inputs: what the processor made of a batch of prompts, on the model's device.
            max_new_tokens: longest answer.
            streamer: what is told each token, as `generate` takes it.
        """
        with torch.inference_mode():
            ids = self._model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, streamer=streamer)
        written = ids[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self._processor.batch_decode(written, skip_special_tokens=True)]

    def kept_tokens(self, visual_tokens: Sequence[int]) -> list[int]:
        """How many visual tokens of each sample stayed to the last layer in the latest answers.

        Args:
            visual_tokens: how many each sample has, which is what stays in the unpruned model.
        """
        if self.pruning is None:
            return list(visual_tokens)
        return [stages[-1] for _, stages in self.pruning.results.visual_tokens()]
