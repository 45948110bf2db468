"""Vary one choice of TopV at a time, and measure what it does to accuracy and to the foreground that is kept.

All variants of a sweep save the same share of visual FLOPs and answer the same questions of the validation split; the
test split is for what was chosen by them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..errors import InputError
from .options import add_model_options, check_plot, check_writable, positive_int

EPILOG = """\
examples:
  topv ablate recovery beta                                 two sweeps over the bundled model
  topv ablate all --model tiled --out ablations.md          every sweep
  topv ablate sigma --base topv:beta=1.0                    another setting to start from

sweeps: target, stage, recovery, terms, beta, gamma, sigma, eps, reading, iterations, normalize, scale, layer,
budget

A killed run goes on where it was with --work FOLDER."""

_READING = """\
All remove {share:.0%} of visual FLOPs. Base: `{base}`. Accuracy in %, the mean over tasks with 95 % intervals by
resampling pictures. The difference is paired, to the variant that is the base or nearest to it, and bold where its
interval excludes 0.
Foreground kept: at keep 0.5, in %."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `topv ablate`."""
    parser.add_argument(
        "sweeps",
        nargs="+",
        metavar="SWEEP",
        help="what to vary, see below; all for every one",
    )
    parser.add_argument("--base", default="topv", metavar="SPEC", help="the TopV that is varied (topv)")
    parser.add_argument("--reduction", type=float, default=0.5, metavar="SHARE", help="of visual FLOPs removed (0.5)")
    parser.add_argument("--tasks", default=None, help="comma-separated; all bundled tasks by default")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--questions", type=positive_int, default=40, metavar="N", help="questions per task (40)")
    parser.add_argument("--batch-size", type=positive_int, default=32, metavar="N", help="questions per batch (32)")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep answers there, a folder for each sweep")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables there, as Markdown")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw each sweep there")
    add_model_options(parser, answers=False)


def run(args: argparse.Namespace) -> int:
    """Evaluate the sweeps, print their tables, and write the files that were asked for."""
    if args.out is not None:
        check_writable(args.out, "--out")
    if args.plot is not None:
        check_plot(args.plot, folder=True)
    if not 0 < args.reduction < 1:
        raise InputError(f"--reduction {args.reduction}: expected a share between 0 and 1, such as 0.5.")
    from ..ask.method_spec import parse_methods
    from ..evaluate import SWEEPS, sweep
    from ..methods import TopV
    from .console import output_console, print_line, progress, quiet_transformers

    quiet_transformers()
    names = list(SWEEPS) if "all" in args.sweeps else list(dict.fromkeys(args.sweeps))
    specs = parse_methods([args.base])
    if len(specs) != 1 or not isinstance(specs[0].method, TopV):
        raise InputError(f"--base {args.base!r}: expected one topv, such as topv:beta=1.0.")
    if specs[0].method.with_budget() != specs[0].method:
        raise InputError(f"--base {args.base!r}: --reduction sets the budget. Leave it out.")
    plans = {name: sweep(name, specs[0].method) for name in names}
    from ..evaluate import (
        TASKS,
        AnswerStore,
        ablation_table,
        at_equal_reductions,
        bundled_examples,
        evaluate,
        foreground_shares,
        grids_of,
        nearest,
        provenance,
        setup_of,
        view_of,
    )
    from ..loading import load_model

    with progress("loading the model"):
        model, processor = load_model(args.model, dtype=args.dtype, device=args.device)
    tasks = TASKS if args.tasks is None else tuple(dict.fromkeys(args.tasks.split(",")))
    view = view_of(model, processor)
    with progress("drawing the questions"):
        examples = bundled_examples(args.split, args.questions, tasks, *([] if view is None else [view.geometry]))
    flat = [example for task in tasks for example in examples[task]]
    one_each = list({example.scene: example for example in flat}.values())
    grids = grids_of(model, processor, flat[0])
    sections = [
        "# Ablations of TopV",
        provenance(args.command_line, model, split=args.split, questions=len(flat)),
        _READING.format(share=args.reduction, base=args.base),
    ]
    for name, methods in plans.items():
        configurations = at_equal_reductions(model, methods, [args.reduction], grids=grids)
        store = None
        if args.work is not None:
            setup = setup_of(
                model,
                configurations,
                name=args.model,
                split=args.split,
                tasks=tasks,
                questions=len(flat),
                batch_size=args.batch_size,
            )
            store = AnswerStore(args.work / name, setup)
        with progress(name, total=len(flat) * len(configurations)) as advance:
            found = evaluate(
                model,
                processor,
                flat,
                configurations,
                batch_size=args.batch_size,
                store=store,
                advance=lambda _, questions: advance(questions),
            )
        if found is None:
            return 0
        shares: dict[str, list[float]] = {}
        if view is not None and len(view.places) == sum(grids):
            for label, method in methods:
                shares[label] = foreground_shares(
                    model, processor, one_each, method.with_budget(keep=0.5), split=args.split, view=view
                )
        answers = {key: {task: [a for a in every if a.task == task] for task in tasks} for key, every in found.items()}
        scenes = [example.scene for example in one_each]
        base = nearest(methods, specs[0].method)
        sections.append(f"## {name}\n\n{ablation_table(configurations, answers, shares, scenes, base)}")
        if args.plot is not None:
            from ..evaluate import ablation_bars
            from ..report.accuracy_plot import plot_bars

            args.plot.mkdir(parents=True, exist_ok=True)
            bars, unpruned = ablation_bars(configurations, answers)
            picture = args.plot / f"ablation-{name}.png"
            plot_bars(bars, unpruned, picture, title=f"{args.model}: {name}")
            if args.out is not None:
                place = Path(os.path.relpath(picture.resolve(), args.out.resolve().parent)).as_posix()
                sections.append(f"![{args.model}: {name}]({place})")
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    print_line(output_console(), "\n\n".join(sections) + "\n")
    return 0
