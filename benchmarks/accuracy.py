"""Accuracy of both bundled models under every method: docs/results/accuracy.md from one command.

    python benchmarks/accuracy.py                       200 questions a task on the test split, resumable
    python benchmarks/accuracy.py --questions 2000 --device cuda --batch-size 256

Methods that prune inside the decoder are compared with one another, and so are those that prune before it. Each such
field is one `topv eval`, whose answers are kept in --work, so that a run that was cut short goes on, and a field that
was evaluated by the same command with the same weights is not evaluated again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
from topv import load_mini
from topv.evaluate import Answer
from topv.evaluate.provenance import weights_digest

MODELS = {"mini": "topv-mini", "tiled": "the tiled sibling"}
INSIDE = "topv,topv:importance=demand,facilitylocation,meancost,uniform,random,fastv,vtw,pyramiddrop,sparsevlm"
BEFORE = (
    "topv:stage=encoder,topv:stage=projector,facilitylocation:stage=projector,divprune,cdpruner,visionzip,"
    "uniform:layer=0,random:layer=0"
)
MASKS = "topv," + ",".join(f"random:seed={seed}" for seed in range(5))


@dataclass(frozen=True)
class Field:
    """Methods that are compared with one another on one model.

    Attributes:
        model: the bundled model.
        name: where they prune.
        methods: their specifications.
        reductions: shares of visual FLOPs to remove.
        note: what a reader has to know, or "".
        foreground: whether the share of the foreground that each keeps is measured too.
    """

    model: str
    name: str
    methods: str
    reductions: str
    note: str = ""
    foreground: bool = False

    @property
    def stem(self) -> str:
        return f"{self.model}-{self.name.replace(',', '').replace(' ', '-')}"

    def command(self, options: argparse.Namespace) -> list[str]:
        """The evaluation of this field."""
        where = options.work / self.stem
        return [
            *("topv", "eval", "--model", self.model, "--methods", self.methods, "--reductions", self.reductions),
            *("--split", options.split, "--questions", str(options.questions)),
            *("--batch-size", str(options.batch_size), "--device", options.device),
            *("--work", f"{where}", "--out", f"{where}.md", "--json", f"{where}.json", "--plot", f"{where}.png"),
            *([] if self.foreground and not options.no_foreground else ["--no-foreground"]),
        ]


def fields(models: Sequence[str]) -> list[Field]:
    """Every comparison, the longest first."""
    inside = INSIDE.replace("pyramiddrop", "pyramiddrop:layer=2")
    early = {
        "mini": (
            _with(INSIDE, "layer=1"),
            "Pruning after layer 2 of 12 cannot remove 90 %, so at 90 % every method prunes after layer 1.",
        ),
        "tiled": (
            _with(INSIDE, "layer=1,budget=image"),
            (
                "Pruning after layer 2 of 12 cannot remove 90 %, nor can it with one token of each of five grids. So "
                "at 90 % every method prunes after layer 1, and the grids of an image share its budget."
            ),
        ),
    }
    return [
        field
        for model in models
        for field in (
            Field(model, "in the decoder", inside, "0.25,0.5,0.75", foreground=True),
            Field(model, "before the decoder", BEFORE, "0.25,0.5,0.75,0.9"),
            Field(model, "in the decoder, early", early[model][0], "0.9", early[model][1]),
            Field(
                model,
                "random masks",
                MASKS,
                "0.5,0.75",
                "Random keeps the same cells of every picture, and which these are makes a difference that no interval "
                "over pictures shows. Seed 0 is the row of the tables above.",
            ),
        )
    ]


def _with(methods: str, settings: str) -> str:
    """Every method but VTW, whose layer is its budget, with these settings."""
    return ",".join(
        spec if spec == "vtw" else f"{spec}{',' if ':' in spec else ':'}{settings}" for spec in methods.split(",")
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--models", default="mini,tiled", help="bundled models, comma-separated (mini,tiled)")
    parser.add_argument("--questions", type=int, default=200, help="questions a task (200)")
    parser.add_argument("--split", default="test", choices=("validation", "test"), help="scenes to ask about (test)")
    parser.add_argument("--batch-size", type=int, default=32, help="questions per batch (32)")
    parser.add_argument("--device", default="cpu", help="where the models run (cpu)")
    parser.add_argument("--processes", type=int, default=1, help="fields evaluated at a time (1)")
    parser.add_argument("--no-foreground", action="store_true", help="leave out the foreground tables")
    parser.add_argument("--fields", default="", help="only fields with this in their name")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="folder for answers (runs/accuracy)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/accuracy.md"), help="the page")
    options = parser.parse_args()
    every = [field for field in fields(options.models.split(",")) if options.fields in field.stem]
    options.work.mkdir(parents=True, exist_ok=True)
    weights = {name: weights_digest(load_mini(tiled=name == "tiled")[0]) for name in {field.model for field in every}}

    def run(field: Field) -> None:
        command, tables = field.command(options), options.work / f"{field.stem}.md"
        if tables.exists() and f"- Command: `{shlex.join(command)}`" in tables.read_text().splitlines():
            setup = json.loads((options.work / field.stem / "setup.json").read_text())
            if setup["weights"] == weights[field.model]:
                return
        with open(options.work / f"{field.stem}.log", "w") as log:
            subprocess.run([sys.executable, "-m", *command], check=True, stdout=log, stderr=subprocess.STDOUT)

    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(run, every))
    command = f"python benchmarks/{shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}"
    options.out.write_text(page(every, options, command), encoding="utf-8")


def page(every: Sequence[Field], options: argparse.Namespace, command: str) -> str:
    """The summary of all fields, and each field's own tables."""
    parts = [
        "# Accuracy at equal savings",
        f"- Command: `{command}`; each field below names its own `topv eval`.",
        (
            "How to read it: the mean over eight tasks, in %, at equal shares of visual FLOPs removed; in brackets the "
            "paired difference to the unpruned model with its 95 % interval, in points. Per-task accuracy, differences "
            "between methods, target sizes and foreground are further down."
        ),
    ]
    details = []
    for field in every:
        found = json.loads((options.work / f"{field.stem}.json").read_text())["answers"]
        title = f"{MODELS[field.model]}, {field.name}"
        picture = f"accuracy-{field.stem}.png"
        shutil.copyfile(options.work / f"{field.stem}.png", options.out.parent / picture)
        parts += [f"## {title}", *([field.note] if field.note else []), summary(found), f"![{title}]({picture})"]
        own = (options.work / f"{field.stem}.md").read_text().split("\n", 1)[1].strip()
        details += [f"## In full: {title}", own]
    return "\n\n".join([*parts, *details]) + "\n"


def summary(answers: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> str:
    """Methods by reductions: the mean over tasks and its paired difference to the unpruned model."""
    scored = {
        key: {task: [Answer(**answer) for answer in own] for task, own in found.items()}
        for key, found in answers.items()
    }
    base = scored["unpruned"]
    keys = [key.rsplit("@", 1) for key in scored if key != "unpruned"]
    targets = sorted({float(target) for _, target in keys})
    rows = [
        ["method", *(f"{target:.0%} removed" for target in targets)],
        ["---"] * (1 + len(targets)),
        ["unpruned", *[f"{100 * common.mean_over_tasks(base)[1]:.1f}"] * len(targets)],
    ]
    for label in dict.fromkeys(label for label, _ in keys):
        cells = []
        for target in targets:
            found = scored.get(f"{label}@{target:g}")
            if found is None:
                cells.append("")
                continue
            low, difference, high = (100 * value for value in common.mean_over_tasks(found, base))
            cells.append(f"{100 * common.mean_over_tasks(found)[1]:.1f} ({difference:+.1f} [{low:+.1f}, {high:+.1f}])")
        rows.append([label, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    main()
