"""The picture of `topv bench`: time against FLOPs, and what the time to the first token is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..measure.stages import STAGES

__all__ = ["plot_bench"]

Row = Mapping[str, str]

_COLOURS = {"encode": "#9aa5b1", "before": "#4c78a8", "selection": "#e45756", "after": "#72b7b2", "rest": "#d8d8d8"}
_LABELS = {
    "encode": "vision tower",
    "before": "layers before pruning",
    "selection": "selection",
    "after": "layers after",
    "rest": "rest",
}

_ASIDE = 0.012
"""How far points of the same FLOPs are drawn apart."""


def plot_bench(rows: Sequence[Row], path: Path) -> None:
    """Draw rows of `topv bench` as a PNG.

    On the left the decoder layers' time against their FLOPs, both over the unpruned model's, with intervals; hollow
    where the spread swallows the effect, and side by side where FLOPs are the same. On the
    right the stages of the time to first token, in ms per sample.

    Args:
        rows: of `read_rows` or `bench_row`.
        path: the file to write.

    Raises:
        InputError: when matplotlib is not installed, rows are of several runs, or none is of a given batch.
    """
    try:
        import matplotlib
    except ImportError:
        raise InputError("--plot draws with matplotlib, which is not installed: pip install 'topv[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if not row["memory_gib"]]
    if not shown:
        raise InputError("there are no rows to draw. Measure with --batch.")
    commands = {row["command"] for row in shown}
    if len(commands) > 1:
        raise InputError(f"the rows are of {len(commands)} runs of `topv bench`. Draw one at a time.")
    size = (14, max(4.8, 1.8 + 0.34 * len(shown)))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=size, width_ratios=(2, 3))
    _draw_ratios(left, [row for row in shown if row["decoder_ratio"]])
    _draw_stages(right, shown)
    first = shown[0]
    figure.suptitle(f"{first['model']}, {first['dtype']}, {first['attention']}; {first['device']}", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_ratios(axes: Any, rows: Sequence[Row]) -> None:
    """Decoder time over FLOPs, a colour for each method and a marker for each batch."""
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--", label="time = FLOPs")
    methods = list(dict.fromkeys(_method(row) for row in rows))
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    series = list(dict.fromkeys((_method(row), row["batch"]) for row in rows))
    named: set[tuple[str, str]] = set()
    for row in rows:
        value, low, high = (float(row[f"decoder_ratio{end}"]) for end in ("", "_low", "_high"))
        key = (_method(row), row["batch"])
        colour = f"C{methods.index(key[0]) % 10}"
        name = key[0] if len(batches) == 1 else f"{key[0]}, batch {key[1]}"
        axes.errorbar(
            float(row["flops_share"]) + _ASIDE * (series.index(key) - (len(series) - 1) / 2),
            value,
            yerr=[[value - low], [high - value]],
            marker="osD^v*P"[batches.index(key[1]) % 7],
            color=colour,
            markerfacecolor=colour if row["decoder_ratio_clear"] == "true" else "none",
            capsize=3,
            linestyle="none",
            label=None if key in named else name,
        )
        named.add(key)
    top = max([1.05, *(1.02 * float(row["decoder_ratio_high"]) for row in rows)])
    axes.set(
        xlabel="FLOPs of the decoder layers, x unpruned",
        ylabel="time of the decoder layers, x unpruned",
        xlim=(0, 1.05),
        ylim=(0, top),
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")


def _draw_stages(axes: Any, rows: Sequence[Row]) -> None:
    """A stacked bar for each row, the first on top."""
    places = range(len(rows))
    starts = [0.0] * len(rows)
    for stage in STAGES:
        widths = [float(row[f"{stage}_ms"]) / int(row["batch"]) for row in rows]
        axes.barh(places, widths, left=starts, color=_COLOURS[stage], label=_LABELS[stage])
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    several = len({row["batch"] for row in rows}) > 1
    names = [row["method"] + (f", batch {row['batch']}" if several else "") for row in rows]
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("time to first token, ms per sample (medians of the stages)")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.42, 1.0), ncols=len(STAGES), frameon=False)


def _method(row: Row) -> str:
    """The method without its budget, which is what its points differ in."""
    return " ".join(part for part in row["method"].split() if not part.startswith("keep="))
