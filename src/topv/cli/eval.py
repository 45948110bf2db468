"""Measure what pruning costs in accuracy: the bundled tasks under every method, at equal savings of visual FLOPs.

For each wanted reduction every method gets the budget that removes that share of visual FLOPs (for VTW, the
layer). All answer the same questions, greedily, and are compared with the unpruned model question by question."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .options import add_model_options, check_writable, positive_int

EPILOG = """\
examples:
  topv eval --questions 50                                      a quick look
  topv eval --out results.md --json results.json                the whole comparison
  topv eval --methods topv,topv:importance=potential,random --reductions 0.5 --tasks ocr,counting

what the numbers mean:
  accuracy          exact match; for caption and description the F1 over words; 95 % interval in brackets
  mean - unpruned   difference of the mean over tasks, paired by question, 95 % bootstrap interval over pictures:
                    an interval that excludes 0 is a real loss or gain
  foreground kept   share of the patches that show something to ask about; a choice blind to the picture keeps
                    as much of them as of everything, its keep ratio"""

_METHODS = "fastv,vtw,random,uniform,meancost,topv"


_KEEPS = (0.5, 0.25)
_READING = """\
Accuracy is exact match, in %; for caption and description the F1 over words. Brackets hold 95 % intervals, by
resampling pictures. The last column is the paired difference of the mean over tasks to the unpruned model: an interval
that holds 0 shows no difference."""
_FOREGROUND = """\
### Foreground kept

Share of the patches that show something to ask about which each method keeps, over {scenes} pictures. A method blind
to the picture keeps its keep ratio of them.

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
    parser.add_argument("--split", default="test", choices=("validation", "test"), help="scenes to ask about (test)")
    parser.add_argument("--questions", type=positive_int, default=200, metavar="N", help="questions per task (200)")
    parser.add_argument("--batch-size", type=positive_int, default=32, metavar="N", help="questions per batch (32)")
    parser.add_argument("--no-foreground", action="store_true", help="leave out the foreground table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables there, as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every answer there")
    add_model_options(parser, answers=False)


def _shares(text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 < share < 1 for share in shares):
        raise argparse.ArgumentTypeError(f"{text!r}: expected shares between 0 and 1, such as 0.25,0.5")
    return shares


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the tables, and write the files that were asked for."""
    for path, option in ((args.out, "--out"), (args.json, "--json")):
        if path is not None:
            check_writable(path, option)
    from .console import output_console, print_line, progress, quiet_transformers
    from .method_spec import parse_methods

    quiet_transformers()
    specs = parse_methods([args.methods])
    from ..evaluate import (
        TASKS,
        Answer,
        accuracy_tables,
        answer_examples,
        at_equal_reductions,
        bundled_examples,
        foreground_shares,
        foreground_table,
        provenance,
        readings,
    )
    from ..loading import load_model
    from ..methods import VTW
    from ..mini.geometry import SHIPPED
    from ..models import family_of

    methods = [(_label(spec.label), spec.method) for spec in specs if spec.method is not None]
    labels = [label for label, _ in methods]
    if not methods or len(set(labels)) < len(labels):
        raise InputError(
            f"--methods {args.methods!r}: expected at least one method beside the unpruned model, and each once, since "
            "--reductions sets their budgets."
        )
    with progress("loading the model"):
        model, processor = load_model(args.model, dtype=args.dtype, device=args.device)
    tasks = TASKS if args.tasks is None else tuple(dict.fromkeys(args.tasks.split(",")))
    with progress("drawing the questions"):
        examples = bundled_examples(args.split, args.questions, tasks)
    rows, columns = family_of(model).fixed_grid()
    configurations = at_equal_reductions(model, methods, args.reductions, visual_tokens=rows * columns)

    flat = [example for task in tasks for example in examples[task]]
    answers: dict[str, dict[str, list[Answer]]] = {}
    for number, configuration in enumerate(configurations, 1):
        label = f"{configuration.key} ({number} of {len(configurations)})"
        with progress(label, total=len(flat)) as advance:
            found = answer_examples(
                model, processor, flat, configuration.method, batch_size=args.batch_size, advance=advance
            )
        answers[configuration.key] = {task: [a for a in found if a.task == task] for task in tasks}

    sections = [
        "# Accuracy on the bundled tasks",
        provenance(args.command_line, model, split=args.split, questions=len(flat)),
    ]
    sections.append(f"{_READING}\n\n{accuracy_tables(configurations, answers)}")
    for path, text in ((args.out, "\n\n".join(sections) + "\n"), (args.json, None)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text if text is not None else _json(args.command_line, answers))
    same_grid = (rows, columns) == (SHIPPED.grid, SHIPPED.grid)
    if not same_grid:
        sections.append(f"No foreground table: it is known on the bundled model's grid, not on {rows} x {columns}.")
    if same_grid and not args.no_foreground:
        one_each = list({example.scene: example for example in flat}.values())
        ranked = [(label, method) for label, method in readings(methods) if not isinstance(method, VTW)]
        shares: dict[str, dict[float, tuple[list[float], list[int]]]] = {}
        with progress("foreground kept", total=len(ranked) * len(_KEEPS) * len(one_each)) as advance:
            for label, method in ranked:
                for keep in _KEEPS:
                    found_shares = foreground_shares(
                        model,
                        processor,
                        one_each,
                        method.with_budget(keep=keep),
                        split=args.split,
                        batch_size=args.batch_size,
                        advance=advance,
                    )
                    shares.setdefault(label, {})[keep] = found_shares, [example.scene for example in one_each]
        sections.append(_FOREGROUND.format(scenes=len(one_each)) + foreground_table(shares))
    text = "\n\n".join(sections) + "\n"
    print_line(output_console(), text)
    if args.out is not None:
        args.out.write_text(text)
    return 0


def _label(label: str) -> str:
    """A method's label without the budget, which each reduction sets anew."""
    from ..methods.base import BUDGETS

    budgets = tuple(f"{name}=" for name in BUDGETS)
    return " ".join(part for part in label.split() if not part.startswith(budgets))


def _json(command: Sequence[str], answers: Mapping[str, Mapping[str, Sequence[Any]]]) -> str:
    records = {key: {task: [a.to_dict() for a in found] for task, found in by.items()} for key, by in answers.items()}
    return json.dumps({"command": command, "answers": records}, indent=1) + "\n"
