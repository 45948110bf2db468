"""Means over tasks, with intervals that respect which questions share a scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..mini.statistics import mean_interval

__all__ = ["Interval", "macro_interval", "task_interval"]

Interval = tuple[float, float, float]
"""Lower end, estimate, upper end of a 95 % interval."""

_RESAMPLES = 2000


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
