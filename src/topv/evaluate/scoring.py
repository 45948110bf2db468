"""How well an answer agrees with the right one."""

from __future__ import annotations

from collections import Counter

__all__ = ["answer_score", "token_f1"]


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
