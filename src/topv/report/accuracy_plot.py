"""Accuracy against the share of visual FLOPs removed, drawn."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UnsupportedError

__all__ = ["Point", "plot_accuracy", "plot_bars", "plot_heat_map"]

Point = tuple[float, float, float, float]
"""Share of visual FLOPs removed, and of the accuracy the lower end, the mean and the upper end, all in [0, 1]."""


def plot_accuracy(lines: Mapping[str, Sequence[Point]], unpruned: float, path: Path, *, title: str = "") -> None:
    """Draw a line for each method, with its 95 % intervals, and the unpruned model's accuracy.

    Args:
        lines: for each method's label its points.
        unpruned: the unpruned model's accuracy in [0, 1].
        path: a file of a kind that matplotlib writes, such as `.png` or `.svg`.
        title: a line above the picture.

    Raises:
        UnsupportedError: when matplotlib is missing.
    """
    figure, axes = _figure((8, 5))
    axes.axhline(100 * unpruned, color="0.3", linewidth=1, linestyle="--", label="unpruned")
    shares = sorted({round(share, 2) for points in lines.values() for share, *_ in points})
    gap = min((high - low for low, high in itertools.pairwise(shares)), default=1.0)
    width = min(0.012 * max(1, len(lines)), 0.6 * gap)
    for number, (label, points) in enumerate(lines.items()):
        # Side by side, so that intervals do not hide each other.
        shift = width * (number / max(1, len(lines) - 1) - 0.5) if len(lines) > 1 else 0.0
        x = [100 * (share + shift) for share, *_ in points]
        mean = [100 * value for _, _, value, _ in points]
        low = [100 * (value - lower) for _, lower, value, _ in points]
        high = [100 * (upper - value) for _, _, value, upper in points]
        own = label.startswith("topv")
        axes.errorbar(
            x, mean, yerr=[low, high], label=label, marker="o", capsize=2, linewidth=2.2 if own else 1.2, markersize=4,
            alpha=1.0 if own else 0.8,
        )  # fmt: skip
    axes.set_xlabel("visual FLOPs removed, %")
    axes.set_ylabel("accuracy, %, mean over tasks")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    if title:
        axes.set_title(title, fontsize="medium")
    figure.savefig(path, dpi=150)


def plot_bars(bars: Mapping[str, tuple[float, float, float]], unpruned: float, path: Path, *, title: str = "") -> None:
    """Draw a bar for each variant, with its 95 % interval, and the unpruned model's accuracy.

    Args:
        bars: for each variant's label the lower end, the mean and the upper end, in [0, 1].
        unpruned: the unpruned model's accuracy in [0, 1].
        path: a file of a kind that matplotlib writes.
        title: a line above the picture.

    Raises:
        UnsupportedError: when matplotlib is missing.
    """
    figure, axes = _figure((8, 1.2 + 0.4 * len(bars)))
    labels = list(bars)[::-1]
    means = [100 * bars[label][1] for label in labels]
    low = [100 * (bars[label][1] - bars[label][0]) for label in labels]
    high = [100 * (bars[label][2] - bars[label][1]) for label in labels]
    axes.barh(labels, means, xerr=[low, high], capsize=3, color="tab:orange", alpha=0.85, height=0.6)
    axes.axvline(100 * unpruned, color="0.3", linewidth=1, linestyle="--", label="unpruned")
    axes.set_xlabel("accuracy, %, mean over tasks")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize="small", loc="lower left")
    if title:
        axes.set_title(title, fontsize="medium")
    figure.savefig(path, dpi=150)


def plot_heat_map(
    values: Sequence[Sequence[float]],
    rows: tuple[str, Sequence[float]],
    columns: tuple[str, Sequence[float]],
    path: Path,
) -> None:
    """Draw a grid of accuracies over two settings.

    Args:
        values: an accuracy in [0, 1] for each row and column.
        rows: the setting that differs from row to row, and its values.
        columns: the setting that differs from column to column, and its values.
        path: a file of a kind that matplotlib writes.

    Raises:
        UnsupportedError: when matplotlib is missing.
    """
    figure, axes = _figure((2.0 + 0.9 * len(columns[1]), 1.5 + 0.7 * len(rows[1])))
    shown = [[100 * value for value in row] for row in values]
    image = axes.imshow(shown, cmap="viridis", aspect="auto")
    middle = (min(map(min, shown)) + max(map(max, shown))) / 2
    for y, row in enumerate(shown):
        for x, value in enumerate(row):
            axes.text(x, y, f"{value:.1f}", ha="center", va="center", color="black" if value > middle else "white")
    axes.set_xticks(range(len(columns[1])), [f"{value:g}" for value in columns[1]])
    axes.set_yticks(range(len(rows[1])), [f"{value:g}" for value in rows[1]])
    axes.set_xlabel(columns[0])
    axes.set_ylabel(rows[0])
    figure.colorbar(image, label="accuracy, %, mean over tasks")
    figure.savefig(path, dpi=150)


def _figure(size: tuple[float, float]) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError("drawing needs matplotlib: pip install 'topv[plot]'") from error
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()
