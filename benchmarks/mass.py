"""A budget that follows the picture against the same for every picture, at the same mean visual FLOPs.

    python benchmarks/mass.py --out mass.md

Each method answers the questions with `mass` deciding how many tokens stay, and again with the budget that removes, of
every prompt, the share of visual FLOPs that `mass` removed on average.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from topv.ask.method_spec import parse_methods
from topv.evaluate import (
    TASKS,
    Answer,
    Configuration,
    at_equal_reductions,
    bundled_examples,
    evaluate,
    grids_of,
    macro_interval,
    markdown,
    provenance,
    view_of,
)
from topv.loading import load_model

METHODS = ("topv", "topv:importance=demand", "meancost")
MASSES = (0.7, 0.85)
HEADER = ("method", "visual FLOPs removed", "the same for all", "accuracy", "the same for all", "paired difference")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mini,tiled", help="bundled models, comma-separated")
    parser.add_argument("--questions", type=int, default=100, help="per task (100)")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--out", type=Path, help="write the page there")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    command = ["python", "benchmarks/mass.py", *(sys.argv[1:] if arguments is None else arguments)]
    sections = ["# Budgets that follow the picture"]
    for name in args.models.split(","):
        model, processor = load_model(name)
        view = view_of(model, processor)
        examples = bundled_examples(args.split, args.questions, TASKS, *([] if view is None else [view.geometry]))
        flat = [example for task in TASKS for example in examples[task]]
        grids = grids_of(model, processor, flat[0])
        rows = []
        for text in METHODS:
            method = parse_methods([text])[0].method
            follow = [Configuration(f"{text} mass={mass:g}", None, method.with_budget(mass=mass)) for mass in MASSES]
            for configuration in follow:
                answers = evaluate(model, processor, flat, [configuration])[configuration.key]
                removed = _removed(answers)
                (_, fixed) = at_equal_reductions(model, [(text, method)], [removed], grids=grids)
                others = evaluate(model, processor, flat, [fixed])[fixed.key]
                paired = [a.score - b.score for a, b in zip(answers, others, strict=True)]
                low, mean, high = (100 * value for value in _over_tasks(answers, paired))
                rows.append(
                    [
                        configuration.label,
                        f"{removed:.1%}",
                        f"{_removed(others):.1%}",
                        *(f"{100 * _over_tasks(own, [a.score for a in own])[1]:.1f}" for own in (answers, others)),
                        f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]",
                    ]
                )
        sections += [f"## {name}", provenance(command, model, split=args.split, questions=len(flat))]
        sections.append(markdown(HEADER, rows))
    page = "\n\n".join(sections) + "\n"
    print(page)
    if args.out is not None:
        args.out.write_text(page, encoding="utf-8")
    return 0


def _removed(answers: Sequence[Answer]) -> float:
    return float(np.mean([answer.visual_flops_reduction for answer in answers]))


def _over_tasks(answers: Sequence[Answer], values: Sequence[float]) -> tuple[float, float, float]:
    tasks: dict[str, tuple[list[float], list[int]]] = {task: ([], []) for task in TASKS}
    for answer, value in zip(answers, values, strict=True):
        tasks[answer.task][0].append(value)
        tasks[answer.task][1].append(answer.scene)
    return macro_interval(tasks)


if __name__ == "__main__":
    raise SystemExit(main())
