"""Accuracy of methods at equal savings, on the bundled tasks."""

from ..statistics import Interval, macro_interval, task_interval
from .ablations import SWEEPS, nearest, sweep
from .blind import IMAGE_BLIND, blind_examples
from .configurations import Configuration, at_equal_reductions, readings
from .evaluation import Shard, evaluate
from .examples import CLIP_TASKS, TASKS, Example, bundled_clips, bundled_examples
from .provenance import provenance, setup_of
from .runner import Answer, Asker, answer_examples, foreground_shares
from .store import AnswerStore, write_whole
from .subjects import grids_of, view_of
from .tables import (
    ablation_bars,
    ablation_table,
    accuracy_lines,
    accuracy_tables,
    blind_table,
    difference_table,
    foreground_table,
    markdown,
    size_table,
)

__all__ = [
    "CLIP_TASKS",
    "IMAGE_BLIND",
    "SWEEPS",
    "TASKS",
    "Answer",
    "AnswerStore",
    "Asker",
    "Configuration",
    "Example",
    "Interval",
    "Shard",
    "ablation_bars",
    "ablation_table",
    "accuracy_lines",
    "accuracy_tables",
    "answer_examples",
    "at_equal_reductions",
    "blind_examples",
    "blind_table",
    "bundled_clips",
    "bundled_examples",
    "difference_table",
    "evaluate",
    "foreground_shares",
    "foreground_table",
    "grids_of",
    "macro_interval",
    "markdown",
    "nearest",
    "provenance",
    "readings",
    "setup_of",
    "size_table",
    "sweep",
    "task_interval",
    "view_of",
    "write_whole",
]
