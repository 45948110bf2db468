"""The matrix of architectures: which topv prunes exactly, and why the others cannot be pruned. Made by running them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .registry import FAMILIES

__all__ = ["COLUMNS", "COMMAND", "MATRIX_FILE", "Outcome", "line", "load_matrix", "markdown", "save_matrix", "summary"]

COLUMNS = ("eager", "sdpa", "flex", "generate", "batch", "images", "video")
"""Forward exact under each attention backend; generation exact; a padded batch equals its samples alone; several
images in a prompt; a video."""

MATRIX_FILE = Path(__file__).with_name("matrix.json")
"""The matrix that is shipped."""

COMMAND = "python -m tools.probe all"
"""What makes it anew, in a checkout of topv."""

_HEADINGS = {
    "eager": "eager",
    "sdpa": "sdpa",
    "flex": "flex",
    "generate": "generate",
    "batch": "padded batch",
    "images": "several images",
    "video": "video",
}


@dataclass
class Outcome:
    """What was found out about one architecture.

    Attributes:
        model_type: the architecture.
        cells: for each of `COLUMNS` "yes", "no" or "-" (does not apply).
        notes: for each "no" what went wrong.
        family: the class that serves it, "generic" where none is needed.
        reason: why the architecture cannot be pruned at all, or None.
    """

    model_type: str
    cells: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    family: str = ""
    reason: str | None = None

    @property
    def exact(self) -> bool:
        """Whether forward and generation are exact."""
        return self.cells.get("eager") == self.cells.get("generate") == "yes"


def save_matrix(outcomes: Sequence[Outcome], file: Path, versions: dict[str, str]) -> None:
    """Write outcomes as JSON."""
    rows = [
        {"model_type": o.model_type, "family": o.family, "cells": o.cells, "notes": o.notes, "reason": o.reason}
        for o in sorted(outcomes, key=lambda o: o.model_type)
    ]
    file.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")


def load_matrix(file: Path = MATRIX_FILE) -> tuple[list[Outcome], dict[str, str]]:
    """The outcomes in a file, and the versions they were found with."""
    held = json.loads(file.read_text())
    return [Outcome(**row) for row in held["rows"]], held["versions"]


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many architectures are exact, of how many that have visual tokens in a causal decoder."""

    def because(*reasons: str) -> list[Outcome]:
        return [o for o in outcomes if o.reason is not None and o.reason.startswith(reasons)]

    missing, failing = because("missing package"), because("fails unpruned")
    concerned = [o for o in outcomes if o.reason is None] + because("window", "hidden prefix", "not probed")
    exact = [o for o in concerned if o.exact]
    others = len(outcomes) - len(concerned) - len(missing) - len(failing)
    failed = f" {', '.join(o.model_type for o in failing)} cannot run at all in this transformers." if failing else ""
    return (
        f"{len(exact)} of the {len(concerned)} architectures that can be built here and whose visual tokens enter a "
        f"causal decoder are exact in forward and generation ({len(exact) / max(1, len(concerned)):.0%}). "
        f"{len(missing)} more need a package that is not installed, {others} have nothing to prune there.{failed}"
    )


def markdown(outcomes: Sequence[Outcome], versions: dict[str, str]) -> str:
    """The matrix as a page."""
    lines = [
        "# Supported models",
        "",
        f"Made by `{COMMAND}` with {', '.join(f'{name} {version}' for name, version in versions.items())}: a tiny",
        "random model of every image-text-to-text architecture of transformers, pruned and compared with the unpruned",
        "model that hides the same tokens (error at most 1e-5, in float32; a padded batch and its samples alone 1e-4).",
        "",
        summary(outcomes),
        "",
        "`-`: does not apply, or transformers does not offer it. *generic*: no code of its own was needed; its image",
        "tokens are then pruned without knowledge of their places, so methods that use places refuse.",
        "",
        "| architecture | family | " + " | ".join(_HEADINGS[c] for c in COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    served = [o for o in outcomes if o.reason is None]
    for o in sorted(served, key=lambda o: (o.model_type not in FAMILIES, o.model_type)):
        name = f"**{o.model_type}**" if o.model_type in FAMILIES else o.model_type
        lines.append(f"| {name} | {o.family} | " + " | ".join(o.cells.get(c, "") for c in COLUMNS) + " |")
    failing = [(o, c) for o in served for c in COLUMNS if o.cells.get(c) == "no"]
    if failing:
        lines += ["", "## What is not exact", ""]
        lines += [f"- {o.model_type}, {_HEADINGS[c]}: {o.notes[c]}" for o, c in failing]
    lines += ["", "## What cannot be pruned, and why", ""]
    lines += [f"- {o.model_type}: {o.reason}" for o in outcomes if o.reason is not None]
    return "\n".join(lines) + "\n"


def line(outcome: Outcome) -> str:
    """One architecture for a terminal: its cells and what went wrong, or why it cannot be pruned."""
    if outcome.reason is not None:
        return f"{outcome.model_type:<24} cannot: {outcome.reason}"
    cells = "  ".join(f"{column} {outcome.cells.get(column, '?'):<3}" for column in COLUMNS)
    notes = "".join(
        f"\n    {column}: {outcome.notes[column]}" for column, cell in outcome.cells.items() if cell == "no"
    )
    return f"{outcome.model_type:<24} {cells}{notes}"
