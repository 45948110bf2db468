"""Ask the same questions under several pruning methods, and see answers, savings and speed side by side.

Without --image, the questions are about built-in pictures that the bundled model never saw, and the true answers
are known."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .methods_help import list_methods
from .options import add_budget_options, add_model_options, check_writable, positive_int

if TYPE_CHECKING:
    from ..ask.case import TimingPlan
    from ..ask.method_spec import MethodSpec
    from ..ask.samples import Subject
    from ..report import Case, Comparison

EPILOG = f"""\
examples:
  topv compare
  topv compare --methods none,fastv,topv --keep 0.5 0.25 0.1 --report out.html
  topv compare --methods none,fastv,topv --visual-flops 0.5
  topv compare --image photo.jpg --prompt "What is written?" --prompt "How many people are there?"
  topv compare --methods none,topv:keep=64,topv:keep=64,importance=potential --no-timing --json

{list_methods()}
  A wrong setting lists the valid ones; keep and layer set there go before --keep and --layer.

what the numbers mean:
  visual tokens   in the prompt -> left from the method's (last) pruning layer on
  FLOPs saved     share of the decoder's work on visual tokens that was not done, from the shapes that ran
  KV cache        bytes of keys and values after the prefill
  prefill,        time as a ratio to the unpruned model: 0.60 takes 60 % of its time. In brackets the interval that
  decode          holds the median with 95 % probability or more (from six rounds on, over all questions); "~" where
                  it includes 1, so that no difference was measured. All methods run in turn, since a machine does
                  not hold still. Prefill includes the image encoder, which no method here makes faster.
  foreground      built-in pictures: share of the patches with an object or a word whose tokens were kept"""

_METHODS = "none,fastv,topv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `topv compare`."""
    what = parser.add_argument_group("what to ask")
    what.add_argument("--image", nargs="+", type=Path, metavar="FILE", help="images; built-in pictures without")
    what.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="a question; may be given several times"
    )
    what.add_argument(
        "--samples", type=positive_int, metavar="N", help="number of built-in pictures (6: one for each task)"
    )
    how = parser.add_argument_group("methods")
    how.add_argument("--methods", nargs="+", default=[_METHODS], metavar="SPEC", help=f"what to compare ({_METHODS})")
    add_budget_options(how, several=True)
    how.add_argument(
        "--layer", type=positive_int, metavar="L", help="decoder layers that see every token (2); not for vtw"
    )
    add_model_options(parser)
    out = parser.add_argument_group("output and timing")
    out.add_argument("--report", type=Path, metavar="FILE", help="write a self-contained HTML report")
    out.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write JSON, to standard output without FILE")
    out.add_argument("--no-timing", action="store_true", help="answers and savings only")
    out.add_argument(
        "--repetitions", type=positive_int, metavar="N", help="timed rounds per question (7; 3 with several questions)"
    )
    out.add_argument(
        "--decode-steps", type=positive_int, default=8, metavar="N", help="timed steps after the prefill (8)"
    )


def run(args: argparse.Namespace) -> int:
    """Compare, print, and write what was asked for."""
    _check_output(args)
    from ..ask.method_spec import parse_methods
    from .console import progress, quiet_transformers

    specs = parse_methods(
        args.methods, keep=args.keep, visual_flops=args.visual_flops, kv_share=args.kv_share, layer=args.layer
    )
    subjects = _subjects(args)
    quiet_transformers()
    import shlex

    from ..ask.case import TimingPlan
    from ..ask.comparison import comparison_of
    from ..loading import BUNDLED, TILED, load_model

    with progress(f"Loading {args.model}"):
        model, processor = load_model(args.model, dtype=args.dtype, device=args.device)
    _check_methods(model, specs)
    # Ratios are pooled over the questions, so several need fewer rounds each.
    repetitions = args.repetitions or (7 if len(subjects) == 1 else 3)
    plan = None if args.no_timing else TimingPlan(repetitions, warmup=1, decode_steps=args.decode_steps)
    cases = _run_cases(
        model,
        processor,
        subjects,
        specs,
        plan,
        max_new_tokens=args.max_new_tokens,
        check_answers=args.model in (BUNDLED, TILED),
    )
    comparison = comparison_of(model, args.model, shlex.join(args.command_line), cases, plan)
    _write(args, comparison)
    return 0


def _check_output(args: argparse.Namespace) -> None:
    if args.report is not None:
        check_writable(args.report, "--report")
    if args.json is not None and args.json != "-":
        check_writable(Path(args.json), "--json")


def _subjects(args: argparse.Namespace) -> list[Subject]:
    from ..ask.samples import TASKS, subjects_from_files, subjects_from_scenes
    from ..errors import InputError

    if args.image is None:
        return subjects_from_scenes(args.samples or len(TASKS), args.prompt)
    if args.samples is not None:
        raise InputError("--samples counts built-in pictures, which --image replaces. Give one or the other.")
    return subjects_from_files(args.image, args.prompt)


def _check_methods(model: Any, specs: list[MethodSpec]) -> None:
    """Fail before the first answer when a method does not fit the model."""
    from ..runtime import prune

    for spec in specs:
        if spec.method is not None:
            with prune(model, spec.method):
                pass


def _run_cases(
    model: Any,
    processor: Any,
    subjects: list[Subject],
    specs: list[MethodSpec],
    plan: TimingPlan | None,
    *,
    max_new_tokens: int,
    check_answers: bool,
) -> tuple[Case, ...]:
    from ..ask.case import answer_case, time_case
    from .console import progress

    with progress("Answering", len(subjects) * len(specs)) as advance:
        cases = [
            answer_case(
                model,
                processor,
                subject,
                specs,
                max_new_tokens=max_new_tokens,
                check_answers=check_answers,
                on_answer=advance,
            )
            for subject in subjects
        ]
    if plan is None:
        return tuple(cases)
    with progress("Timing", len(subjects) * plan.runs(specs)) as advance:
        return tuple(
            time_case(model, processor, subject, case, specs, plan, advance)
            for subject, case in zip(subjects, cases, strict=True)
        )


def _write(args: argparse.Namespace, comparison: Comparison) -> None:
    from ..report.html import write_html
    from .console import output_console, print_line
    from .tables import print_comparison

    if args.json == "-":
        print(json.dumps(comparison.to_dict(), indent=2))
    else:
        print_comparison(output_console(), comparison)
        if args.json is not None:
            path = Path(args.json)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(comparison.to_dict(), indent=2) + "\n", encoding="utf-8")
    if args.report is not None:
        write_html(comparison, args.report)
        if args.json != "-":
            print_line(output_console(), f"Report: {args.report}")
