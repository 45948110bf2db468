"""Evaluation results as Markdown: accuracy per task at equal savings, and the share of foreground kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..methods.staged import StagedMethod
from ..statistics import Interval, macro_interval, task_interval
from .configurations import Configuration
from .runner import Answer

__all__ = [
    "Foreground",
    "ablation_bars",
    "ablation_table",
    "accuracy_lines",
    "accuracy_tables",
    "blind_table",
    "difference_table",
    "foreground_table",
    "markdown",
    "size_table",
]

_SIZES = ("small", "medium", "large")

Foreground = Mapping[str, Mapping[float, tuple[Sequence[float], Sequence[int]]]]
"""Method label to keep ratio to the shares of foreground kept and the scene of each."""


def accuracy_tables(
    configurations: Sequence[Configuration], answers: Mapping[str, Mapping[str, Sequence[Answer]]]
) -> str:
    """One table for each reduction of visual FLOPs, with the unpruned model on top of each.

    Args:
        configurations: what was run; the one without a method is the unpruned model.
        answers: for each configuration's key and each task, the answers in one order.
    """
    unpruned = next(c for c in configurations if c.method is None)
    base = answers[unpruned.key]
    tables = []
    for target in sorted({c.target for c in configurations if c.target is not None}):
        rows = [_row(unpruned.label, base, base, None)]
        rows += [_row(c.label, answers[c.key], base, c) for c in configurations if c.target == target]
        header = ["method", "visual tokens", "visual FLOPs", *base, "mean", "mean - unpruned"]
        tables.append(f"### {target:.0%} of visual FLOPs removed\n\n{markdown(header, rows)}")
    return "\n\n".join(tables)


def difference_table(
    configurations: Sequence[Configuration], answers: Mapping[str, Mapping[str, Sequence[Answer]]], label: str
) -> str:
    """The method `label` against every other at each reduction: paired difference of the mean over tasks, 95 %."""
    targets = sorted({c.target for c in configurations if c.target is not None})
    own = {c.target: answers[c.key] for c in configurations if c.label == label}
    others = dict.fromkeys(c.label for c in configurations if c.label != label and c.method is not None)
    rows = []
    for other in others:
        rivals = {c.target: answers[c.key] for c in configurations if c.label == other}
        cells = [_verdict(macro_interval(_paired(own[target], rivals[target]))) for target in targets]
        rows.append([other, *cells])
    return markdown([f"{label} minus", *(f"at {target:.0%}" for target in targets)], rows)


def size_table(configurations: Sequence[Configuration], answers: Mapping[str, Mapping[str, Sequence[Answer]]]) -> str:
    """Accuracy by the size of the thing asked about, over all tasks that have one, with 95 % intervals."""
    rows, header = [], ["method", "visual FLOPs removed", *_SIZES]
    for configuration in configurations:
        every = [a for task in answers[configuration.key].values() for a in task]
        cells = []
        for size in _SIZES:
            found = [a for a in every if a.target_size == size]
            cells.append(f"{_plain(_interval(found))} ({len(found)})" if found else "")
        rows.append(
            [configuration.label, "" if configuration.target is None else f"{configuration.target:.0%}", *cells]
        )
    return markdown(header, rows)


def blind_table(answers: Mapping[str, Sequence[Answer]], blind: Mapping[str, Sequence[Answer]]) -> str:
    """Accuracy of one model by task, with its picture and with another one, and what the picture is worth.

    Args:
        answers: for each task the answers.
        blind: the answers to the same questions about another picture.
    """
    rows = []
    for task, difference in _paired(answers, blind).items():
        sizes = []
        for size in _SIZES:
            scores = [answer.score for answer in answers[task] if answer.target_size == size]
            if scores:
                sizes.append(f"{size} {100 * sum(scores) / len(scores):.0f} ({len(scores)})")
        cells = [_plain(_interval(found[task])) for found in (answers, blind)]
        gain = _plain(macro_interval({task: difference}))
        rows.append([task, str(len(answers[task])), *cells, gain, ", ".join(sizes)])
    header = [
        "task",
        "questions",
        "accuracy, %",
        "image-blind, %",
        "gain, points",
        "by target size (questions)",
    ]
    return markdown(header, rows)


def ablation_table(
    configurations: Sequence[Configuration],
    answers: Mapping[str, Mapping[str, Sequence[Answer]]],
    shares: Mapping[str, Sequence[float]],
    scenes: Sequence[int],
    base: str,
) -> str:
    """The variants of a sweep: accuracy by task, its mean, the paired difference to the base, foreground kept.

    Args:
        configurations: the unpruned model and the variants, at one reduction.
        answers: for each configuration's key and each task, the answers in one order.
        shares: for each variant's label the shares of foreground kept, where they are known.
        scenes: the scene of each share.
        base: label of the variant that differences are taken to.
    """
    middle = next(c for c in configurations if c.label == base)
    against = answers[middle.key]
    header = ["variant", *against, "mean", f"mean - {base}", *(["foreground kept"] if shares else [])]
    rows = []
    for configuration in configurations:
        found = answers[configuration.key]
        cells = [f"{100 * _interval(task)[1]:.1f}" for task in found.values()]
        difference = "" if configuration is middle else _verdict(macro_interval(_paired(found, against)))
        row = [configuration.label, *cells, _plain(_over_tasks(found)), difference]
        if shares:
            known = shares.get(configuration.label)
            row.append("" if known is None else _plain(macro_interval({"": (known, scenes)})))
        rows.append(row)
    return markdown(header, rows)


def ablation_bars(
    configurations: Sequence[Configuration], answers: Mapping[str, Mapping[str, Sequence[Answer]]]
) -> tuple[dict[str, Interval], float]:
    """What a plot of a sweep shows: for each variant the interval of its mean, and the unpruned model's mean."""
    intervals = {c.label: _over_tasks(answers[c.key]) for c in configurations}
    unpruned = next(c.label for c in configurations if c.method is None)
    return {label: interval for label, interval in intervals.items() if label != unpruned}, intervals[unpruned][1]


def _over_tasks(answers: Mapping[str, Sequence[Answer]]) -> Interval:
    return macro_interval(
        {task: ([a.score for a in found], [a.scene for a in found]) for task, found in answers.items()}
    )


def _paired(
    answers: Mapping[str, Sequence[Answer]], base: Mapping[str, Sequence[Answer]]
) -> dict[str, tuple[list[float], list[int]]]:
    """For each task the differences in score, question by question, and the scenes."""
    return {
        task: (
            [a.score - b.score for a, b in zip(answers[task], base[task], strict=True)],
            [a.scene for a in answers[task]],
        )
        for task in answers
    }


def _verdict(interval: Interval) -> str:
    """A difference, in bold where its interval excludes 0."""
    shown = _signed(interval)
    return f"**{shown}**" if interval[0] > 0 or interval[2] < 0 else shown


def _row(
    label: str,
    answers: Mapping[str, Sequence[Answer]],
    base: Mapping[str, Sequence[Answer]],
    configuration: Configuration | None,
) -> list[str]:
    every = [answer for task in answers.values() for answer in task]
    if configuration is None:
        budget, saved, difference = str(every[0].visual_tokens), "", ""
    else:
        kept = f"{every[0].visual_tokens} -> {every[0].kept_tokens}"
        method = configuration.method
        layer = None if method is None else method.layer
        if isinstance(method, StagedMethod):
            kept, layer = f"{kept} over several layers", None
        budget = kept if layer is None else f"{kept} from layer {layer}" if layer else f"{kept} before the decoder"
        saved = f"-{100 * sum(a.visual_flops_reduction for a in every) / len(every):.1f} %"
        difference = _signed(macro_interval(_paired(answers, base)))
    cells = [_plain(_interval(answers[task])) for task in answers]
    mean = _over_tasks(answers)
    return [label, budget, saved, *cells, _plain(mean), difference]


def accuracy_lines(
    configurations: Sequence[Configuration], answers: Mapping[str, Mapping[str, Sequence[Answer]]]
) -> tuple[dict[str, list[tuple[float, float, float, float]]], float]:
    """What a plot of accuracy against FLOPs shows: for each method points of (share removed, lower end, mean, upper
    end), and the unpruned model's mean."""
    lines: dict[str, list[tuple[float, float, float, float]]] = {}
    unpruned = 0.0
    for configuration in configurations:
        found = answers[configuration.key]
        interval = _over_tasks(found)
        if configuration.method is None:
            unpruned = interval[1]
            continue
        every = [answer for task in found.values() for answer in task]
        removed = sum(answer.visual_flops_reduction for answer in every) / len(every)
        lines.setdefault(configuration.label, []).append((removed, *interval))
    return lines, unpruned


def foreground_table(foreground: Foreground) -> str:
    """For each method and keep ratio the share of foreground patches kept, with a 95 % interval over scenes."""
    ratios = sorted({ratio for shares in foreground.values() for ratio in shares}, reverse=True)
    rows = []
    for label, shares in foreground.items():
        cells = []
        for ratio in ratios:
            interval = macro_interval({label: shares[ratio]})
            verdict = "above" if interval[0] > ratio else "below" if interval[2] < ratio else "not told apart"
            cells.append(f"{_plain(interval)} {verdict}")
        rows.append([label, *cells])
    return markdown(["method", *(f"keep {ratio:g}: foreground kept, %" for ratio in ratios)], rows)


def _interval(answers: Sequence[Answer]) -> Interval:
    return task_interval([a.score for a in answers], [a.scene for a in answers])


def _plain(interval: Interval) -> str:
    low, mean, high = (100 * value for value in interval)
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def _signed(interval: Interval) -> str:
    low, mean, high = (100 * value for value in interval)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
