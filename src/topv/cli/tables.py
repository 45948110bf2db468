"""A comparison in the terminal: the answers to each question, then one table of what each method saved."""

from __future__ import annotations

from rich.console import Console

from ..report import Case, Comparison, Summary
from ..report.text import format_kept, format_kv, format_share, format_time
from .console import print_columns, print_line, print_table

__all__ = ["print_comparison"]


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the answers case by case, and the savings over all cases."""
    model = comparison.model
    print_line(console, f"{model['name']} ({model['class']}), {model['dtype']}, {comparison.device}", style="dim")
    for case in comparison.cases:
        console.print()
        _print_answers(console, case)
    console.print()
    if len(comparison.cases) > 1:
        print_line(console, f"All {len(comparison.cases)} cases (means)", style="bold")
    _print_savings(console, comparison)
    if comparison.timing is not None:
        print_line(
            console,
            "prefill, decode: time over the unpruned model's, below 1 is faster; ~ where the interval includes 1",
            style="dim",
        )


def _print_answers(console: Console, case: Case) -> None:
    print_line(console, case.prompt, style="bold")
    rows, columns = case.grid
    expected = "" if case.expected is None else f", expected: {case.expected}"
    print_line(console, f"{case.image_name}, {rows} x {columns} visual tokens{expected}", style="dim")
    mark = {None: "", True: " ✓", False: " ✗"}
    print_columns(
        console,
        [(result.label, (result.answer or "(no answer)") + mark[result.correct]) for result in case.results],
    )


def _print_savings(console: Console, comparison: Comparison) -> None:
    summaries = comparison.summaries
    timed = comparison.timing is not None
    asked = any(summary.asked for summary in summaries)
    foreground = any(summary.foreground_kept is not None for summary in summaries)
    header = ["method", *["right"] * asked, "visual tokens", "FLOPs saved", "KV cache"]
    header += ["foreground"] * foreground + ["prefill", "decode"] * timed
    rows = [_row(summary, asked=asked, foreground=foreground, timed=timed) for summary in summaries]
    print_table(console, header, rows)


def _row(summary: Summary, *, asked: bool, foreground: bool, timed: bool) -> list[str]:
    row = [summary.label]
    if asked:
        row.append(f"{summary.right} of {summary.asked}")
    row += [
        format_kept(summary.visual_tokens, summary.kept_tokens),
        format_share(summary.visual_flops_reduction) if summary.pruned else "",
        format_kv(summary.kv_bytes, summary.kv_bytes_unpruned),
    ]
    if foreground:
        row.append("" if summary.foreground_kept is None else format_share(summary.foreground_kept))
    if timed:
        row.append(format_time(summary.prefill, summary.prefill_seconds))
        row.append(format_time(summary.decode, summary.decode_seconds))
    return row
