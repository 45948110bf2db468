"""Rows of `topv bench` as tables, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..measure.stages import STAGES
from .text import printable

__all__ = ["BenchTable", "bench_tables", "format_ratio", "performance_page"]

Row = Mapping[str, str]

_STAGE_NAMES = {
    "encode": "vision tower",
    "before": "layers before",
    "selection": "selection",
    "after": "layers after",
    "rest": "rest",
}
_PAGE = """\
# Performance

Made by `topv bench --read FILES --markdown docs/results/performance.md` from the rows that the commands below wrote.
Presets have random weights at a model's true shapes, and those that end in `-cpu` at smaller ones of like proportions.
Every row of the files carries what it takes to measure it again.

- **x unpruned**: the median over interleaved rounds of the ratio to the unpruned model in the same round, below 1 is
  less. In brackets the interval of order statistics that holds that median with the probability given above the
  tables. Where the interval holds 1, or half of it is wider than the effect, the ratio is not printed: "unclear".
- **Stages** are medians over the rounds, in ms. *Vision tower* is everything in front of the decoder; *selection* is
  ranking and choosing tokens; *layers before* and *after* are the decoder layers on either side of the pruning layer,
  what a method reads as its evidence included (FastV's attention map among it); *rest* is the head and all else.
- **FLOPs share** is that of the whole prefill in the first table, vision tower and head included, and that of the
  decoder layers in the second; *time / FLOPs share* sets the time, x unpruned, against it: 1 is time that falls exactly
  as FLOPs do.
"""
_NO_GPU = "**Not yet run on a GPU.** The commands are in `benchmarks/accelerator.sh`."


@dataclass(frozen=True)
class BenchTable:
    """A table of text cells under a title."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table in Markdown, its title as bold text."""
        lines = [f"**{self.title}**", "", _line(self.header), "|" + "---|" * len(self.header)]
        return "\n".join(lines + [_line(row) for row in self.rows])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(printable(cell).replace("|", "\\|") for cell in cells) + " |"


def format_ratio(row: Row, name: str) -> str:
    """The ratio in column `name`: its value and interval, or that it is unclear; empty where there is none.

    >>> row = {"r": "0.981", "r_low": "0.93", "r_high": "1.08", "r_clear": "false"}
    >>> format_ratio(row, "r"), format_ratio(row | {"r_high": "0.99", "r_clear": "true"}, "r")
    ('unclear (0.93 to 1.08)', '0.98 (0.93 to 0.99)')
    """
    if not row[name]:
        return ""
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    shown = f"{value:.2f}" if row[f"{name}_clear"] == "true" else "unclear"
    return f"{shown} ({low:.2f} to {high:.2f})"


def bench_tables(rows: Sequence[Row]) -> list[BenchTable]:
    """Tables of times, of stages and of throughput, for the rows of one run of `topv bench`."""
    tables = []
    groups = [list(group) for _, group in groupby(rows, key=lambda row: (row["memory_gib"], row["batch"]))]
    for group in (group for group in groups if not group[0]["memory_gib"]):
        batch = f"batch {group[0]['batch']}"
        tables += [_times(group, batch), _stages(group, batch)]
    throughput = [row for row in rows if not row["memory_gib"]]
    tables.append(_throughput(throughput, "Throughput"))
    for budget in dict.fromkeys(row["memory_gib"] for row in rows if row["memory_gib"]):
        fitting = [row for row in rows if row["memory_gib"] == budget]
        tables.append(_throughput(fitting, f"Throughput at the largest batch that fits {budget} GiB"))
    return [table for table in tables if table.rows]


def _times(rows: Sequence[Row], batch: str) -> BenchTable:
    decodes = any(row["decode_ms"] for row in rows)
    header = ["method", "visual tokens", "time to first token, ms", "x unpruned", "FLOPs share", "time / FLOPs share"]
    header += ["decode, ms per token", "x unpruned", "end to end, ms", "x unpruned"] if decodes else []
    table = []
    for row in rows:
        cells = [row["method"], _tokens(row), _time(row, "prefill"), _ratio_cell(row, "prefill_ratio")]
        cells += [f"{float(row['prefill_flops_share']):.3f}", format_ratio(row, "prefill_over_flops")]
        if decodes:
            cells += [_time(row, "decode"), _ratio_cell(row, "decode_ratio")]
            cells += [_time(row, "total"), _ratio_cell(row, "total_ratio")]
        table.append(tuple(cells))
    steps = f", {rows[0]['decode_steps']} tokens after the first" if decodes else ""
    return BenchTable(f"Time, {batch}{steps}", tuple(header), tuple(table))


def _stages(rows: Sequence[Row], batch: str) -> BenchTable:
    header = ("method", *(_STAGE_NAMES[stage] for stage in STAGES))
    header += ("selection, of unpruned prefill", "decoder, x unpruned", "its FLOPs share", "time / FLOPs share")
    table = []
    for row in rows:
        table.append(
            (
                row["method"],
                *(_number(row[f"{stage}_ms"]) for stage in STAGES),
                _share(row, "selection_share"),
                _ratio_cell(row, "decoder_ratio"),
                f"{float(row['flops_share']):.3f}",
                format_ratio(row, "time_over_flops"),
            )
        )
    return BenchTable(f"Stages of the prefill, ms, {batch}", header, tuple(table))


def _throughput(rows: Sequence[Row], title: str) -> BenchTable:
    header = ("batch", "method", "requests/s", "tokens/s", "throughput, x unpruned", "peak, GiB")
    peaks = any(row["peak_gib"] for row in rows)
    table = [
        (
            row["batch"] + (" (largest tried)" if row["batch"] == row["max_batch"] else ""),
            row["method"],
            row["requests_per_s"],
            row["tokens_per_s"],
            _ratio_cell(row, "throughput_ratio"),
            row["peak_gib"],
        )[: 6 if peaks else 5]
        for row in rows
    ]
    return BenchTable(title, header[: 6 if peaks else 5], tuple(table))


def _ratio_cell(row: Row, name: str) -> str:
    return format_ratio(row, name) or "1"


def _tokens(row: Row) -> str:
    visual, kept = row["visual_tokens"], row["kept_tokens"]
    return visual if visual == kept else f"{visual} to {kept} from layer {row['layer']}"


def _time(row: Row, phase: str) -> str:
    return f"{_number(row[f'{phase}_ms'])} ± {_number(row[f'{phase}_spread_ms'])}"


def _share(row: Row, name: str) -> str:
    """A share in percent with its interval, empty where there is none."""
    if not row[name]:
        return ""
    value, low, high = (f"{100 * float(row[f'{name}{end}']):.2f}" for end in ("", "_low", "_high"))
    return f"{value} % ({low} to {high})"


def _number(text: str) -> str:
    """A time of any size with three digits or more.

    >>> _number("1627.2"), _number("12.34"), _number("0.01234")
    ('1627', '12.3', '0.012')
    """
    value = float(text)
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def performance_page(rows: Sequence[Row]) -> str:
    """docs/results/performance.md: every run with its command, and all of its tables."""
    sections = [_PAGE]
    if not any(row["device_type"] == "cuda" for row in rows):
        sections.append(f"{_NO_GPU}\n")
    for _, found in groupby(rows, key=lambda row: row["command"]):
        run = list(found)
        sections.append(_provenance(run[0]))
        sections += [f"{table.markdown()}\n" for table in bench_tables(run)]
    return "\n".join(sections)


def _provenance(row: Row) -> str:
    config = row["config"] if row["config"] != "{}" else ""
    coverage = f"{100 * float(row['coverage']):.1f} %"
    facts = (
        f"Command: `{row['command']}`",
        f"Model: {int(row['parameters']) / 1e6:,.0f} M parameters, {row['dtype']}, {row['attention']} attention",
        f"Prompt: {row['prompt_tokens']} tokens, {row['visual_tokens']} of them visual",
        f"Device: {row['device']}; topv {row['topv']}, torch {row['torch']}, transformers {row['transformers']}",
        f"Rounds: {row['rounds']} interleaved after {row['warmup']} to warm up; intervals of {coverage}; {row['date']}",
    )
    title = f"{row['model']} {config}".strip()
    return "\n".join([f"## {title}, {row['device_type'].upper()}\n", *(f"- {fact}" for fact in facts), ""])
