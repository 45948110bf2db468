"""Measure speed: time to first token by stages, decoding, end to end and throughput, as ratios to the unpruned model.

All methods run in turn, round after round, on the same prompt; ratios are taken within each round. A ratio whose
spread swallows it is not printed. Presets have the shapes of well-known models and random weights, which take the
same time."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .options import add_model_options, check_plot, check_writable, keep_value, positive_int

if TYPE_CHECKING:
    from ..ask.method_spec import MethodSpec
    from ..measure.bench import Measurement

EPILOG = """\
examples:
  topv bench                                                       the bundled model
  topv bench --preset llava-cpu --keep 0.5 0.25 0.1 --out rows.csv --plot rows.png
  topv bench --preset llava-1.5-7b --batch 1 4 16 --memory-gib 24 --out rows.csv
  topv bench --preset internvl2-2b --tiles 12 --methods topv,fastv:attention=full
  topv bench --model llava-hf/llava-1.5-7b-hf --image photo.jpg --attention flash_attention_2
  topv bench --read a.csv b.csv --markdown performance.md          measure nothing, show what was measured

presets (random weights):
  llava-1.5-7b llava-1.5-13b internvl2-2b internvl2-8b qwen2.5-vl-7b qwen3-vl-8b     published shapes
  llava-cpu internvl2-cpu qwen2.5-vl-cpu qwen3-vl-cpu                                small, of like proportions

what the numbers mean:
  x unpruned       median over rounds of the ratio to the unpruned model, and the interval that holds it with 95 %
                   probability or more (from six rounds on); "unclear" where the interval holds 1 or half of it is
                   wider than the effect
  stages           vision tower: all in front of the decoder; layers before and after the pruning layer; selection:
                   ranking and choosing tokens; rest: head and all else. What a method reads in a layer counts there
  FLOPs share      FLOPs over the unpruned model's: of the whole prefill, vision tower and head included, beside the
                   time to first token; of the decoder layers beside theirs
  time / FLOPs     time, x unpruned, over that share: 1 is time that falls as FLOPs do
  throughput       samples, or tokens, over the time end to end"""

_METHODS = "topv,fastv,fastv:attention=full"
_PROMPT = "describe the picture in detail."
_LIMIT = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `topv bench`."""
    what = parser.add_argument_group("what to run")
    what.add_argument("--preset", metavar="NAME", help="random weights at a model's shapes, instead of --model")
    what.add_argument("--layers", type=positive_int, metavar="N", help="decoder layers of a preset, for a quick look")
    what.add_argument("--tiles", type=positive_int, metavar="N", help="tiles of an InternVL2 preset's picture (6)")
    what.add_argument(
        "--image-size", nargs=2, type=positive_int, metavar=("H", "W"), help="pixels of a Qwen preset's picture"
    )
    what.add_argument("--text-tokens", type=positive_int, metavar="N", help="text in a preset's prompt (64)")
    what.add_argument("--image", type=Path, metavar="FILE", help="for --model: the image; a built-in picture without")
    what.add_argument("--prompt", metavar="TEXT", help=f"for --model: the question ({_PROMPT})")
    what.add_argument("--batch", nargs="+", type=positive_int, default=[1], metavar="B", help="batch sizes (1)")
    what.add_argument(
        "--memory-gib", type=_gib, metavar="X", help="also the largest batch of each method that fits so much memory"
    )
    what.add_argument(
        "--max-batch", type=positive_int, default=_LIMIT, metavar="B", help=f"largest batch to try for it ({_LIMIT})"
    )
    how = parser.add_argument_group("methods")
    how.add_argument(
        "--methods", nargs="+", default=[_METHODS], metavar="SPEC", help=f"beside the unpruned model ({_METHODS})"
    )
    how.add_argument("--keep", nargs="+", type=keep_value, default=[], metavar="K", help="budgets; each runs (0.5)")
    how.add_argument("--layer", type=positive_int, metavar="L", help="decoder layers that see every token (2)")
    add_model_options(parser, answers=False)
    parser.add_argument("--attention", metavar="NAME", help="sdpa, eager, flash_attention_2 (the model's own)")
    timing = parser.add_argument_group("timing and output")
    timing.add_argument("--rounds", type=positive_int, default=9, metavar="N", help="rounds that count (9)")
    timing.add_argument("--warmup", type=_count, default=2, metavar="N", help="rounds before them (2)")
    timing.add_argument("--decode-steps", type=_count, default=16, metavar="N", help="tokens after the first (16)")
    timing.add_argument("--out", type=Path, metavar="FILE", help="write rows there, as CSV")
    timing.add_argument("--plot", type=Path, metavar="FILE", help="draw them there, as PNG (needs topv[plot])")
    timing.add_argument("--markdown", type=Path, metavar="FILE", help="write tables there, with the commands")
    timing.add_argument("--read", nargs="+", type=Path, metavar="FILE", help="measure nothing: show these rows")


def _gib(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of GiB above 0, such as 24")
    return number


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer of at least 0")
    return number


def run(args: argparse.Namespace) -> int:
    """Measure or read, print the tables, and write the files that were asked for."""
    for name in ("out", "markdown"):
        path = getattr(args, name)
        if path is not None:
            check_writable(path, f"--{name}")
    if args.plot is not None:
        check_plot(args.plot)
    from ..measure.bench_rows import read_rows, write_rows
    from .console import quiet_transformers

    if args.read is not None:
        if args.out is not None or args.preset is not None:
            raise InputError("--read measures nothing, so neither --out nor --preset goes with it.")
        rows = [row for path in args.read for row in read_rows(path)]
    else:
        quiet_transformers()
        rows = list(_measure(args))
        if args.out is not None:
            write_rows(args.out, rows)
    _show(rows)
    if args.plot is not None:
        from ..report.bench_plot import plot_bench

        plot_bench(rows, args.plot)
    if args.markdown is not None:
        from ..report.bench_tables import performance_page

        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text(performance_page(rows), encoding="utf-8")
    return 0


def _show(rows: list[dict[str, str]]) -> None:
    from itertools import groupby

    from ..report.bench_tables import bench_tables
    from .console import output_console, print_line, print_table

    console = output_console()
    for _, found in groupby(rows, key=lambda row: row["command"]):
        group = list(found)
        first = group[0]
        print_line(console, f"{first['model']}, {first['dtype']}, {first['attention']}, {first['device']}", "dim")
        for table in bench_tables(group):
            console.print()
            print_line(console, table.title, style="bold")
            print_table(console, table.header, table.rows)


def _measure(args: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Rows of every batch, then of the largest batches that fit."""
    import shlex

    from ..ask.method_spec import UNPRUNED, MethodSpec, parse_methods
    from ..measure.bench_rows import Budget, Setting, bench_row

    specs = [spec for spec in parse_methods(args.methods, keep=args.keep, layer=args.layer) if spec.method is not None]
    specs.insert(0, MethodSpec(UNPRUNED, None))
    model, inputs = _subject(args)
    setting = Setting(
        model=args.preset or args.model,
        config=_config(args),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        decode_steps=args.decode_steps,
        rounds=args.rounds,
        warmup=args.warmup,
        dtype=str(model.dtype).removeprefix("torch."),
        attention=model.config._attn_implementation,
        device=model.device,
        command=shlex.join(args.command_line),
    )
    for batch in dict.fromkeys(args.batch):
        measured = _bench(args, model, dict.fromkeys([spec.label for spec in specs], batch), specs, inputs)
        for spec in specs:
            yield bench_row(setting, spec.label, spec.settings, measured[spec.label])
    if args.memory_gib is not None:
        peaks = {spec.label: _largest(args, model, spec, inputs) for spec in specs}
        batches = {label: batch for label, (batch, _) in peaks.items()}
        measured = _bench(args, model, batches, specs, inputs)
        for spec in specs:
            peak = peaks[spec.label][1]
            found = measured[spec.label]
            budget = Budget(args.memory_gib, peak, limit=args.max_batch)
            yield bench_row(setting, spec.label, spec.settings, found, budget)


def _config(args: argparse.Namespace) -> dict[str, Any]:
    """What was changed of the model or its picture."""
    given = {"layers": args.layers, "tiles": args.tiles, "image_size": args.image_size}
    return {name: value for name, value in given.items() if value is not None}


def _subject(args: argparse.Namespace) -> tuple[Any, Callable[[int], dict[str, Any]]]:
    """The model, and what makes inputs of so many samples for it."""
    from .console import progress

    if args.preset is None:
        for name in ("layers", "tiles", "image_size", "text_tokens"):
            if getattr(args, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} shapes a preset, and there is no --preset.")
        with progress(f"Loading {args.model}"):
            model, inputs = _loaded(args)
    else:
        if args.image is not None or args.prompt is not None or args.model != "mini":
            raise InputError(
                "a preset makes its own model and prompt: --model, --image and --prompt do not go with it."
            )
        with progress(f"Building {args.preset}"):
            model, inputs = _preset(args)
    if args.attention is not None:
        try:
            model.set_attn_implementation(args.attention)
        except (ValueError, ImportError) as error:
            first = str(error).strip().splitlines()[0]
            raise InputError(f"--attention {args.attention!r} cannot be used: {first}") from error
    return model, inputs


def _preset(args: argparse.Namespace) -> tuple[Any, Callable[[int], dict[str, Any]]]:
    from ..loading import placement
    from ..measure.random_model import build_random_model, random_inputs
    from ..measure.shapes import preset

    chosen = preset(args.preset)
    size = None if args.image_size is None else (args.image_size[0], args.image_size[1])
    picture = chosen.with_picture(tiles=args.tiles, pixels=size)
    device, dtype = placement(args.device, args.dtype)
    model = build_random_model(chosen, device=device, dtype=dtype, layers=args.layers)
    return model, lambda batch: random_inputs(model, picture, batch=batch, text_tokens=args.text_tokens or 64)


def _loaded(args: argparse.Namespace) -> tuple[Any, Callable[[int], dict[str, Any]]]:
    import torch

    from ..ask.prompts import build_inputs
    from ..ask.samples import subjects_from_files, subjects_from_scenes
    from ..loading import load_model

    prompt = _PROMPT if args.prompt is None else args.prompt
    files = None if args.image is None else [args.image]
    subject = subjects_from_scenes(1, [prompt])[0] if files is None else subjects_from_files(files, [prompt])[0]
    model, processor = load_model(args.model, dtype=args.dtype, device=args.device)
    one = build_inputs(model, processor, subject.image, subject.prompt)

    def inputs(batch: int) -> dict[str, Any]:
        return {name: torch.cat([tensor] * batch) for name, tensor in one.items()}

    return model, inputs


def _bench(
    args: argparse.Namespace,
    model: Any,
    batches: dict[str, int],
    specs: list[MethodSpec],
    inputs: Callable[[int], dict[str, Any]],
) -> dict[str, Measurement]:
    """Measure every method, each at its own batch."""
    import torch

    from ..measure.bench import Case, bench
    from .console import progress

    made = {batch: inputs(batch) for batch in set(batches.values())}
    cases = {spec.label: Case(spec.method, made[batches[spec.label]]) for spec in specs}
    shown = " ".join(str(batch) for batch in sorted(made))
    with progress(f"Timing batch {shown}", (args.rounds + args.warmup) * len(cases)) as advance:
        try:
            return bench(
                model,
                cases,
                baseline=specs[0].label,
                decode_steps=args.decode_steps,
                warmup=args.warmup,
                rounds=args.rounds,
                on_run=advance,
            )
        except torch.cuda.OutOfMemoryError as error:
            raise InputError(
                f"the device has not enough memory for batch {shown}. Measure smaller ones with --batch; --memory-gib "
                "looks for the largest that fits."
            ) from error


def _largest(
    args: argparse.Namespace, model: Any, spec: MethodSpec, inputs: Callable[[int], dict[str, Any]]
) -> tuple[int, int]:
    """The largest batch of a method that fits the memory, and its peak in bytes."""
    from ..measure.bench import Case, run_once
    from ..measure.fitting import largest_batch, peak_bytes
    from .console import progress

    peaks: dict[int, int] = {}

    def fits(batch: int) -> bool:
        def whole() -> None:
            run_once(model, Case(spec.method, inputs(batch)), decode_steps=args.decode_steps)

        advance()
        peak = peak_bytes(whole, model, model.device)
        if peak is None or peak > args.memory_gib * 2**30:
            return False
        peaks[batch] = peak
        return True

    with progress(f"Largest batch of {spec.label}") as advance:
        batch = largest_batch(fits, limit=args.max_batch)
    if batch == 0:
        raise InputError(
            f"--memory-gib {args.memory_gib:g}: not even one sample of {spec.label} fits. Give more memory, or a "
            "smaller model."
        )
    return batch, peaks[batch]
