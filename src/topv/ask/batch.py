"""Answering a batch of questions about files that may be bad, so that each becomes one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from ..answering import Answerer
from ..errors import LayoutError
from ..images import MAX_PIXELS, open_image
from ..methods import Method
from ..models import family_of
from .job import JobItem
from .prompts import build_batch

__all__ = ["BatchAsker"]

_Opened = tuple[JobItem, Image.Image]


class BatchAsker:
    """Asks batches of questions under one method. Use it as a context manager: the method is attached inside.

    Args:
        model: the vision-language model, with nothing attached.
        processor: its processor.
        method: how to prune, or None for the unpruned model.
        max_new_tokens: longest answer.
        max_pixels: largest image to decode.
    """

    def __init__(
        self, model: Any, processor: Any, method: Method | None, *, max_new_tokens: int, max_pixels: int = MAX_PIXELS
    ) -> None:
        self._model, self._processor = model, processor
        self._max_new_tokens, self._max_pixels = max_new_tokens, max_pixels
        self._answerer = Answerer(model, processor, method)

    def __enter__(self) -> BatchAsker:
        self._answerer.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._answerer.__exit__(*exception)

    def ask(self, items: Sequence[JobItem]) -> list[dict[str, Any]]:
        """One row per item, in their order, as plain values.

        A row has "image", "prompt", "id" where there is one, "answer", "visual_tokens", "kept_tokens" and "error": the
        reason, with the other three null, where the item could not be answered. A batch that fails is asked again one
        by one, so that one bad item costs the others nothing.
        """
        outcomes: list[dict[str, Any] | str] = []
        opened: list[_Opened] = []
        for item in items:
            outcomes.append(self._open(item, opened))
        answers = iter(self._answer_all(opened))
        outcomes = [outcome or next(answers) for outcome in outcomes]
        return [_row(item, outcome) for item, outcome in zip(items, outcomes, strict=True)]

    def _open(self, item: JobItem, opened: list[_Opened]) -> str:
        """Read an item's image, or say why it cannot be asked about."""
        if item.fault or item.path is None:
            return item.fault or "no image is named"
        try:
            opened.append((item, open_image(item.path, max_pixels=self._max_pixels)))
        except Exception as error:
            return _reason(error)
        return ""

    def _answer_all(self, opened: Sequence[_Opened]) -> list[dict[str, Any] | str]:
        if not opened:
            return []
        try:
            return list(self._answer(opened))
        except _ITEM_ERRORS as error:
            if len(opened) == 1:
                return [_reason(error)]
        return [self._answer_all([each])[0] for each in opened]

    def _answer(self, opened: Sequence[_Opened]) -> list[dict[str, Any]]:
        images, questions = [image for _, image in opened], [item.prompt or "" for item, _ in opened]
        try:
            inputs = build_batch(self._model, self._processor, images, questions)
        except Exception as error:
            # Processors are of many makes, and fail on images that they do not expect in as many ways.
            raise _Unprocessed(_reason(error)) from error
        family = family_of(self._model)
        layout = family.layout(family.placeholders(inputs["input_ids"]).cpu(), inputs)
        if not layout.grids:
            raise LayoutError(
                "the processor made prompts without visual tokens. Check that its chat template places the image."
            )
        texts = self._answerer.answer(inputs, max_new_tokens=self._max_new_tokens)
        visual = [0] * layout.batch
        for grid in layout.grids:
            visual[grid.sample] += grid.tokens
        kept = self._answerer.kept_tokens(visual)
        return [
            {"answer": text, "visual_tokens": before, "kept_tokens": after}
            for text, before, after in zip(texts, visual, kept, strict=True)
        ]


class _Unprocessed(ValueError):
    """The processor could not make inputs of a batch."""


# What may be one item's own fault. Anything else ends the job, which can be gone on with.
_ITEM_ERRORS = (ValueError, torch.OutOfMemoryError)


def _reason(error: Exception) -> str:
    return str(error).strip() or type(error).__name__


def _row(item: JobItem, outcome: dict[str, Any] | str) -> dict[str, Any]:
    row: dict[str, Any] = {"image": item.image, "prompt": item.prompt}
    if item.id is not None:
        row["id"] = item.id
    if isinstance(outcome, str):
        return {**row, "answer": None, "visual_tokens": None, "kept_tokens": None, "error": outcome}
    return {**row, **outcome, "error": None}
