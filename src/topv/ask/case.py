"""Running every method on one image and prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..answering import Answerer
from ..errors import LayoutError
from ..layout import Grid, VisualLayout
from ..measure import GenerationTiming, PrefillProbe, time_generation
from ..models import family_of
from ..report import Case, MethodResult, seen_image
from ..runtime import Pruning
from .method_spec import UNPRUNED, MethodSpec
from .prompts import build_inputs
from .samples import Subject

__all__ = [
    "Asked",
    "GridMarks",
    "TimingPlan",
    "answer",
    "answer_case",
    "case_of",
    "graded",
    "prepare",
    "time_case",
]


@dataclass(frozen=True)
class TimingPlan:
    """How times are measured: rounds, rounds to warm up, and greedy steps after the prefill."""

    repetitions: int
    warmup: int
    decode_steps: int

    def runs(self, specs: Sequence[MethodSpec]) -> int:
        """Number of timed runs for one case."""
        candidates = {UNPRUNED, *(spec.label for spec in specs)}
        return (self.repetitions + self.warmup) * len(candidates)


def answer_case(
    model: nn.Module,
    processor: Any,
    subject: Subject,
    specs: Sequence[MethodSpec],
    *,
    max_new_tokens: int,
    check_answers: bool,
    on_answer: Callable[[], object] = lambda: None,
) -> Case:
    """Generate the answer under every method, and record what was kept.

    Args:
        model: the vision-language model.
        processor: its processor.
        subject: the image and the question.
        specs: the methods.
        max_new_tokens: longest answer.
        check_answers: whether answers are to be held against the expected one, word for word.
        on_answer: called after each answer, for progress bars.

    Returns:
        The case, without times.
    """
    asked = prepare(model, processor, subject)
    results = []
    for spec in specs:
        result, _ = answer(model, processor, asked, spec, max_new_tokens=max_new_tokens)
        results.append(graded(result, subject) if check_answers else result)
        on_answer()
    return case_of(asked, processor, results)


@dataclass(frozen=True)
class Asked:
    """A question as the model gets it.

    Attributes:
        subject: the image and the question.
        inputs: what the processor made of them, on the model's device.
        layout: where the visual tokens are.
    """

    subject: Subject
    inputs: Any
    layout: VisualLayout


@dataclass(frozen=True)
class GridMarks:
    """What pruning did to one grid.

    Attributes:
        kept: cells of the kept tokens, ascending; recovered ones included.
        recovered: those of them that were recovered.
        importance: the tokens' importance in raster order, or None.
    """

    kept: tuple[int, ...]
    recovered: tuple[int, ...] = ()
    importance: tuple[float, ...] | None = None


def prepare(model: Any, processor: Any, subject: Subject) -> Asked:
    """The model's inputs for a question.

    Raises:
        InputError: as `build_inputs`.
        LayoutError: when the prompt holds no visual tokens.
    """
    inputs = build_inputs(model, processor, subject.image, subject.prompt)
    family = family_of(model)
    layout = family.layout(family.placeholders(inputs["input_ids"]).cpu(), inputs)
    if not layout.grids:
        raise LayoutError(
            f"the processor made a prompt without visual tokens out of {subject.image_name}, so there is nothing to "
            "compare. Check that its chat template places the image."
        )
    return Asked(subject, inputs, layout)


def answer(
    model: Any, processor: Any, asked: Asked, spec: MethodSpec, *, max_new_tokens: int, streamer: Any = None
) -> tuple[MethodResult, tuple[GridMarks, ...]]:
    """Generate the answer under one method.

    Args:
        model: the vision-language model.
        processor: its processor.
        asked: the question.
        spec: the method.
        max_new_tokens: longest answer.
        streamer: what is told each token, as `generate` takes it.

    Returns:
        The result, whose cells are those of the first grid, and the cells of every grid.
    """
    layout = asked.layout
    with Answerer(model, processor, spec.method) as answerer, PrefillProbe(model) as probe:
        pruning = answerer.pruning
        (text,) = answerer.answer(asked.inputs, max_new_tokens=max_new_tokens, streamer=streamer)
    kv_bytes = probe.kv_bytes or 0
    marks = tuple(GridMarks(tuple(range(grid.tokens))) for grid in layout.grids)
    result = MethodResult(
        label=spec.label,
        settings=spec.settings,
        answer=text,
        correct=None,
        visual_tokens=layout.visual_tokens,
        kept_tokens=layout.visual_tokens,
        visual_flops_reduction=0.0,
        kv_bytes=kv_bytes,
        kv_bytes_unpruned=kv_bytes,
        kept=marks[0].kept,
    )
    if pruning is not None:
        report, marks = pruning.report(), _marks(pruning, layout)
        result = replace(
            result,
            kept_tokens=report.kept_tokens,
            visual_flops_reduction=report.visual_flops_reduction,
            kv_bytes_unpruned=report.kv_bytes_unpruned,
            kept=marks[0].kept,
            recovered=marks[0].recovered,
            importance=marks[0].importance,
        )
    return replace(result, foreground_kept=_foreground_kept(result.kept, layout.grids[0], asked.subject)), marks


def graded(result: MethodResult, subject: Subject) -> MethodResult:
    """The result held against the expected answer, word for word, where that is known."""
    if subject.expected is None:
        return result
    return replace(result, correct=_normal(result.answer) == _normal(subject.expected))


def case_of(asked: Asked, processor: Any, results: Sequence[MethodResult]) -> Case:
    """The case of a question and the results under every method, without times."""
    subject = asked.subject
    return Case(
        image_name=subject.image_name,
        prompt=subject.prompt,
        expected=subject.expected,
        seen=_seen(asked.inputs, processor, subject.image),
        grid=asked.layout.grids[0].rows_and_columns,
        prompt_tokens=asked.inputs["input_ids"].shape[1],
        results=tuple(results),
    )


def time_case(
    model: nn.Module,
    processor: Any,
    subject: Subject,
    case: Case,
    specs: Sequence[MethodSpec],
    plan: TimingPlan,
    on_run: Callable[[], object],
) -> Case:
    """The case with prefill and decode times of every method, measured in interleaved rounds."""
    timing = time_generation(
        model,
        build_inputs(model, processor, subject.image, subject.prompt),
        {spec.label: spec.method for spec in specs},
        baseline=UNPRUNED,
        decode_steps=plan.decode_steps,
        warmup=plan.warmup,
        repetitions=plan.repetitions,
        on_run=on_run,
    )
    return replace(case, results=tuple(_timed(result, timing) for result in case.results))


def _timed(result: MethodResult, timing: GenerationTiming) -> MethodResult:
    decode = None if timing.decode is None else timing.decode[result.label]
    return replace(result, prefill=timing.prefill[result.label], decode=decode)


def _marks(pruning: Pruning, layout: VisualLayout) -> tuple[GridMarks, ...]:
    kept, recovered = pruning.kept_positions[0], pruning.recovered_positions[0]
    importance = pruning.importance[0] if pruning.method.has_importance else None
    scores: list[tuple[float, ...] | None] = [None] * len(layout.grids)
    if importance is not None:
        scores = [tuple(part.tolist()) for part in importance.split([grid.tokens for grid in layout.grids])]
    return tuple(
        GridMarks(_cells(grid, kept), _cells(grid, recovered), score)
        for grid, score in zip(layout.grids, scores, strict=True)
    )


def _cells(grid: Grid, columns: torch.Tensor) -> tuple[int, ...]:
    """The cells of `grid` that hold these prompt columns."""
    cell = {column: index for index, column in enumerate(grid.columns.tolist())}
    return tuple(cell[column] for column in columns.tolist() if column in cell)


def _foreground_kept(kept: Sequence[int], grid: Grid, subject: Subject) -> float | None:
    foreground = subject.foreground
    if foreground is None or foreground.shape != grid.rows_and_columns or not foreground.any():
        return None
    return float(foreground.reshape(-1)[list(kept)].sum() / foreground.sum())


def _seen(inputs: Mapping[str, torch.Tensor], processor: Any, image: Image.Image) -> Image.Image:
    """The image as the model saw it; as it is where the model takes patches rather than an image."""
    pixels = inputs["pixel_values"]
    if pixels.ndim == 4 and pixels.shape[:2] == (1, 3):
        return seen_image(pixels[0], processor.image_processor)
    return image


def _normal(answer: str) -> str:
    return " ".join(answer.casefold().rstrip(". ").split())
