"""What `topv profile` prints and writes: tables, a CSV of every token, Markdown, pictures."""

from __future__ import annotations

import argparse
import datetime
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..measure import describe_environment
from ..report.memory import PromptMemory, memory_rows, memory_table, write_rows
from ..report.memory_paper import PUBLISHED_ABSTRACT, paper_table
from ..report.memory_plot import draw_paper_figures, draw_profile
from ..report.text import format_bytes

__all__ = ["Table", "tables", "write_output"]


class Table(NamedTuple):
    """A table with what is said above it.

    Attributes:
        title: its heading.
        notes: lines between heading and table.
        header: names of the columns.
        rows: cells.
    """

    title: str
    notes: list[str]
    header: list[str]
    rows: list[list[str]]


def tables(prompts: Sequence[PromptMemory], *, paper: bool) -> list[Table]:
    """A table for each prompt, and with `paper` one that holds the published reductions beside the measured."""
    found = []
    for prompt in prompts:
        timeline = prompt.baseline.timeline
        where = prompt.image if prompt.task is None else f"{prompt.image}, task {prompt.task}"
        what = f"dynamic memory over {len(timeline.samples)} tokens, {timeline.source}"
        notes = [f"{where}; weights {format_bytes(timeline.static)}; {what}"]
        coarse = next((a.resident for a in prompt.arms if a.resident is not None), None)
        if coarse is not None and "began" in coarse.timeline.source:
            notes.append(f"peak resident is coarse here: {coarse.timeline.source}")
        found.append(Table(prompt.prompt, notes, *memory_table(prompt)))
    if paper:
        found.append(Table("Dynamic memory: here, and in the paper", [PUBLISHED_ABSTRACT], *paper_table(prompts)))
    return found


def write_output(args: argparse.Namespace, model: Any, prompts: Sequence[PromptMemory]) -> list[Path]:
    """Write the CSV, the Markdown and the pictures that were asked for.

    Returns:
        The files.
    """
    folder: Path = args.out
    folder.mkdir(parents=True, exist_ok=True)
    environment = describe_environment()
    provenance = {
        "model": args.model,
        "class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "logits": "full" if args.full_logits else "last",
        "device": environment.device_name(next(model.parameters()).device),
        **{name: environment.versions[name] for name in ("topv", "torch", "transformers")},
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
    rows, page = folder / "memory.csv", folder / "memory.md"
    write_rows(memory_rows(prompts, provenance), rows)
    page.write_text(_page(args, provenance, prompts), encoding="utf-8")
    paths = [rows, page]
    name = "topv-mini" if args.model == "mini" else str(args.model)
    if args.plot:
        picture = folder / "memory.png"
        draw_profile(prompts, name, picture)
        paths.append(picture)
    if args.paper_figures:
        paths += draw_paper_figures(prompts, name, folder)
    return paths


def _page(args: argparse.Namespace, provenance: dict[str, str], prompts: Sequence[PromptMemory]) -> str:
    versions = ", ".join(f"{name} {provenance[name]}" for name in ("topv", "torch", "transformers"))
    lines = [
        "# Memory, token by token",
        "",
        f"- Command: `{shlex.join(args.command_line)}`",
        f"- Model: {provenance['model']} ({provenance['class']}), {provenance['dtype']}, {provenance['attention']}",
        f"- Prefill logits: {'at every position' if args.full_logits else 'at the last position'}",
        f"- Machine: {provenance['device']}; {versions}; {provenance['date']}",
    ]
    for table in tables(prompts, paper=args.paper_figures):
        lines += ["", f"## {table.title}", "", *table.notes, ""]
        lines.append("| " + " | ".join(table.header) + " |")
        lines.append("|" + "---|" * len(table.header))
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    return "\n".join(lines) + "\n"
