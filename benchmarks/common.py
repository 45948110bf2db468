"""What the benchmarks share: command lines, rows that say what made them, and differences paired by question.

Each of them imports it as Python lets a script import its neighbours. What is heavy is imported where it is used.
"""

from __future__ import annotations

import argparse
import csv
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from topv.evaluate import Answer, Interval

__all__ = ["by_task", "mean_over_tasks", "parser", "provenance", "write_rows"]


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line that shows its module's docstring as it stands."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def provenance(device: str | torch.device) -> dict[str, str]:
    """The columns that say what a row was measured with: the device by name, versions, and the date."""
    import torch

    from topv.measure import describe_environment

    environment = describe_environment()
    return {
        "device": environment.device_name(torch.device(device)),
        **{name: environment.versions[name] for name in ("torch", "transformers", "topv")},
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def write_rows(path: Path | None, rows: Sequence[Mapping[str, Any]], fields: Sequence[str] | None = None) -> None:
    """Write rows as CSV, where a path was asked for.

    Args:
        path: the file; None writes nothing.
        rows: alike, or with some of `fields` left out.
        fields: the columns; those of the first row by default.
    """
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0] if fields is None else fields)
        writer.writeheader()
        writer.writerows(rows)


def by_task(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Answers under their tasks, in the order in which these come."""
    found: dict[str, list[Answer]] = {}
    for answer in answers:
        found.setdefault(answer.task, []).append(answer)
    return found


def mean_over_tasks(
    answers: Mapping[str, Sequence[Answer]], base: Mapping[str, Sequence[Answer]] | None = None
) -> Interval:
    """The mean over tasks with its 95 % interval; of the differences to `base`, paired by question, if it is given."""
    from topv.evaluate import macro_interval

    values = {}
    for task, found in answers.items():
        less = [0.0] * len(found) if base is None else [answer.score for answer in base[task]]
        scores = [answer.score - other for answer, other in zip(found, less, strict=True)]
        values[task] = scores, [answer.scene for answer in found]
    return macro_interval(values)
