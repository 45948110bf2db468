"""Measure memory token by token: weights, all else, and the KV cache, for the unpruned model and its rivals.

Without --image, the questions are about built-in pictures. Every arm generates the same number of tokens, past the end
of its answer, so that memory can be compared token by token."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import add_model_options, check_writable, keep_value, positive_int

if TYPE_CHECKING:
    from ..ask.method_spec import MethodSpec
    from ..ask.samples import Subject
    from ..report.memory import ArmMemory, PromptMemory

EPILOG = """\
examples:
  topv profile
  topv profile --paper-figures --out figures
  topv profile --image photo.jpg --prompt "What is written?" --keep 0.25 --out memory --plot
  topv profile --methods fastv:attention=full,topv --full-logits --largest 6

what the numbers mean:
  dynamic memory  all but weights and buffers. On a CPU the exact bytes of live tensors, on CUDA what the allocator
                  has handed out: the KV cache, activations, logits, the picture and what `generate` holds of it
  peak            most of it at any moment; beside it how much less than the unpruned model and FastV that is
  at the end      what is held after the last token
  KV by formula   how much less the KV cache of the prefill is, from the shapes that ran
  fall / KV's     how far held memory fell, over how far the KV cache fell: 1 when pruning saves that and nothing else
  peak resident   the operating system's count in a fresh process of each arm, over the weights: of one generation,
                  plus what the first one left behind for good (code read in, buffers of libraries)

FastV needs one row of one layer's attention map. Its published form computes the whole map (fastv:attention=full);
both are shown, and "to FastV" is to the published form. `generate` asks for the logits of the last position only; a
plain forward computes them for the whole prompt, which takes length x vocabulary numbers in any arm: --full-logits."""

_METHODS = "none,fastv:attention=full,fastv,topv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `topv profile`."""
    what = parser.add_argument_group("what to ask")
    what.add_argument("--image", nargs="+", type=Path, metavar="FILE", help="images; built-in pictures without")
    what.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="a question; may be given several times"
    )
    what.add_argument("--samples", type=positive_int, metavar="N", help="number of built-in pictures (2)")
    how = parser.add_argument_group("methods")
    how.add_argument("--methods", nargs="+", default=[_METHODS], metavar="SPEC", help=f"what to compare ({_METHODS})")
    how.add_argument(
        "--keep",
        type=keep_value,
        metavar="K",
        help="visual tokens to keep: a ratio such as 0.5, or a count such as 64 (0.5; with --paper-figures what "
        "removes the paper's share of visual FLOPs)",
    )
    how.add_argument("--layer", type=positive_int, metavar="L", help="decoder layers that see every token (2)")
    how.add_argument(
        "--full-logits", action="store_true", help="prefill logits at every position, in every arm, not only the last"
    )
    add_model_options(parser, answers=False)
    out = parser.add_argument_group("output")
    out.add_argument(
        "--max-new-tokens", type=positive_int, default=16, metavar="N", help="tokens that every arm generates (16)"
    )
    out.add_argument("--out", type=Path, metavar="FOLDER", help="write memory.csv and memory.md there")
    out.add_argument("--plot", action="store_true", help="draw memory.png there")
    out.add_argument(
        "--paper-figures", action="store_true", help="draw the paper's Fig. 3 and Figs. 6 to 11 there, on this model"
    )
    out.add_argument(
        "--largest", type=positive_int, default=0, metavar="N", help="name the N largest tensors at the peak"
    )
    out.add_argument(
        "--no-resident", action="store_true", help="leave out resident memory, which takes a process per arm"
    )
    out.add_argument(
        "--memory-history", action="store_true", help="on CUDA, write the allocator's history of each arm there"
    )


def run(args: argparse.Namespace) -> int:
    """Profile, print the tables, and write what was asked for."""
    _check(args)
    from .console import output_console, print_line, print_table, progress, quiet_transformers

    specs = _specs(args)
    subjects = _subjects(args)
    quiet_transformers()
    from ..loading import load_model
    from .profile_output import tables, write_output

    with progress(f"Loading {args.model}"):
        model, processor = load_model(args.model, dtype=args.dtype, device=args.device)
    on_cuda = next(model.parameters()).device.type == "cuda"
    if args.memory_history and not on_cuda:
        from ..errors import InputError

        raise InputError("--memory-history is the CUDA allocator's, and the model is on the CPU. Leave it out.")
    resident = not (args.no_resident or on_cuda)
    specs = _at_paper_budget(args, specs)
    profiles: list[PromptMemory] = []
    with progress("Profiling", len(subjects) * len(specs)) as advance:
        for task, subject in subjects:
            arms = []
            for spec in specs:
                arms.append(_arm(args, model, processor, subject, spec, resident=resident, number=len(profiles)))
                advance()
            profiles.append(_prompt(subject, task, arms))
    console = output_console()
    for title, notes, header, rows in tables(profiles, paper=args.paper_figures):
        print_line(console, title, style="bold")
        for note in notes:
            print_line(console, note, style="dim")
        print_table(console, header, rows)
        console.print()
    _print_largest(args, console, profiles)
    if args.out is not None:
        for path in write_output(args, model, profiles):
            print_line(console, f"Wrote {path}")
    return 0


def _check(args: argparse.Namespace) -> None:
    from ..errors import InputError

    wants = [name for name in ("plot", "paper_figures", "memory_history") if getattr(args, name)]
    if args.out is None:
        if wants:
            raise InputError(f"--{wants[0].replace('_', '-')} needs --out FOLDER, to know where to write.")
    else:
        check_writable(args.out / "memory.csv", "--out")
    if args.plot or args.paper_figures:
        from ..report.memory_plot import load_pyplot

        load_pyplot()
    if args.paper_figures and (args.image or args.prompt or args.samples):
        raise InputError("--paper-figures asks about its own two pictures: leave out --image, --prompt and --samples.")
    if args.image is not None and args.samples is not None:
        raise InputError("--samples counts built-in pictures, which --image replaces. Give one or the other.")


def _specs(args: argparse.Namespace) -> list[MethodSpec]:
    from ..ask.method_spec import UNPRUNED, MethodSpec, parse_methods
    from ..errors import InputError

    specs = parse_methods(args.methods, keep=[] if args.keep is None else [args.keep], layer=args.layer)
    if all(spec.method is not None for spec in specs):
        specs.insert(0, MethodSpec(UNPRUNED, None))
    names = {spec.label.split()[0] for spec in specs}
    missing = {"fastv", "topv"} - names
    if args.paper_figures and missing:
        raise InputError(f"--paper-figures shows fastv and topv beside the unpruned model: add {', '.join(missing)}.")
    return specs


def _subjects(args: argparse.Namespace) -> list[tuple[str | None, Subject]]:
    """The prompts, each with the bundled task it is from where the paper's figures are asked for."""
    from ..ask.samples import Subject, subjects_from_files, subjects_from_scenes

    if args.paper_figures:
        from ..evaluate import bundled_examples
        from ..report.memory_paper import BENCHMARKS

        tasks = [benchmark.task for benchmark in BENCHMARKS]
        examples = bundled_examples("test", 1, tasks)
        return [
            (
                task,
                Subject(
                    examples[task][0].image, f"built-in test scene {examples[task][0].scene}", examples[task][0].prompt
                ),
            )
            for task in tasks
        ]
    if args.image is not None:
        return [(None, subject) for subject in subjects_from_files(args.image, args.prompt)]
    return [(None, subject) for subject in subjects_from_scenes(args.samples or 2, args.prompt)]


def _at_paper_budget(args: argparse.Namespace, specs: list[MethodSpec]) -> list[MethodSpec]:
    """With --paper-figures and no budget given, the specs with what removes the paper's share of visual FLOPs."""
    if not args.paper_figures or args.keep is not None:
        return specs
    from ..ask.method_spec import MethodSpec
    from ..report.memory_paper import VISUAL_FLOPS_REMOVED

    found = []
    for spec in specs:
        name, *settings = spec.label.split()
        if spec.method is None or name not in VISUAL_FLOPS_REMOVED:
            found.append(spec)
            continue
        share = VISUAL_FLOPS_REMOVED[name]
        label = " ".join([name, f"visual_flops={share:g}", *(s for s in settings if not s.startswith("keep="))])
        found.append(MethodSpec(label, spec.method.with_budget(visual_flops=share)))
    return found


def _arm(
    args: argparse.Namespace,
    model: Any,
    processor: Any,
    subject: Subject,
    spec: MethodSpec,
    *,
    resident: bool,
    number: int,
) -> ArmMemory:
    import contextlib

    from ..ask.prompts import build_inputs
    from ..measure.memory import memory_history, profile_generation
    from ..report.memory import ArmMemory

    inputs = build_inputs(model, processor, subject.image, subject.prompt)
    name = spec.label.split()[0]
    history: Any = contextlib.nullcontext()
    if args.memory_history:
        file = f"history-{number + 1}-{spec.label.replace(' ', '-').replace('=', '-')}.pickle"
        history = memory_history(args.out / file)
    with history:
        memory = profile_generation(
            model, inputs, spec.method, new_tokens=args.max_new_tokens, full_logits=args.full_logits
        )
    return ArmMemory(
        label=spec.label,
        name=name,
        memory=memory,
        resident=_resident(args, subject, spec) if resident else None,
        as_published=getattr(spec.method, "attention", None) == "full",
    )


def _resident(args: argparse.Namespace, subject: Subject, spec: MethodSpec) -> Any:
    import tempfile

    import torch

    from ..ask.method_spec import UNPRUNED
    from ..measure.memory import MemorySample, MemoryTimeline
    from ..report.memory import Resident
    from .resident_worker import measure_resident

    settings = ",".join(f"{key}={value}" for key, value in (spec.settings or {}).items())
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        subject.image.save(image)
        found = measure_resident(
            {
                "model": args.model,
                "dtype": args.dtype,
                "image": str(image),
                "prompt": subject.prompt,
                "method": UNPRUNED if spec.method is None else f"{spec.label.split()[0]}:{settings}",
                "new_tokens": args.max_new_tokens,
                "full_logits": args.full_logits,
                "threads": torch.get_num_threads(),
            }
        )
    samples = tuple(MemorySample(*sample) for sample in found["samples"])
    return Resident(found["once"], MemoryTimeline(found["static"], samples, found["source"]))


def _prompt(subject: Subject, task: str | None, arms: list[ArmMemory]) -> PromptMemory:
    from ..report.memory import PromptMemory

    return PromptMemory(subject.image_name, subject.prompt, tuple(arms), task)


def _print_largest(args: argparse.Namespace, console: Any, profiles: list[PromptMemory]) -> None:
    from .console import print_line

    if not args.largest:
        return
    for profile in profiles:
        for arm in profile.arms:
            print_line(console, f"{profile.prompt}: the largest at the peak of {arm.label}", style="bold")
            for line in arm.memory.largest[: args.largest] or ("the allocator does not tell: use --memory-history",):
                print_line(console, f"  {line}")
