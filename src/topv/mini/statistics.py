"""Scores of answers and intervals around them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from topv.scenes.randomness import Stream

__all__ = ["answer_score", "gain_interval", "mean_interval", "token_f1"]

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


def mean_interval(scores: Sequence[float]) -> tuple[float, float, float]:
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


def gain_interval(
    scores: Sequence[float], others: Sequence[float], scenes: Sequence[int]
) -> tuple[float, float, float]:
    """Mean paired difference with a 95 % bootstrap interval over scenes.

    Questions about one scene are not independent, so whole scenes are resampled.

    Args:
        scores, others: two scores of each question.
        scenes: the scene that each question is about.
    """
    if not len(scores) == len(others) == len(scenes) or not scores:
        raise ValueError(f"Got {len(scores)}, {len(others)} and {len(scenes)} values; expected equal, non-zero counts.")
    names, index = np.unique(np.asarray(scenes), return_inverse=True)
    sums = np.bincount(index, weights=np.asarray(scores) - np.asarray(others))
    counts = np.bincount(index)
    bits = Stream(20, len(names)).bytes(4 * _RESAMPLES * len(names)).view("<u4")
    drawn = (bits.astype(np.uint64) * len(names) >> np.uint64(32)).astype(np.int64).reshape(_RESAMPLES, len(names))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(sums.sum() / counts.sum()), float(high)
