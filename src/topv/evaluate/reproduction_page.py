"""A recipe's outcome as Markdown: what ran, what was published, what was measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from ..statistics import macro_interval
from .configurations import Configuration
from .recipe import Arm, Figure, Recipe
from .runner import Answer
from .tables import accuracy_tables, markdown

__all__ = ["bundled_sections", "checkpoint_section", "dialogue_section", "heat_maps", "published_section"]

_ANSWER = "answer"
"""The quantity of a figure that is what a model wrote."""

HeatMap = tuple[str, str, list[float], list[float], dict[tuple[float, float], Arm]]
"""The settings by name that a heat map's rows and columns stand for, their values, and the arm of each cell."""


def published_section(recipe: Recipe, figures: Sequence[Figure]) -> str:
    """The published figures as a table, each with its place in the paper."""
    parts = ["## Published"]
    said = [f for f in figures if f.quantity == _ANSWER]
    if said:
        parts.append(_conversation(recipe, [(f"{f.method} ({f.model}, {f.where})", f.value) for f in said]))
    rows = [[f.model, f.method, f.quantity, _number(f.value), f.where] for f in figures if f.quantity != _ANSWER]
    if rows:
        parts.append(markdown(["model", "method", "what", "figure", "where"], rows))
    return "\n\n".join(parts if figures else [*parts, "No figures at hand; see above."])


def checkpoint_section(
    recipe: Recipe, model: str, scores: Mapping[str, Mapping[str, float]], figures: Sequence[Figure]
) -> str:
    """The scores of one checkpoint, with the published figure in brackets behind each that has one.

    Args:
        recipe: the recipe.
        model: the checkpoint's name.
        scores: for each arm's label the scores by benchmark, in lmms-eval's units.
        figures: the published figures.
    """
    published = {(f.method, f.quantity): _number(f.value) for f in figures if f.model == model}
    columns = list(dict.fromkeys(name for found in scores.values() for name in found))
    rows = []
    for label, found in scores.items():
        cells = [_number(found[name]) if name in found else "" for name in columns]
        beside = [published.get((label, name)) for name in columns]
        rows.append([label, *(c if b is None else f"{c} ({b})" for c, b in zip(cells, beside, strict=True))])
    text = "Scores as lmms-eval reports them; in brackets the published ones.\n\n" + markdown(
        ["method", *columns], rows
    )
    for chart, benchmark in itertools.product(heat_maps(recipe), columns):
        of_arm = {label: _number(found.get(benchmark, math.nan)) for label, found in scores.items()}
        text += f"\n\n{benchmark}:\n\n{_heat_table(chart, of_arm)}"
    return f"## Measured: {model}\n\n{text}"


def bundled_sections(
    recipe: Recipe,
    configurations: Sequence[Configuration],
    answers: Mapping[str, Mapping[str, Sequence[Answer]]],
) -> list[str]:
    """What the bundled model did: accuracy at equal savings, heat maps, or the answers of a dialogue."""
    if recipe.kind == "dialogue":
        return [_bundled_dialogue(configurations, answers)]
    means = {c.label: f"{100 * mean_accuracy(answers[c.key]):.1f}" for c in configurations}
    sections = [accuracy_tables(configurations, answers)]
    sections += [
        f"### {chart[0]} against {chart[1]}\n\nAccuracy in %, mean over tasks.\n\n" + _heat_table(chart, means)
        for chart in heat_maps(recipe)
    ]
    return sections


def dialogue_section(recipe: Recipe, model: str, answers: Mapping[str, str]) -> str:
    """What a checkpoint answered, by arm's label."""
    return f"## Measured: {model}\n\n" + _conversation(recipe, list(answers.items()))


def heat_maps(recipe: Recipe) -> list[HeatMap]:
    """The heat maps that a recipe's arms make up."""
    charts: dict[tuple[str, str], dict[tuple[float, float], Arm]] = {}
    for arm in recipe.arms:
        if arm.cell is not None:
            (row, y), (column, x) = arm.cell.items()
            charts.setdefault((row, column), {})[y, x] = arm
    return [
        (*names, sorted({y for y, _ in cells}), sorted({x for _, x in cells}), cells) for names, cells in charts.items()
    ]


def mean_accuracy(answers: Mapping[str, Sequence[Answer]]) -> float:
    """The mean over tasks of each task's mean score, in [0, 1]."""
    tasks = {task: ([a.score for a in found], [a.scene for a in found]) for task, found in answers.items()}
    return macro_interval(tasks)[1]


def _heat_table(chart: HeatMap, cells: Mapping[str, str]) -> str:
    """A heat map as a table, out of a text for each arm's label."""
    row, column, ys, xs, arms = chart
    rows = [[f"{y:g}", *(cells[arms[y, x].label] for x in xs)] for y in ys]
    return markdown([f"{row} \\ {column}", *(f"{x:g}" for x in xs)], rows)


def _bundled_dialogue(
    configurations: Sequence[Configuration], answers: Mapping[str, Mapping[str, Sequence[Answer]]]
) -> str:
    """Question by question, what was expected and what each configuration answered."""
    lines = []
    for task, first in answers[configurations[0].key].items():
        for number, asked in enumerate(first):
            lines += [f"**{asked.prompt}** (built-in scene {asked.scene})", "", f"- expected: {asked.expected}"]
            lines += [f"- {c.label}: {answers[c.key][task][number].answer}" for c in configurations]
            lines.append("")
    return "\n".join(lines).rstrip()


def _conversation(recipe: Recipe, answers: Sequence[tuple[str, object]]) -> str:
    return "\n".join([f"**{recipe.prompt}**", "", *(f"- {label}: {answer}" for label, answer in answers)])


def _number(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
