"""Show which architectures of transformers topv prunes exactly, found out by running a tiny model of each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..probe.probe import Outcome

EPILOG = """\
examples:
  topv models                              the table that is shipped
  topv models --probe qwen2_5_vl gemma3    run these two again, here and now
  topv models --probe all --out docs/models.md --json src/topv/probe/matrix.json    make the table anew

what the columns mean:
  eager, sdpa, flex   forward equals the masked, unpruned model, under each attention backend
  generate            so does every generated token's distribution
  padded batch        a left-padded batch keeps the same tokens as its samples alone, and answers alike
  several images, video   as forward, for such prompts"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `topv models`."""
    parser.add_argument("--probe", nargs="+", metavar="TYPE", help="probe these model types now, or 'all'")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the matrix, probing first if asked to."""
    from .console import output_console, print_line, quiet_transformers

    quiet_transformers()
    from ..probe.matrix import architectures, load_matrix, markdown, probe_all, save_matrix, summary

    console = output_console()
    if not args.probe:
        outcomes, versions = load_matrix()
        for outcome in outcomes:
            print_line(console, _line(outcome))
    else:
        from ..measure.environment import describe_environment

        found = describe_environment().versions
        versions = {name: found[name] for name in ("topv", "torch", "transformers")}
        names = architectures() if args.probe == ["all"] else args.probe
        outcomes = probe_all(names, lambda outcome: print_line(console, _line(outcome)))
    print_line(console, "")
    print_line(console, summary(outcomes))
    command = f"topv models --probe {' '.join(args.probe)}" if args.probe else "topv models --probe all"
    if args.out is not None:
        args.out.write_text(markdown(outcomes, versions, command), encoding="utf-8")
    if args.json is not None:
        save_matrix(outcomes, args.json, versions)
    return 0


def _line(outcome: Outcome) -> str:
    from ..probe.probe import COLUMNS

    if outcome.reason is not None:
        return f"{outcome.model_type:<24} cannot: {outcome.reason}"
    cells = "  ".join(f"{column} {outcome.cells.get(column, '?'):<3}" for column in COLUMNS)
    notes = "".join(
        f"\n    {column}: {outcome.notes[column]}" for column, cell in outcome.cells.items() if cell == "no"
    )
    return f"{outcome.model_type:<24} {cells}{notes}"
