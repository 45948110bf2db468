"""What it is worth to keep everything that may be asked about: TopV against a choice that is told where that is.

    python benchmarks/foreground.py --out docs/results/foreground.md

"foreground first" keeps the visual tokens that show an object, a word or a box of the drawn scene, which no method can
know, and fills up with the tokens that TopV ranks next; "background first" keeps the others. Same budget for all.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import common
from topv.evaluate import (
    TASKS,
    Answer,
    Asker,
    at_equal_reductions,
    bundled_examples,
    grids_of,
    markdown,
    provenance,
    view_of,
)
from topv.evaluate.examples import foreground_tokens
from topv.evaluate.runner import plan_batches
from topv.loading import load_model
from topv.methods import Evidence, TopV

REDUCTIONS = (0.5, 0.75)


@dataclass(frozen=True, kw_only=True)
class Told(TopV):
    """TopV's ranking within what is preferred, and behind it within the rest.

    Args:
        sign: 1 to prefer the foreground, -1 the background.
        shown: for each prompt of the batch to come, BoolTensor, which of its visual tokens show foreground.
    """

    sign: int = 1
    shown: list[torch.Tensor] = field(default_factory=list, repr=False)

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        scores = super().score(evidence, count)
        grids, tokens = scores.shape
        own = len(evidence.images) // len(self.shown)
        assert evidence.images == tuple(range(own)) * len(self.shown), "grids stand prompt by prompt"
        place = scores.argsort(dim=1, stable=True).argsort(1).float() / tokens
        return place + 2.0 * self.sign * torch.stack(self.shown).view(grids, tokens)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--models", default="mini,tiled", help="bundled models, comma-separated")
    parser.add_argument("--questions", type=int, default=100, help="per task (100)")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--out", type=Path, help="write the page there")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    command = ["python", "benchmarks/foreground.py", *(sys.argv[1:] if arguments is None else arguments)]
    sections = [INTRODUCTION]
    for name in args.models.split(","):
        model, processor = load_model(name)
        view = view_of(model, processor)
        examples = bundled_examples(args.split, args.questions, TASKS, view.geometry)
        flat = [example for task in TASKS for example in examples[task]]
        sections += [f"## {name}", provenance(command, model, split=args.split, questions=len(flat))]
        rows = []
        methods = [("topv", TopV()), ("foreground first", Told()), ("background first", Told(sign=-1))]
        plain: dict[float | None, list[Answer]] = {}
        for configuration in at_equal_reductions(model, methods, REDUCTIONS, grids=grids_of(model, processor, flat[0])):
            answers = answer(model, processor, configuration.method, flat, args.split, view)
            against = plain.setdefault(configuration.target, answers)
            cells = [f"{100 * mean(answers, task):.1f}" for task in TASKS]
            low, middle, high = (
                100 * value for value in common.mean_over_tasks(common.by_task(answers), common.by_task(against))
            )
            rows.append(
                [
                    configuration.label,
                    "" if configuration.target is None else f"{configuration.target:.0%}",
                    *cells,
                    f"{100 * sum(mean(answers, task) for task in TASKS) / len(TASKS):.1f}",
                    "" if against is answers else f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]",
                ]
            )
        sections.append(markdown(["choice", "visual FLOPs removed", *TASKS, "mean", "mean - topv"], rows))
    page = "\n\n".join(sections) + "\n"
    print(page)
    if args.out is not None:
        args.out.write_text(page, encoding="utf-8")
    return 0


INTRODUCTION = """\
# Is it enough to keep the foreground?

"foreground first" keeps the visual tokens that show an object, a word or a box of the drawn scene, which no method can
know, and fills up with those that TopV ranks next; "background first" keeps the others. Accuracy in %, for caption and
description the F1 over words; paired differences to TopV with 95 % intervals by resampling pictures."""


def answer(model: Any, processor: Any, method: Any, examples: Sequence[Any], split: str, view: Any) -> list[Answer]:
    """What is answered to the examples, in their order."""
    found: dict[int, Answer] = {}
    for batch in plan_batches(examples, 32):
        asked = [examples[place] for place in batch]
        told = method
        if isinstance(method, Told):
            told = replace(method, shown=[torch.from_numpy(foreground_tokens(split, e.scene, view)) for e in asked])
        with Asker(model, processor, told) as asker:
            found.update(zip(batch, asker.ask(asked), strict=True))
    return [found[place] for place in range(len(examples))]


def mean(answers: Sequence[Answer], task: str) -> float:
    own = [answer.score for answer in answers if answer.task == task]
    return sum(own) / len(own)


if __name__ == "__main__":
    raise SystemExit(main())
