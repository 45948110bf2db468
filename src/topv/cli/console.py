"""Writing to the terminal: tables where there is one, plain text where there is not, progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..report.text import printable

__all__ = ["output_console", "print_columns", "print_line", "print_table", "progress", "quiet_transformers"]

_PLAIN_WIDTH = 200


def output_console(stream: TextIO | None = None) -> Console:
    """A console on `stream`, stdout by default: as wide as the terminal, or wide and plain when it is a file."""
    stream = sys.stdout if stream is None else stream
    if stream.isatty():
        return Console(file=stream, highlight=False)
    return Console(file=stream, highlight=False, width=_PLAIN_WIDTH, color_system=None, soft_wrap=True)


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print text that may have come from anywhere: no markup, no control characters."""
    console.print(Text(printable(text), style=style if console.is_terminal else ""))


def print_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with a header."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    table.header_style = "bold" if console.is_terminal else ""
    for name in header:
        table.add_column(name)
    _print(console, table, rows)


def print_columns(console: Console, rows: Sequence[Sequence[str]]) -> None:
    """Print rows with aligned columns, the last one folded where the terminal is narrow."""
    table = Table.grid(padding=(0, 2))
    for _ in rows[0][:-1]:
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    _print(console, table, rows)


def _print(console: Console, table: Table, rows: Sequence[Sequence[str]]) -> None:
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


class Advance(Protocol):
    """Moves a progress bar on."""

    def __call__(self, steps: int = 1) -> None: ...


@contextmanager
def progress(description: str, total: int | None = None, done: int = 0) -> Iterator[Advance]:
    """A progress bar on stderr for the block, on terminals only; calling what it yields advances it.

    Args:
        description: what is going on.
        total: number of steps; None when unknown, for a bar that only moves.
        done: how many of them were done before, which say nothing of how long the others take.
    """
    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn()]
    columns += [MofNCompleteColumn(), TimeRemainingColumn()] if total else []
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total, completed=done)

        def advance(steps: int = 1) -> None:
            bar.advance(task, steps)

        yield advance


def quiet_transformers() -> None:
    """Leave the terminal to topv: transformers says only errors, and draws no bars of its own."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
