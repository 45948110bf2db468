"""Plot a training's log."""

from __future__ import annotations

import csv
from pathlib import Path

from topv.scenes import TASKS

__all__ = ["plot"]


def plot(log: Path, picture: Path) -> None:
    """Draw losses and validation accuracies over training minutes.

    Args:
        log: the trainer's ``log.csv``.
        picture: PNG to write.
    """
    if not log.is_file():
        raise FileNotFoundError(f"No log at {log}; train first.")
    try:
        import matplotlib
    except ImportError:
        raise ImportError("Plotting needs matplotlib: pip install -e '.[train]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))

    def column(name: str) -> tuple[list[float], list[float]]:
        known = [row for row in rows if row[name]]
        return [float(row["minutes"]) for row in known], [float(row[name]) for row in known]

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    for name in ("dense_loss", "answer_loss"):
        left.plot(*column(name), label=name.replace("_", " "))
    left.set(xlabel="minutes", ylabel="training loss", yscale="log")
    right.plot(*column("patch_accuracy"), color="grey", linewidth=0.8, label="foreground patches (training)")
    for task in TASKS:
        right.plot(*column(task), marker=".", label=task)
    right.set(xlabel="minutes", ylabel="accuracy (validation, exact match)", ylim=(0, 1.02))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
