"""Intervals and spreads: what every table and report says of how far its figures can be trusted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["Interval", "interquartile_range", "macro_interval", "mean_interval", "median_interval", "task_interval"]

Interval = tuple[float, float, float]
"""Lower end, estimate, upper end of a 95 % interval."""

_RESAMPLES = 2000


def mean_interval(scores: Sequence[float]) -> Interval:
    """Mean with a 95 % interval: Wilson's for scores that are all 0 or 1, else normal.

    Args:
        scores: in [0, 1], one for each independent trial.

    Raises:
        ValueError: when there are none.

    >>> low, mean, high = mean_interval([1.0] * 90 + [0.0] * 10)
    >>> round(low, 3), mean, round(high, 3)
    (0.826, 0.9, 0.945)
    """
    count = len(scores)
    if not count:
        raise ValueError("No scores to average; expected at least one answered question.")
    mean, z = sum(scores) / count, 1.959964
    if set(scores) <= {0.0, 1.0}:
        middle = (mean + z * z / (2 * count)) / (1 + z * z / count)
        reach = z / (1 + z * z / count) * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
        return min(mean, max(0.0, middle - reach)), mean, max(mean, min(1.0, middle + reach))
    spread = z * float(np.std(scores, ddof=1)) / math.sqrt(count) if count > 1 else 1.0
    return max(0.0, mean - spread), mean, min(1.0, mean + spread)


def macro_interval(tasks: Mapping[str, tuple[Sequence[float], Sequence[int]]], *, seed: int = 0) -> Interval:
    """The mean over tasks of each task's mean, with a bootstrap interval over scenes.

    Whole scenes are resampled, the same ones for every task, since questions about one scene are not independent.
    Pass differences of paired scores for a paired interval.

    Args:
        tasks: for each task the values and the scene of each.
        seed: seed of the resampling.

    Raises:
        ValueError: when a task has no values, or not one scene for each.

    >>> low, mean, high = macro_interval({"a": ([1.0, 0.0, 1.0, 1.0], [0, 1, 2, 3])})
    >>> mean
    0.75
    """
    for task, (values, scenes) in tasks.items():
        if not values or len(values) != len(scenes):
            raise ValueError(
                f"task {task!r} has {len(values)} values and {len(scenes)} scenes; expected as many, not 0."
            )
    names = sorted({scene for _, scenes in tasks.values() for scene in scenes})
    place = {scene: index for index, scene in enumerate(names)}
    sums, counts = np.zeros((len(names), len(tasks))), np.zeros((len(names), len(tasks)), dtype=int)
    for column, (values, scenes) in enumerate(tasks.values()):
        index = np.array([place[scene] for scene in scenes])
        sums[:, column] = np.bincount(index, weights=np.asarray(values, dtype=float), minlength=len(names))
        counts[:, column] = np.bincount(index, minlength=len(names))
    generator, even = np.random.default_rng(seed), [1 / len(names)] * len(names)
    resampled: list[float] = []
    while len(resampled) < _RESAMPLES:
        weights = generator.multinomial(len(names), even, size=_RESAMPLES)
        found = weights @ counts
        # A resample that lacks a task says nothing of its accuracy, and another is drawn.
        whole = (found > 0).all(1)
        resampled += list(((weights[whole] @ sums) / found[whole]).mean(1))
    low, high = np.quantile(resampled[:_RESAMPLES], (0.025, 0.975))
    return float(low), float((sums.sum(0) / counts.sum(0)).mean()), float(high)


def task_interval(values: Sequence[float], scenes: Sequence[int]) -> Interval:
    """One task's mean, with a bootstrap interval over scenes.

    Where every answer is right, or every one wrong, resampling shows no spread, however few they are. Then the interval
    is Wilson's, with as many trials as there are scenes.

    Args:
        values: the scores.
        scenes: the scene of each.

    >>> low, mean, high = task_interval([1.0] * 20, [*range(10)] * 2)
    >>> round(low, 2), mean, high
    (0.72, 1.0, 1.0)
    """
    if set(values) in ({0.0}, {1.0}):
        return mean_interval([values[0]] * len(set(scenes)))
    return macro_interval({"": (values, scenes)})


def median_interval(samples: int) -> tuple[int, float]:
    """How many of n ordered samples to leave out on each side, so that the rest covers the median with 95 %.

    The interval from the (k+1)-th smallest to the (k+1)-th largest holds the median of the distribution with
    probability 1 - 2 sum_{i <= k} C(n, i) / 2^n.

    Returns:
        k, and the probability. With fewer than six samples no interval reaches 95 %, and k is 0.

    >>> median_interval(7), median_interval(9), median_interval(3)
    ((0, 0.984375), (1, 0.9609375), (0, 0.75))
    """
    tail = 2 / 2**samples
    trimmed, coverage = 0, 1 - tail
    for k in range(1, (samples - 1) // 2 + 1):
        tail += 2 * math.comb(samples, k) / 2**samples
        if 1 - tail < 0.95:
            break
        trimmed, coverage = k, 1 - tail
    return trimmed, coverage


def interquartile_range(samples: Sequence[float]) -> float:
    """The distance between the quartiles of the samples, in their unit; 0 for a single one.

    >>> interquartile_range([1.0, 2.0, 3.0, 4.0, 5.0]), interquartile_range([7.0])
    (2.0, 0.0)
    """
    if len(samples) < 2:
        return 0.0
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return high - low
