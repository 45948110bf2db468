"""Run the paper's experiments again, each a named recipe, with the published figures beside the measured ones.

Where the paper's checkpoints are there, a recipe runs on them through lmms-eval. Where they are not, it runs on a
bundled model and bundled tasks, which compares the methods but says nothing of the paper's figures. The output says
which it was."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .options import check_plot, check_writable, positive_int

if TYPE_CHECKING:
    from ..evaluate.recipe import Figure, Recipe
    from ..evaluate.reproduction import Options, Step

EPILOG = """\
examples:
  topv reproduce --list                                     every recipe, and the figures that it knows
  topv reproduce internvl2 --dry-run                        the commands, without running them
  topv reproduce recovery --questions 10                    on the bundled model, where nothing else is there
  topv reproduce llava --on checkpoints --checkpoints ./checkpoints --out llava.md --json llava.json
  topv reproduce dialogue-ocr --image signature.png

A killed run goes on where it was. Checkpoints are looked for in --checkpoints, in a folder of the paper's name for each
(InternVL2-2B, LLaVA-v1.5-7B), then in the hub's cache; data sets are fetched by lmms-eval."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `topv reproduce`."""
    parser.add_argument("recipe", nargs="?", metavar="NAME", help="what to reproduce; --list shows the names")
    parser.add_argument("--list", action="store_true", help="list the recipes and stop")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    where = parser.add_argument_group("what to run on")
    where.add_argument(
        "--on",
        default="auto",
        choices=("auto", "checkpoints", "bundled"),
        help="the paper's checkpoints, a bundled model, or (auto) the first of them that is there",
    )
    where.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), metavar="FOLDER", help="(./checkpoints)"
    )
    where.add_argument("--model", choices=("mini", "tiled"), help="the bundled model, in place of the recipe's")
    where.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1")
    where.add_argument("--dtype", default="auto", help="of topv's own commands: auto, float32, float16, bfloat16")
    where.add_argument("--image", type=Path, metavar="FILE", help="the picture of a dialogue")
    asked = parser.add_argument_group("what to ask")
    asked.add_argument("--tasks", help="comma-separated, in place of the recipe's")
    asked.add_argument(
        "--questions", type=positive_int, metavar="N", help="per task (bundled: 40, a dialogue 3; benchmarks: all)"
    )
    asked.add_argument("--include-path", type=Path, metavar="FOLDER", help="lmms-eval tasks of your own")
    out = parser.add_argument_group("output")
    out.add_argument("--published", type=Path, metavar="FILE", help="further published figures, as JSON")
    out.add_argument(
        "--work", type=Path, default=Path("runs/reproduce"), metavar="FOLDER", help="for logs and answers (./runs/...)"
    )
    out.add_argument("--out", type=Path, metavar="FILE", help="write the tables there, as Markdown")
    out.add_argument("--json", type=Path, metavar="FILE", help="write figures, commands and what was found there")
    out.add_argument("--plot", type=Path, metavar="FOLDER", help="draw heat maps there, where the recipe has some")


def run(args: argparse.Namespace) -> int:
    """Plan, run, and print and write what was found."""
    for path, option in ((args.out, "--out"), (args.json, "--json")):
        if path is not None:
            check_writable(path, option)
    if args.list:
        return _list()
    from ..evaluate.recipe import load_recipe, read_figures, recipe_names
    from ..evaluate.reproduction import bundled_steps, checkpoint_steps, missing, run_step
    from .console import output_console, print_line

    if args.recipe is None:
        raise InputError(f"which recipe? Expected one of: {', '.join(recipe_names())}.")
    recipe = load_recipe(args.recipe)
    if args.image is not None and not args.image.is_file():
        raise InputError(f"--image {str(args.image)!r} is not a file. Expected the picture of a dialogue.")
    if args.plot is not None:
        check_plot(args.plot, folder=True)
    figures = recipe.figures + (() if args.published is None else read_figures(args.published))
    options = _options(args, recipe)
    lacking = missing(recipe, options)
    on_checkpoints = args.on == "checkpoints" or (args.on == "auto" and not lacking)
    if on_checkpoints and lacking and not args.dry_run:
        raise InputError(f"recipe {recipe.name!r} cannot run on the paper's checkpoints:\n- " + "\n- ".join(lacking))
    _refuse_unread(args, recipe, lacking, on_checkpoints=on_checkpoints)
    steps = checkpoint_steps(recipe, options) if on_checkpoints else bundled_steps(recipe, options)
    console = output_console()
    where = _where(on_checkpoints, [] if args.on == "bundled" and not on_checkpoints else lacking)
    if args.dry_run:
        for line in (f"# {recipe.title} ({recipe.source})", *(f"# {part}" for part in where.splitlines() if part)):
            print_line(console, line)
        for step in steps:
            print_line(console, str(step))
        return 0
    dates = []
    for number, step in enumerate(steps, start=1):
        print_line(console, f"[{number}/{len(steps)}] {step}", style="dim")
        dates.append(run_step(step))
    head = [
        f"# {recipe.title}",
        _provenance(args, recipe, steps, dates),
        where,
        "\n".join(f"- {n}" for n in recipe.notes),
    ]
    sections, measured = _outcome(recipe, steps, figures, on_checkpoints=on_checkpoints, plot=args.plot)
    page = "\n\n".join([*head, *sections]) + "\n"
    print_line(console, page)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(page, encoding="utf-8")
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(_json(args, recipe, steps, figures, measured, head[1], on_checkpoints), encoding="utf-8")
    return 0


def _refuse_unread(args: argparse.Namespace, recipe: Recipe, lacking: Sequence[str], *, on_checkpoints: bool) -> None:
    """Fail on an option that says nothing to this run, which would look as if it had been followed."""
    if on_checkpoints:
        unread = ["--model"] if args.model is not None else []
        where = "on the paper's checkpoints"
    else:
        unread = [name for name, value in (("--image", args.image), ("--include-path", args.include_path)) if value]
        where = "on a bundled model" + (", for:\n- " + "\n- ".join(lacking) if args.on == "auto" else "")
    if recipe.kind == "profile" or (recipe.kind == "dialogue" and on_checkpoints):
        unread += [name for name, value in (("--questions", args.questions), ("--tasks", args.tasks)) if value]
    if unread:
        raise InputError(f"{', '.join(unread)}: not read by recipe {recipe.name!r} {where}")


def _list() -> int:
    from ..evaluate.recipe import load_recipe, recipe_names
    from .console import output_console, print_table

    rows = []
    for name in recipe_names():
        recipe = load_recipe(name)
        models = ", ".join(checkpoint.name for checkpoint in recipe.models)
        known = "by topv profile" if recipe.kind == "profile" else str(len(recipe.figures))
        rows.append([name, recipe.title, recipe.source, models, known])
    print_table(output_console(), ["recipe", "shows", "in the paper", "on", "figures known"], rows)
    return 0


def _options(args: argparse.Namespace, recipe: Recipe) -> Options:
    from ..evaluate.reproduction import Options
    from ..loading import placement

    device, _ = placement(args.device, args.dtype)
    return Options(
        work=args.work / recipe.name,
        checkpoints=args.checkpoints,
        model=args.model,
        device=str(device),
        dtype=args.dtype,
        tasks=None if args.tasks is None else tuple(dict.fromkeys(args.tasks.split(","))),
        questions=args.questions,
        include_path=args.include_path,
        image=args.image,
    )


def _where(on_checkpoints: bool, lacking: Sequence[str]) -> str:
    """What ran, in words."""
    reasons = "".join(f"\n- {reason}" for reason in lacking)
    if on_checkpoints:
        return "What ran: the paper's checkpoints." + (f"\nBefore that can run:\n{reasons}" if lacking else "")
    text = (
        "What ran: a bundled model on bundled tasks, **not** the paper's models and data. The measured figures compare "
        "the methods with one another; none of them is to be held against a published one."
    )
    return text + (f" The paper's own could not run:\n{reasons}" if lacking else "")


def _provenance(args: argparse.Namespace, recipe: Recipe, steps: Sequence[Step], dates: Sequence[str]) -> str:
    import shlex

    from ..evaluate.reproduction import versions_of
    from ..measure.environment import describe_environment

    environment = describe_environment()
    versions = dict.fromkeys(f"{name} {version}" for step in steps for name, version in versions_of(step).items())
    lines = [f"- Command: `{shlex.join(args.command_line)}`", f"- Paper: arXiv 2503.18278, {recipe.source}"]
    lines += [f"- Ran: `{step}`" for step in steps]
    lines.append(f"- Versions: {', '.join(versions)}; {environment.cpu}")
    lines.append(f"- Date: {' to '.join(dict.fromkeys((min(dates), max(dates))))}")
    return "\n".join(lines)


def _outcome(
    recipe: Recipe, steps: Sequence[Step], figures: Sequence[Figure], *, on_checkpoints: bool, plot: Path | None
) -> tuple[list[str], Any]:
    """Markdown sections, and the same as plain values."""
    from ..evaluate.reproduction import read_answers, read_scores
    from ..evaluate.reproduction_page import (
        bundled_sections,
        checkpoint_section,
        dialogue_section,
        published_section,
    )

    if recipe.kind == "profile":
        pages = [step.output.read_text(encoding="utf-8").replace("\n## ", "\n### ") for step in steps]
        return [page.replace("# Memory", "## Memory", 1).strip() for page in pages], pages
    sections = [published_section(recipe, figures)]
    if not on_checkpoints:
        (step,) = steps
        configurations, answers = read_answers(step, recipe)
        made_with = json.loads(step.output.read_text(encoding="utf-8"))["made_with"]
        sections += ["## Measured\n\n" + "\n".join(made_with[1:3])]
        sections += bundled_sections(recipe, configurations, answers)
        if plot is not None:
            _plot(recipe, configurations, answers, plot)
        return sections, {key: {t: [a.to_dict() for a in f] for t, f in by.items()} for key, by in answers.items()}
    measured: dict[str, dict[str, Any]] = {}
    for step in steps:
        if recipe.kind == "dialogue":
            (case,) = json.loads(step.output.read_text(encoding="utf-8"))["cases"]
            replies = [result["answer"] for result in case["results"]]
            measured[step.model] = dict(zip((arm.label for arm in recipe.arms), replies, strict=True))
        else:
            measured.setdefault(step.model, {})[step.arm or ""] = read_scores(step, recipe)
    for model, found in measured.items():
        if recipe.kind == "dialogue":
            sections.append(dialogue_section(recipe, model, found))
        else:
            sections.append(checkpoint_section(recipe, model, found, figures))
    return sections, measured


def _plot(recipe: Recipe, configurations: Any, answers: Any, folder: Path) -> None:
    from ..evaluate.reproduction_page import heat_maps, mean_accuracy
    from ..report.accuracy_plot import plot_heat_map

    means = {c.label: mean_accuracy(answers[c.key]) for c in configurations}
    for row, column, ys, xs, arms in heat_maps(recipe):
        folder.mkdir(parents=True, exist_ok=True)
        values = [[means[arms[y, x].label] for x in xs] for y in ys]
        plot_heat_map(values, (row, ys), (column, xs), folder / f"{recipe.name}-{row}-{column}.png")


def _json(
    args: argparse.Namespace,
    recipe: Recipe,
    steps: Sequence[Step],
    figures: Sequence[Figure],
    measured: Any,
    made_with: str,
    on_checkpoints: bool,
) -> str:
    from dataclasses import asdict

    record = {
        "recipe": recipe.name,
        "command": args.command_line,
        "made_with": made_with.splitlines(),
        "ran_on": "checkpoints" if on_checkpoints else "bundled",
        "steps": [[step.program, *step.arguments] for step in steps],
        "published": [asdict(figure) for figure in figures],
        "measured": measured,
    }
    return json.dumps(record, indent=1) + "\n"
