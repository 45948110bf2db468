"""Run tiny models of architectures and say how well topv prunes each: ``python -m tools.probe qwen2_5_vl gemma3``.

The shipped matrix and its page are made anew, in some minutes, by

    python -m tools.probe all --out docs/models.md --json src/topv/models/matrix.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Probe the architectures that the command line names, print the outcomes and write them where asked."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("types", nargs="+", metavar="TYPE", help="model types of transformers, or 'all'")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON")
    options = parser.parse_args(arguments)
    from topv.cli.console import quiet_transformers
    from topv.measure.environment import describe_environment
    from topv.models.matrix import line, markdown, save_matrix, summary

    from .architectures import architectures, probe_all

    quiet_transformers()
    names = architectures() if options.types == ["all"] else options.types
    outcomes = probe_all(names, lambda outcome: print(line(outcome), flush=True))
    print(f"\n{summary(outcomes)}")
    found = describe_environment().versions
    versions = {name: found[name] for name in ("topv", "torch", "transformers")}
    if options.out is not None:
        options.out.write_text(markdown(outcomes, versions), encoding="utf-8")
    if options.json is not None:
        save_matrix(outcomes, options.json, versions)


if __name__ == "__main__":
    main()
