"""Means over tasks, with intervals that respect which questions share a scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["Interval", "macro_interval"]

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
    weights = np.random.default_rng(seed).multinomial(len(names), [1 / len(names)] * len(names), size=_RESAMPLES)
    resampled, means = np.zeros(_RESAMPLES), []
    for values, scenes in tasks.values():
        index = np.array([place[scene] for scene in scenes])
        sums = np.bincount(index, weights=np.asarray(values, dtype=float), minlength=len(names))
        counts = np.bincount(index, minlength=len(names))
        means.append(sums.sum() / counts.sum())
        resampled += (weights @ sums) / np.maximum(weights @ counts, 1)
    low, high = np.quantile(resampled / len(tasks), (0.025, 0.975))
    return float(low), float(np.mean(means)), float(high)
