"""Accuracy of methods at equal savings, on the bundled tasks."""

from .configurations import Configuration, at_equal_reductions, readings
from .examples import TASKS, Example, bundled_examples
from .provenance import provenance
from .runner import Answer, answer_examples, foreground_shares
from .statistics import Interval, macro_interval
from .tables import accuracy_tables, foreground_table

__all__ = [
    "TASKS",
    "Answer",
    "Configuration",
    "Example",
    "Interval",
    "accuracy_tables",
    "answer_examples",
    "at_equal_reductions",
    "bundled_examples",
    "foreground_shares",
    "foreground_table",
    "macro_interval",
    "provenance",
    "readings",
]
