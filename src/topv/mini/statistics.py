"""Scores of answers and intervals around them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from topv.mini.randomness import Stream

__all__ = ["answer_score", "gain_interval", "token_f1"]

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


def gain_interval(
    scores: Sequence[float], others: Sequence[float], scenes: Sequence[int]
) -> tuple[float, float, float]:
    """Mean paired difference with a 95 % bootstrap interval over scenes.

    Questions about one scene are not independent, so whole scenes are resampled.

    Args:
        scores: one score of each question.
        others: another.
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
