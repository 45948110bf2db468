"""Show which architectures of transformers topv prunes exactly, found out by running a tiny model of each."""

from __future__ import annotations

import argparse
from pathlib import Path

EPILOG = """\
examples:
  topv models                              the table that is shipped

what the columns mean:
  eager, sdpa, flex   forward equals the masked, unpruned model, under each attention backend
  generate            so does every generated token's distribution
  padded batch        a left-padded batch keeps the same tokens as its samples alone, and answers alike
  several images, video   as forward, for such prompts

The table is made in a checkout of topv, from its root, where models can be run again on the installed transformers:
  python -m tools.probe qwen2_5_vl gemma3
  python -m tools.probe all --out docs/models.md --json src/topv/models/matrix.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `topv models`."""
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the matrix, and write it where asked."""
    from ..models.matrix import line, load_matrix, markdown, save_matrix, summary
    from .console import output_console, print_line, quiet_transformers

    quiet_transformers()
    console = output_console()
    outcomes, versions = load_matrix()
    for outcome in outcomes:
        print_line(console, line(outcome))
    print_line(console, "")
    print_line(console, summary(outcomes))
    if args.out is not None:
        args.out.write_text(markdown(outcomes, versions), encoding="utf-8")
    if args.json is not None:
        save_matrix(outcomes, args.json, versions)
    return 0
