"""How far a long job is: a bar on a terminal, a line now and then where standard error is a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from .console import Advance, progress

__all__ = ["ProgressLines", "job_progress", "short_time"]

_SECONDS_BETWEEN_LINES = 30.0


class ProgressLines:
    """Writes "120 of 200, 0:03:20 left" at most every half minute, and at the end.

    Args:
        description: what is going on.
        total: number of steps.
        done: how many of them were done before, which say nothing of how long the others take.
        file: where to write.
        clock: returns seconds.
    """

    def __init__(
        self,
        description: str,
        total: int,
        done: int,
        *,
        file: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._description, self._total, self._done, self._before = description, total, done, done
        self._file, self._clock = file, clock
        self._start = self._written = clock()

    def __call__(self, steps: int = 1) -> None:
        self._done += steps
        now = self._clock()
        if now - self._written < _SECONDS_BETWEEN_LINES and self._done < self._total:
            return
        self._written = now
        each = (now - self._start) / max(1, self._done - self._before)
        left = short_time(each * (self._total - self._done))
        print(f"{self._description}: {self._done} of {self._total}, {left} left", file=self._file, flush=True)


@contextmanager
def job_progress(description: str, total: int, done: int, *, bar: bool = True) -> Iterator[Advance]:
    """Progress on standard error for the block; calling what it yields advances it.

    Args:
        description: what is going on.
        total: number of steps.
        done: how many of them were done before.
        bar: whether a bar is drawn on a terminal. Of several processes, one may.
    """
    if bar and sys.stderr.isatty():
        with progress(description, total, done) as advance:
            yield advance
    else:
        yield ProgressLines(description, total, done, file=sys.stderr)


def short_time(seconds: float) -> str:
    """Seconds as hours, minutes and seconds.

    >>> short_time(3725.4)
    '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
