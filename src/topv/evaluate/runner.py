"""Asking every question under every method, and recording what was answered and what was kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..answering import Answerer
from ..methods import Method
from ..runtime import prune
from ..scenes import View
from .examples import Example, foreground_tokens
from .scoring import answer_score

__all__ = ["Answer", "Asker", "answer_examples", "foreground_shares", "inputs_of", "plan_batches"]

_LONGEST = {"caption": 64, "description": 160}
_SHORT = 12


@dataclass(frozen=True)
class Answer:
    """What one method answered to one question.

    Attributes:
        task: the task.
        scene: the scene's seed.
        prompt: the question.
        expected: the right answer.
        answer: what the model wrote.
        score: exact match or token F1, in [0, 1].
        target_size: size of the thing asked about, or None.
        visual_tokens: visual tokens in the prompt.
        kept_tokens: how many of them stayed.
        visual_flops_reduction: share of visual FLOPs not spent in the prefill of its batch.
    """

    task: str
    scene: int
    prompt: str
    expected: str
    answer: str
    score: float
    target_size: str | None
    visual_tokens: int
    kept_tokens: int
    visual_flops_reduction: float

    def to_dict(self) -> dict[str, Any]:
        """The answer as plain values."""
        return asdict(self)


class Asker:
    """Asks questions under one method, batch by batch. Use it as a context manager: the method is attached inside.

    Args:
        model: the vision-language model, with nothing attached.
        processor: its processor, with a chat template.
        method: how to prune, or None for the unpruned model.
    """

    def __init__(self, model: Any, processor: Any, method: Method | None) -> None:
        self._model, self._processor = model, processor
        self._answerer = Answerer(model, processor, method)

    def __enter__(self) -> Asker:
        self._answerer.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._answerer.__exit__(*exception)

    def ask(self, examples: Sequence[Example]) -> list[Answer]:
        """Greedy answers to a batch of examples that `plan_batches` put together."""
        inputs = inputs_of(self._processor, examples).to(self._model.device)
        texts = self._answerer.answer(inputs, max_new_tokens=_longest(examples[0].task))
        visual = (inputs["input_ids"] == self._model.config.image_token_id).sum(1).tolist()
        kept = self._answerer.kept_tokens(visual)
        pruning = self._answerer.pruning
        reduction = 0.0 if pruning is None else pruning.report().visual_flops_reduction
        return [
            Answer(
                task=example.task,
                scene=example.scene,
                prompt=example.prompt,
                expected=example.answer,
                answer=text,
                score=answer_score(example.task, text, example.answer),
                target_size=example.target_size,
                visual_tokens=before,
                kept_tokens=after,
                visual_flops_reduction=reduction,
            )
            for example, text, before, after in zip(examples, texts, visual, kept, strict=True)
        ]


def plan_batches(examples: Sequence[Example], size: int) -> list[list[int]]:
    """Which examples, by their places, share a batch: those of similar length, none whose answers differ in length."""
    order = sorted(range(len(examples)), key=lambda i: (_longest(examples[i].task), len(examples[i].prompt)))
    return list(_batches(order, examples, size))


def answer_examples(
    model: Any, processor: Any, examples: Sequence[Example], method: Method | None, *, batch_size: int = 32
) -> list[Answer]:
    """Greedy answers to `examples` under one method, in their order.

    Args:
        model: the vision-language model, with nothing attached.
        processor: its processor, with a chat template.
        examples: the questions.
        method: how to prune, or None for the unpruned model.
        batch_size: questions per batch.
    """
    answers: dict[int, Answer] = {}
    with Asker(model, processor, method) as asker:
        for batch in plan_batches(examples, batch_size):
            answers.update(zip(batch, asker.ask([examples[place] for place in batch]), strict=True))
    return [answers[place] for place in range(len(examples))]


def foreground_shares(
    model: Any,
    processor: Any,
    examples: Sequence[Example],
    method: Method,
    *,
    split: str,
    view: View,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda questions: None,
) -> list[float]:
    """For each example the share of the visual tokens that show its scene's foreground which `method` keeps, by a
    prefill alone.

    Args:
        model: a bundled model, with nothing attached.
        processor: its processor.
        examples: the questions.
        method: how to prune.
        split: the split of their scenes.
        view: how the model is shown a scene.
        batch_size: questions per batch.
        advance: called with the number of questions just looked at.
    """
    shares: list[float] = []
    with prune(model, method) as pruning:
        for first in range(0, len(examples), batch_size):
            chosen = examples[first : first + batch_size]
            inputs = inputs_of(processor, chosen).to(model.device)
            with torch.inference_mode():
                model(**inputs, logits_to_keep=1)
            placeholders = (inputs["input_ids"] == model.config.image_token_id).cpu()
            for row, example, kept in zip(placeholders, chosen, pruning.kept_positions, strict=True):
                foreground = foreground_tokens(split, example.scene, view)
                # The place of each kept column among the placeholders, which other tokens may stand between.
                places = (row.long().cumsum(0) - 1)[kept].numpy()
                shares.append(float(foreground[places].sum() / foreground.sum()))
            advance(len(chosen))
    return shares


def inputs_of(processor: Any, examples: Sequence[Example]) -> Any:
    """What the processor makes of a batch of examples, each one question about one image or a clip's frames."""
    texts = [
        processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [*({"type": "image"} for _ in example.shown), {"type": "text", "text": example.prompt}],
                }
            ],
            add_generation_prompt=True,
        )
        for example in examples
    ]
    images = [image for example in examples for image in example.shown]
    return processor(images=images, text=texts, padding=True, return_tensors="pt")


def _longest(task: str) -> int:
    return _LONGEST.get(task, _SHORT)


def _batches(order: Sequence[int], examples: Sequence[Example], size: int) -> Iterator[list[int]]:
    """Cut `order` into batches that do not mix tasks whose answers differ in length."""
    batch: list[int] = []
    for place in order:
        if batch and (len(batch) == size or _longest(examples[batch[0]].task) != _longest(examples[place].task)):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
