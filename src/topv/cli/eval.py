"""Measure what pruning costs in accuracy: the bundled tasks under every method, at equal savings of visual FLOPs.

For each wanted reduction every method gets the budget that removes that share of visual FLOPs (for VTW, the
layer). All answer the same questions, greedily, and are compared with the unpruned model question by question."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .methods_help import list_methods
from .options import add_model_options, check_plot, check_writable, positive_int

if TYPE_CHECKING:
    from ..evaluate import Answer, AnswerStore, Configuration, Example, Shard

EPILOG = f"""\
examples:
  topv eval --questions 50                                      a quick look
  topv eval --out results.md --json results.json                the whole comparison
  topv eval --work runs/eval --out results.md                   the same, to be killed and run again at will
  accelerate launch --multi_gpu --num_processes 2 -m topv eval --work runs/eval      shared by two processes (the
                                                                flag also serves CPUs)
  topv eval --model tiled --frames 4 --methods topv,topv:budget=image,topv:budget=sample,framedifference
  topv eval --methods topv,topv:importance=potential,random --reductions 0.5 --tasks ocr,counting
  topv eval --methods none --blind --model runs/mini-weights    a model by itself, and what it guesses without pictures

{list_methods()}

what the numbers mean:
  accuracy          exact match; for caption and description the F1 over words; 95 % interval in brackets
  mean - unpruned   difference of the mean over tasks, paired by question, 95 % bootstrap interval over pictures:
                    an interval that excludes 0 is a real loss or gain
  foreground kept   share of the patches that show something to ask about; choices blind to the picture keep as
                    much of them as of everything, their keep ratio, on average over such choices
  image-blind       the unpruned model's accuracy when each question comes with the next scene's picture (--blind):
                    what questions alone give away, and what is likely in any scene"""

_METHODS = "fastv,vtw,random,uniform,meancost,topv"


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
    parser.add_argument(
        "--blind", action="store_true", help="ask the unpruned model about another scene's picture as well"
    )
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
    if not (methods or args.blind) or len({label for label, _ in methods}) < len(methods):
        raise InputError(
            f"--methods {args.methods!r}: expected at least one method beside the unpruned model (or --blind), and "
            "each once, since --reductions sets their budgets."
        )
    if args.plot is not None and not methods:
        raise InputError("--plot draws methods, and there are none. Leave it out, or name some with --methods.")
    for spec in specs:
        if isinstance(spec.method, VTW) and spec.method.layer is not None:
            raise InputError(f"--methods {spec.label}: --reductions sets the layer of vtw. Leave it out.")
    from ..evaluate import (
        CLIP_TASKS,
        IMAGE_BLIND,
        TASKS,
        Shard,
        at_equal_reductions,
        blind_examples,
        bundled_clips,
        bundled_examples,
        grids_of,
        provenance,
        view_of,
    )
    from ..loading import load_model
    from ..scenes import SHIPPED
    from .eval_output import CLIPS, accuracy_sections, blind_section, foreground_section, write_output

    shard = Shard.of_environment()
    if shard.processes > 1 and args.work is None:
        raise InputError(f"{shard.processes} processes share this evaluation through a folder: give it with --work.")
    with progress("loading the model"):
        model, processor = load_model(args.model, dtype=args.dtype, device=args.device)
    known = TASKS if args.frames == 1 else CLIP_TASKS
    tasks = known if args.tasks is None else tuple(dict.fromkeys(args.tasks.split(",")))
    view = view_of(model, processor)
    geometry = SHIPPED if view is None else view.geometry
    with progress("drawing the questions"):
        if args.frames == 1:
            examples = bundled_examples(args.split, args.questions, tasks, geometry)
        else:
            examples = bundled_clips(args.split, args.questions, args.frames, tasks, geometry)
        flat = [example for task in tasks for example in examples[task]]
        blind = blind_examples(flat, args.split, geometry) if args.blind else []
    grids = grids_of(model, processor, flat[0])
    configurations = at_equal_reductions(model, methods, args.reductions, grids=grids)
    asked = [(flat, configurations), *([(blind, [IMAGE_BLIND])] if blind else [])]
    found = _answer(args, model, processor, asked, tasks=tasks, shard=shard)
    if found is None:
        return 0
    answers = {key: {task: [a for a in every if a.task == task] for task in tasks} for key, every in found.items()}
    head = [
        "# Accuracy on the bundled tasks" if args.frames == 1 else f"# Accuracy on clips of {args.frames} frames",
        provenance(args.command_line, model, split=args.split, questions=len(flat)),
    ]
    sections = [*head, *accuracy_sections(configurations, answers)]
    if blind:
        sections.append(blind_section(answers))
    # Before the foreground, which takes a while: what was answered is not to be lost.
    write_output(args, sections, configurations, answers)
    if args.frames > 1:
        sections.append(CLIPS)
    elif view is not None and len(view.places) == sum(grids):
        if methods and not args.no_foreground:
            sections.append(foreground_section(args, model, processor, methods, flat, view))
    else:
        sections.append("No foreground table: what each visual token shows is known for the bundled models alone.")
    write_output(args, sections, configurations, answers)
    print_line(output_console(), "\n\n".join(sections) + "\n")
    return 0


def _answer(
    args: argparse.Namespace,
    model: Any,
    processor: Any,
    asked: Sequence[tuple[Sequence[Example], Sequence[Configuration]]],
    *,
    tasks: Sequence[str],
    shard: Shard,
) -> dict[str, list[Answer]] | None:
    """For each configuration's key its answers to the questions beside it; None in all processes but the first."""
    from ..evaluate import evaluate
    from .console import progress

    every = [configuration for _, own in asked for configuration in own]
    store = _store(args, model, every, tasks=tasks, questions=len(asked[0][0]), process=shard.process)
    found: dict[str, list[Answer]] = {}
    with progress("answering", total=len(asked[0][0]) * len(every)) as advance:
        for questions, own in asked:
            answered = evaluate(
                model,
                processor,
                questions,
                own,
                batch_size=args.batch_size,
                store=store,
                shard=shard,
                advance=lambda _, count: advance(count),
            )
            found |= answered or {}
    if store is not None:
        store.close()
    return None if shard.process else found


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


def _label(label: str) -> str:
    """A method's label without the budget, which each reduction sets anew."""
    from ..methods.base import BUDGETS

    budgets = tuple(f"{name}=" for name in BUDGETS)
    return " ".join(part for part in label.split() if not part.startswith(budgets))
