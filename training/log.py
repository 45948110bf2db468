"""The log of a training: a row of figures now and then, in a CSV file and on the screen."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from topv.scenes import TASKS

__all__ = ["Log"]

_COLUMNS = (
    "step",
    "minutes",
    "stage",
    "rate",
    "dense_loss",
    "patch_accuracy",
    "answer_loss",
    "noun_loss",
    "rank_loss",
    "mean",
    *TASKS,
)


class Log:
    """The rows of a training, over all of its runs.

    Args:
        path: the CSV file, which is written to its end and need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def forget_after(self, step: int) -> None:
        """Take out what a killed run wrote behind its last checkpoint, since it comes again."""
        if self._path.is_file():
            with self._path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            with self._path.open("w", newline="") as file:
                writer = csv.DictWriter(file, _COLUMNS, restval="")
                writer.writeheader()
                writer.writerows(row for row in rows if int(row["step"]) <= step)

    def write(self, row: dict[str, Any]) -> None:
        """Add a row; columns that it leaves out stay empty."""
        fresh = not self._path.is_file()
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS, restval="")
            if fresh:
                writer.writeheader()
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
