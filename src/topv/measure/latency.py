"""Comparing the latency of callables on a machine that does not hold still.

The candidates run in interleaved rounds, each round starting with another one, so that whatever slows the
machine down for a while slows all of them alike. A ratio is taken within each round, and its interval comes
from the order statistics of those ratios: no distribution is assumed, nothing is random.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError
from ..statistics import interquartile_range, median_interval

__all__ = ["Latency", "LatencyTable", "Ratio", "Stopwatch", "measure_latency", "measure_phases"]


@dataclass(frozen=True)
class Ratio:
    """A candidate's time over the baseline's: below 1 is faster.

    Attributes:
        value: median of the ratios of the rounds.
        low: lower end of the interval for that median.
        high: upper end.
        coverage: probability that the interval holds the true median, at least 0.95 from six rounds on.
    """

    value: float
    low: float
    high: float
    coverage: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        """The median of `ratios`, with the narrowest interval of order statistics that covers 95 %.

        >>> Ratio.of([0.5, 0.55, 0.45])
        Ratio(value=0.5, low=0.45, high=0.55, coverage=0.75)
        """
        ordered = sorted(ratios)
        trimmed, coverage = median_interval(len(ordered))
        return cls(statistics.median(ordered), ordered[trimmed], ordered[-1 - trimmed], coverage)

    @property
    def unclear(self) -> bool:
        """Whether the interval holds 1, so that these rounds show no difference."""
        return self.low <= 1 <= self.high

    @property
    def is_swallowed(self) -> bool:
        """Whether the spread swallows the effect: the interval holds 1, or half of it is wider than the effect.

        >>> Ratio(0.9, 0.5, 0.99, 0.96).is_swallowed, Ratio(0.9, 0.85, 0.92, 0.96).is_swallowed
        (True, False)
        """
        return self.unclear or (self.high - self.low) / 2 > abs(1 - self.value)

    def to_dict(self) -> dict[str, Any]:
        """The ratio as plain numbers."""
        return {**asdict(self), "unclear": self.unclear}

    def __str__(self) -> str:
        return f"{'~' if self.unclear else ''}{self.value:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True)
class Latency:
    """The times of one candidate.

    Attributes:
        seconds: one time per round.
        ratios: in each round, this time over the baseline's; empty for the baseline itself.
    """

    seconds: tuple[float, ...]
    ratios: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """Median time in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Interquartile range in seconds, 0 with a single round."""
        return interquartile_range(self.seconds)

    @property
    def ratio(self) -> Ratio | None:
        """The ratio to the baseline; None for the baseline itself."""
        return Ratio.of(self.ratios) if self.ratios else None

    def to_dict(self) -> dict[str, Any]:
        """The times as plain numbers."""
        return {
            "median_seconds": self.median,
            "spread_seconds": self.spread,
            "seconds": list(self.seconds),
            "ratio": None if self.ratio is None else self.ratio.to_dict(),
        }


@dataclass(frozen=True)
class LatencyTable:
    """The times of every candidate.

    Attributes:
        baseline: name of the candidate that the others are compared with.
        rows: latency by candidate name, in the order given.
    """

    baseline: str
    rows: Mapping[str, Latency]

    def __getitem__(self, name: str) -> Latency:
        return self.rows[name]

    @classmethod
    def from_seconds(cls, seconds: Mapping[str, Sequence[float]], baseline: str) -> LatencyTable:
        """The table of times measured in rounds: the i-th time of each candidate belongs to round i."""
        base = seconds[baseline]
        return cls(
            baseline,
            {
                name: Latency(tuple(times), () if name == baseline else _paired(times, base))
                for name, times in seconds.items()
            },
        )

    def __str__(self) -> str:
        width = max(map(len, self.rows))
        lines = []
        for name, row in self.rows.items():
            time_ = f"{row.median * 1e3:9.2f} ms ± {row.spread * 1e3:.2f}"
            lines.append(f"{name:<{width}} {time_}" + (f"  x {row.ratio}" if row.ratio else ""))
        return "\n".join(lines)


def _paired(times: Sequence[float], baseline: Sequence[float]) -> tuple[float, ...]:
    """`times[i] / baseline[i]` for every round i.

    Raises:
        InputError: when the rounds do not match, or the clock did not move in one of them.
    """
    if len(times) != len(baseline):
        raise InputError(f"{len(times)} times against {len(baseline)} of the baseline: expected as many.")
    if min(baseline) <= 0:
        raise InputError("the baseline took no time at all in some round: the clock is too coarse for it.")
    return tuple(a / b for a, b in zip(times, baseline, strict=True))


class Stopwatch:
    """Times the phases of one run.

    Args:
        clock: returns seconds.
        synchronize: waits for the device; called before each reading of the clock.
    """

    def __init__(self, clock: Callable[[], float], synchronize: Callable[[], object]) -> None:
        self._clock = clock
        self._synchronize = synchronize
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block as phase `name`; blocks of one name add up."""
        self._synchronize()
        start = self._clock()
        yield
        self._synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + self._clock() - start


def measure_phases(
    candidates: Mapping[str, Callable[[Stopwatch], object]],
    *,
    baseline: str,
    warmup: int = 1,
    repetitions: int = 7,
    clock: Callable[[], float] = time.perf_counter,
    synchronize: Callable[[], object] = lambda: None,
    on_run: Callable[[], object] = lambda: None,
) -> dict[str, LatencyTable]:
    """Time the phases of several candidates in interleaved rounds.

    Args:
        candidates: by name, a callable that marks its phases on the stopwatch it gets. All have the same phases.
        baseline: the candidate to compare the others with.
        warmup: rounds that are run and forgotten.
        repetitions: rounds that count.
        clock: returns seconds.
        synchronize: waits for the device, such as `torch.cuda.synchronize`.
        on_run: called after each run, warm-up included, for progress bars.

    Returns:
        A table for each phase.

    Raises:
        InputError: when the baseline is not among the candidates, or a count is out of range.
    """
    names = list(candidates)
    if baseline not in candidates:
        raise InputError(f"baseline={baseline!r} is not a candidate. Expected one of: {', '.join(names)}.")
    if repetitions < 1 or warmup < 0:
        raise InputError(f"repetitions={repetitions}, warmup={warmup}: expected at least 1 and at least 0.")
    seconds: dict[str, dict[str, list[float]]] = {}
    for round_ in range(warmup + repetitions):
        shift = round_ % len(names)
        for name in names[shift:] + names[:shift]:
            watch = Stopwatch(clock, synchronize)
            with _collector_paused():
                candidates[name](watch)
            on_run()
            if round_ >= warmup:
                for phase, value in watch.seconds.items():
                    seconds.setdefault(phase, {n: [] for n in names})[name].append(value)
    return {phase: LatencyTable.from_seconds(times, baseline) for phase, times in seconds.items()}


def measure_latency(candidates: Mapping[str, Callable[[], object]], *, baseline: str, **options: Any) -> LatencyTable:
    """Time several callables in interleaved rounds.

    Args:
        candidates: by name, what to run.
        baseline: the candidate to compare the others with.
        **options: those of `measure_phases`.

    Returns:
        Medians, spreads, and ratios to the baseline.

    Raises:
        InputError: as `measure_phases`.
    """

    def whole(run: Callable[[], object]) -> Callable[[Stopwatch], None]:
        def timed(watch: Stopwatch) -> None:
            with watch.phase("run"):
                run()

        return timed

    return measure_phases({n: whole(run) for n, run in candidates.items()}, baseline=baseline, **options)["run"]


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Young garbage is collected before the block, and none in it; a full collection would take longer than most
    prefills."""
    gc.collect(1)
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
