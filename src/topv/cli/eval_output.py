"""What `topv eval` prints and writes: tables, every answer, a plot."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..evaluate import Answer, Configuration, Example
    from ..methods import Method
    from ..scenes import View

__all__ = ["CLIPS", "accuracy_sections", "blind_section", "foreground_section", "write_output"]

_OWN = ("topv", "framedifference")
"""Methods that are compared with every other, pair by pair."""
_KEEPS = (0.5, 0.25)
# Enough to tell shares of the foreground by two points; the time goes into the questions.
_SCENES = 160
_READING = """\
Accuracy is exact match, in %; for caption and description the F1 over words. Brackets hold 95 % intervals, by
resampling pictures; where all answers are right, or all wrong, Wilson's. The last column is the paired difference of
the mean over tasks to the unpruned model: an interval that holds 0 shows no difference."""
_DIFFERENCES = """\
### {label} against the others

Paired difference of the mean over tasks, in points, with 95 % intervals; bold where the interval excludes 0.

"""
CLIPS = """\
Every frame is an image of the prompt. Half of the objects move; what does not is the same to the pixel in every frame.
"glimpse" asks about an object that one frame alone shows, the other tasks about what all frames show. `budget=grid`
keeps the same share of every grid, `budget=image` of every frame, `budget=sample` of the whole clip."""
_BLIND = """\
### With the picture, and with another one

The unpruned model. Accuracy is exact match, in %; for caption and description the F1 over words. Image-blind: the same
questions about the next scene's picture, which show what questions alone give away. Brackets hold 95 % intervals, by
resampling pictures; where all answers are right, or all wrong, Wilson's.

"""
_FOREGROUND = """\
### Foreground kept

Share of the visual tokens that show something to ask about which each method keeps, over {scenes} pictures. Methods
blind to the picture keep their keep ratio of them on average over such methods; one that keeps the same cells of every
picture keeps more or less of them, as these lie.

"""


def accuracy_sections(
    configurations: Sequence[Configuration], answers: Mapping[str, Mapping[str, Sequence[Answer]]]
) -> list[str]:
    """Accuracy at each reduction, differences between methods, and accuracy by size; nothing where there are none."""
    from ..evaluate import accuracy_tables, difference_table, size_table

    labels = list(dict.fromkeys(c.label for c in configurations if c.method is not None))
    if not labels:
        return []
    sections = [f"{_READING}\n\n{accuracy_tables(configurations, answers)}"]
    own = [label for label in labels if label.split()[0] in _OWN]
    for label in own if len(labels) > 1 else []:
        sections.append(_DIFFERENCES.format(label=label) + difference_table(configurations, answers, label))
    sections.append("### By size of what is asked about\n\n" + size_table(configurations, answers))
    return sections


def blind_section(answers: Mapping[str, Mapping[str, Sequence[Answer]]]) -> str:
    """What the picture is worth to the unpruned model, by task."""
    from ..evaluate import IMAGE_BLIND, blind_table

    return _BLIND + blind_table(answers["unpruned"], answers[IMAGE_BLIND.key])


def foreground_section(
    args: argparse.Namespace,
    model: Any,
    processor: Any,
    methods: Sequence[tuple[str, Method]],
    examples: Sequence[Example],
    view: View,
) -> str:
    """The share of the foreground that each method keeps, measured by prefills of one question a scene."""
    from ..evaluate import foreground_shares, foreground_table, readings
    from ..methods import VTW
    from ..methods.staged import StagedMethod
    from .console import progress

    # By scene rather than by task, or most of them would be those of the first task.
    scenes = {example.scene: example for example in examples}
    one_each = [scenes[number] for number in sorted(scenes)[:_SCENES]]
    # These keep no one share of the tokens.
    ranked = [(label, method) for label, method in readings(methods) if not isinstance(method, VTW | StagedMethod)]
    shares: dict[str, dict[float, tuple[list[float], list[int]]]] = {}
    with progress("foreground kept", total=len(ranked) * len(_KEEPS) * len(one_each)) as advance:
        for label, method in ranked:
            for keep in _KEEPS:
                found = foreground_shares(
                    model,
                    processor,
                    one_each,
                    method.with_budget(keep=keep),
                    split=args.split,
                    view=view,
                    batch_size=args.batch_size,
                    advance=advance,
                )
                shares.setdefault(label, {})[keep] = found, [example.scene for example in one_each]
    return _FOREGROUND.format(scenes=len(one_each)) + foreground_table(shares)


def write_output(
    args: argparse.Namespace,
    sections: Sequence[str],
    configurations: Sequence[Configuration],
    answers: Mapping[str, Mapping[str, Sequence[Answer]]],
) -> None:
    """The files that were asked for."""
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(_json(args.command_line, sections[1], answers), encoding="utf-8")
    if args.plot is not None:
        from ..evaluate import accuracy_lines
        from ..report.accuracy_plot import plot_accuracy

        args.plot.parent.mkdir(parents=True, exist_ok=True)
        lines, unpruned = accuracy_lines(configurations, answers)
        questions = sum(map(len, next(iter(answers.values())).values()))
        plot_accuracy(lines, unpruned, args.plot, title=f"{args.model}: {questions} questions, {args.split} split")


def _json(command: Sequence[str], made_with: str, answers: Mapping[str, Mapping[str, Sequence[Answer]]]) -> str:
    records = {key: {task: [a.to_dict() for a in found] for task, found in by.items()} for key, by in answers.items()}
    return json.dumps({"command": command, "made_with": made_with.splitlines(), "answers": records}, indent=1) + "\n"
