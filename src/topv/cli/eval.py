"""Measure what pruning costs in accuracy: the bundled tasks under every method, at equal savings of visual FLOPs.

For each wanted reduction every method gets the budget that removes that share of visual FLOPs (for VTW, the
layer). All answer the same questions, greedily, and are compared with the unpruned model question by question."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .options import add_model_options, check_plot, check_writable, positive_int

if TYPE_CHECKING:
    from ..evaluate import Answer, AnswerStore, Configuration, Example
    from ..methods import Method
    from ..scenes import View

EPILOG = """\
examples:
  topv eval --questions 50                                      a quick look
  topv eval --out results.md --json results.json                the whole comparison
  topv eval --work runs/eval --out results.md                   the same, to be killed and run again at will
  accelerate launch --multi_gpu --num_processes 2 -m topv eval --work runs/eval      shared by two processes (the
                                                                flag also serves CPUs)
  topv eval --model tiled --frames 4 --methods topv,topv:budget=image,topv:budget=sample,framedifference
  topv eval --methods topv,topv:importance=potential,random --reductions 0.5 --tasks ocr,counting

what the numbers mean:
  accuracy          exact match; for caption and description the F1 over words; 95 % interval in brackets
  mean - unpruned   difference of the mean over tasks, paired by question, 95 % bootstrap interval over pictures:
                    an interval that excludes 0 is a real loss or gain
  foreground kept   share of the patches that show something to ask about; choices blind to the picture keep as
                    much of them as of everything, their keep ratio, on average over such choices"""

_METHODS = "fastv,vtw,random,uniform,meancost,topv"


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
_CLIPS = """\
Every frame is an image of the prompt. Half of the objects move; what does not is the same to the pixel in every frame.
"glimpse" asks about an object that one frame alone shows, the other tasks about what all frames show. `budget=grid`
keeps the same share of every grid, `budget=image` of every frame, `budget=sample` of the whole clip."""
_FOREGROUND = """\
### Foreground kept

Share of the visual tokens that show something to ask about which each method keeps, over {scenes} pictures. Methods
blind to the picture keep their keep ratio of them on average over such methods; one that keeps the same cells of every
picture keeps more or less of them, as these lie.

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `topv eval`."""
    parser.add_argument(
        "--methods", default=_METHODS, help=f"comma-separated, with settings after a colon ({_METHODS})"
    )
    parser.add_argument(
        "--reductions",
        type=_shares,
        default=[0.25, 0.5, 0.75],
        metavar="SHARES",
        help="shares of visual FLOPs to remove, comma-separated (0.25,0.5,0.75)",
    )
    parser.add_argument("--tasks", default=None, help="comma-separated; all bundled tasks by default")
    parser.add_argument(
        "--frames",
        type=positive_int,
        default=1,
        metavar="N",
        help="ask about clips of N frames, each an image of the prompt, rather than about pictures",
    )
    parser.add_argument("--split", default="test", choices=("validation", "test"), help="scenes to ask about (test)")
    parser.add_argument("--questions", type=positive_int, default=200, metavar="N", help="questions per task (200)")
    parser.add_argument("--batch-size", type=positive_int, default=32, metavar="N", help="questions per batch (32)")
    parser.add_argument("--no-foreground", action="store_true", help="leave out the foreground table")
    parser.add_argument(
        "--work", type=Path, metavar="FOLDER", help="keep answers there, and go on with those that it holds"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables there, as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every answer there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw accuracy against visual FLOPs there")
    add_model_options(parser, answers=False)


def _shares(text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share < 1 for share in shares):
        raise argparse.ArgumentTypeError(f"{text!r}: expected shares between 0 and 1, such as 0.25,0.5")
    if len({f"{share:.0%}" for share in shares}) < len(shares):
        raise argparse.ArgumentTypeError(f"{text!r}: expected shares that differ by a percent or more")
    return sorted(shares)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the tables, and write the files that were asked for."""
    for path, option in ((args.out, "--out"), (args.json, "--json")):
        if path is not None:
            check_writable(path, option)
    if args.plot is not None:
        check_plot(args.plot)
    from ..ask.method_spec import parse_methods
    from ..methods import VTW
    from .console import output_console, print_line, progress, quiet_transformers

    quiet_transformers()
    specs = parse_methods([args.methods])
    methods = [(_label(spec.label), spec.method) for spec in specs if spec.method is not None]
    if not methods or len({label for label, _ in methods}) < len(methods):
        raise InputError(
            f"--methods {args.methods!r}: expected at least one method beside the unpruned model, and each once, since "
            "--reductions sets their budgets."
        )
    for spec in specs:
        if isinstance(spec.method, VTW) and spec.method.layer is not None:
            raise InputError(f"--methods {spec.label}: --reductions sets the layer of vtw. Leave it out.")
    from ..evaluate import (
        CLIP_TASKS,
        TASKS,
        Shard,
        at_equal_reductions,
        bundled_clips,
        bundled_examples,
        evaluate,
        grids_of,
        provenance,
        view_of,
    )
    from ..loading import load_model

    shard = Shard.of_environment()
    if shard.processes > 1 and args.work is None:
        raise InputError(f"{shard.processes} processes share this evaluation through a folder: give it with --work.")
    with progress("loading the model"):
        model, processor = load_model(args.model, dtype=args.dtype, device=args.device)
    known = TASKS if args.frames == 1 else CLIP_TASKS
    tasks = known if args.tasks is None else tuple(dict.fromkeys(args.tasks.split(",")))
    view = view_of(model, processor)
    geometry = [] if view is None else [view.geometry]
    with progress("drawing the questions"):
        if args.frames == 1:
            examples = bundled_examples(args.split, args.questions, tasks, *geometry)
        else:
            examples = bundled_clips(args.split, args.questions, args.frames, tasks, *geometry)
    flat = [example for task in tasks for example in examples[task]]
    grids = grids_of(model, processor, flat[0])
    configurations = at_equal_reductions(model, methods, args.reductions, grids=grids)
    store = _store(args, model, configurations, tasks=tasks, questions=len(flat), process=shard.process)

    with progress("answering", total=len(flat) * len(configurations)) as advance:
        found = evaluate(
            model,
            processor,
            flat,
            configurations,
            batch_size=args.batch_size,
            store=store,
            shard=shard,
            advance=lambda _, questions: advance(questions),
        )
    if store is not None:
        store.close()
    if found is None:
        return 0
    answers = {key: {task: [a for a in every if a.task == task] for task in tasks} for key, every in found.items()}
    head = [
        "# Accuracy on the bundled tasks" if args.frames == 1 else f"# Accuracy on clips of {args.frames} frames",
        provenance(args.command_line, model, split=args.split, questions=len(flat)),
    ]
    sections = [*head, *_accuracy(configurations, answers)]
    # Before the foreground, which takes a while: what was answered is not to be lost.
    _write(args, sections, configurations, answers)
    if args.frames > 1:
        sections.append(_CLIPS)
    elif view is not None and len(view.places) == sum(grids):
        if not args.no_foreground:
            sections.append(_foreground(args, model, processor, methods, flat, view))
    else:
        sections.append("No foreground table: what each visual token shows is known for the bundled models alone.")
    _write(args, sections, configurations, answers)
    print_line(output_console(), "\n\n".join(sections) + "\n")
    return 0


def _store(
    args: argparse.Namespace,
    model: Any,
    configurations: Sequence[Configuration],
    *,
    tasks: Sequence[str],
    questions: int,
    process: int,
) -> AnswerStore | None:
    """The folder of `--work`, for this setup."""
    if args.work is None:
        return None
    from ..evaluate import AnswerStore, setup_of

    setup = setup_of(
        model,
        configurations,
        name=args.model,
        split=args.split,
        tasks=tasks,
        questions=questions,
        batch_size=args.batch_size,
        frames=args.frames,
    )
    return AnswerStore(args.work, setup, process)


def _accuracy(
    configurations: Sequence[Configuration], answers: Mapping[str, Mapping[str, Sequence[Answer]]]
) -> list[str]:
    from ..evaluate import accuracy_tables, difference_table, size_table

    sections = [f"{_READING}\n\n{accuracy_tables(configurations, answers)}"]
    labels = list(dict.fromkeys(c.label for c in configurations if c.method is not None))
    own = [label for label in labels if label.split()[0] in _OWN]
    for label in own if len(labels) > 1 else []:
        sections.append(_DIFFERENCES.format(label=label) + difference_table(configurations, answers, label))
    sections.append("### By size of what is asked about\n\n" + size_table(configurations, answers))
    return sections


def _foreground(
    args: argparse.Namespace,
    model: Any,
    processor: Any,
    methods: Sequence[tuple[str, Method]],
    examples: Sequence[Example],
    view: View,
) -> str:
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


def _write(
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


def _label(label: str) -> str:
    """A method's label without the budget, which each reduction sets anew."""
    from ..methods.base import BUDGETS

    budgets = tuple(f"{name}=" for name in BUDGETS)
    return " ".join(part for part in label.split() if not part.startswith(budgets))


def _json(command: Sequence[str], made_with: str, answers: Mapping[str, Mapping[str, Sequence[Answer]]]) -> str:
    records = {key: {task: [a.to_dict() for a in found] for task, found in by.items()} for key, by in answers.items()}
    return json.dumps({"command": command, "made_with": made_with.splitlines(), "answers": records}, indent=1) + "\n"
