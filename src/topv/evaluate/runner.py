"""Asking every question under every method, and recording what was answered and what was kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..methods import Method
from ..mini.statistics import answer_score
from ..runtime import Pruning, prune
from .examples import Example, foreground_patches

__all__ = ["Answer", "answer_examples", "foreground_shares"]

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
        visual_flops_reduction: share of visual FLOPs not spent in the prefill.
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


def answer_examples(
    model: Any,
    processor: Any,
    examples: Sequence[Example],
    method: Method | None,
    *,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda questions: None,
) -> list[Answer]:
    """Greedy answers to `examples`, in their order.

    Args:
        model: the vision-language model, with nothing attached.
        processor: its processor, with a chat template.
        examples: the questions.
        method: how to prune, or None for the unpruned model.
        batch_size: questions per batch; questions of similar length share one.
        advance: called with the number of questions just answered.
    """
    order = sorted(range(len(examples)), key=lambda i: (_longest(examples[i].task), len(examples[i].prompt)))
    answers: dict[int, Answer] = {}
    with _pruned(model, method) as pruning:
        for batch in _batches(order, examples, batch_size):
            chosen = [examples[i] for i in batch]
            inputs = _inputs(processor, chosen).to(model.device)
            with torch.inference_mode():
                ids = model.generate(**inputs, max_new_tokens=_longest(chosen[0].task), do_sample=False)
            texts = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            visual, kept, reduction = _kept(pruning, inputs, model)
            for place, example, text in zip(batch, chosen, texts, strict=True):
                answers[place] = Answer(
                    task=example.task,
                    scene=example.scene,
                    prompt=example.prompt,
                    expected=example.answer,
                    answer=text.strip(),
                    score=answer_score(example.task, text.strip(), example.answer),
                    target_size=example.target_size,
                    visual_tokens=visual // len(batch),
                    kept_tokens=kept // len(batch),
                    visual_flops_reduction=reduction,
                )
            advance(len(batch))
    return [answers[i] for i in range(len(examples))]


def foreground_shares(
    model: Any,
    processor: Any,
    examples: Sequence[Example],
    method: Method,
    *,
    split: str,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda questions: None,
) -> list[float]:
    """For each example the share of its scene's foreground patches that `method` keeps, by a prefill alone."""
    shares: list[float] = []
    with prune(model, method) as pruning:
        for first in range(0, len(examples), batch_size):
            chosen = examples[first : first + batch_size]
            inputs = _inputs(processor, chosen).to(model.device)
            with torch.inference_mode():
                model(**inputs, logits_to_keep=1)
            placeholders = (inputs["input_ids"] == model.config.image_token_id).cpu()
            for row, example, kept in zip(placeholders, chosen, pruning.kept_positions, strict=True):
                foreground = foreground_patches(split, example.scene)
                start = int(row.long().argmax())
                shares.append(float(foreground[(kept - start).numpy()].sum() / foreground.sum()))
            advance(len(chosen))
    return shares


@contextlib.contextmanager
def _pruned(model: Any, method: Method | None) -> Iterator[Pruning | None]:
    if method is None:
        yield None
        return
    with prune(model, method) as pruning:
        yield pruning


def _kept(pruning: Pruning | None, inputs: Any, model: Any) -> tuple[int, int, float]:
    if pruning is None:
        visual = int((inputs["input_ids"] == model.config.image_token_id).sum())
        return visual, visual, 0.0
    report = pruning.report()
    return report.visual_tokens, report.kept_tokens, report.visual_flops_reduction


def _inputs(processor: Any, examples: Sequence[Example]) -> Any:
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": example.prompt}]}],
            add_generation_prompt=True,
        )
        for example in examples
    ]
    return processor(images=[example.image for example in examples], text=texts, padding=True, return_tensors="pt")


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
