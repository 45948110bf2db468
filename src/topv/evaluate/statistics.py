"""Scores of answers and their means, with intervals that respect which questions share a scene."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["Interval", "answer_score", "macro_interval", "mean_interval", "task_interval", "token_f1"]

Interval = tuple[float, float, float]
"""Lower end, estimate, upper end of a 95 % interval."""

_RESAMPLES = 2000


def token_f1(answer: str, truth: str) -> float:
    """Harmonic mean of precision and recall over words, order ignored.

    >>> token_f1("a red star", "a blue star")
    0.6666666666666666
    """
    given, wanted = Counter(answer.split()), Counter(truth.split())
    common = sum((given & wanted).values())
    if not common:
        return 0.0
    return 2 * common / (sum(given.values()) + sum(wanted.values()))


def answer_score(task: str, answer: str, truth: str) -> float:
    """Token F1 for captions and descriptions, exact match for everything else."""
    if task in ("caption", "description"):
        return token_f1(answer, truth)
    return float(answer.strip() == truth.strip())


def mean_interval(scores: Sequence[float]) -> Interval:
    """Mean with a 95 % interval: Wilson's for scores that are all 0 or 1, else normal.

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
