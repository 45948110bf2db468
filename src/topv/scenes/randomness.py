"""A random stream whose numbers are the same on every machine and in every numpy release.

numpy promises the raw output of its bit generators, not the way its distributions use it, so the few
distributions that scenes need are written here on top of the raw output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Stream"]

T = TypeVar("T")
_BLOCK = 256


class Stream:
    """A seeded stream of integers, floats, choices and bytes.

    >>> Stream(7).below(10) == Stream(7).below(10)
    True
    """

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(list(seed))
        self._block: list[int] = []

    def _next(self) -> int:
        if not self._block:
            self._block = self._bits.random_raw(_BLOCK).tolist()
        return self._block.pop()

    def below(self, limit: int) -> int:
        """An integer from 0 to ``limit - 1``."""
        return (self._next() >> 11) * limit >> 53

    def between(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        return low + self.below(high - low + 1)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float in ``[low, high)``."""
        return low + (high - low) * ((self._next() >> 11) / float(1 << 53))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform() < probability

    def choice(self, items: Sequence[T]) -> T:
        """One item, all equally likely."""
        return items[self.below(len(items))]

    def weighted(self, weights: Sequence[float]) -> int:
        """An index, drawn in proportion to its weight."""
        mark = self.uniform(0.0, sum(weights))
        for index, weight in enumerate(weights):
            mark -= weight
            if mark < 0:
                return index
        return len(weights) - 1

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """``count`` different items in random order (all of them when there are fewer)."""
        pool = list(items)
        picked: list[T] = []
        while pool and len(picked) < count:
            picked.append(pool.pop(self.below(len(pool))))
        return picked

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """``count`` bytes, each value equally likely: shape (count,)."""
        words: NDArray[np.uint64] = self._bits.random_raw(count // 8 + 1)
        return words.astype("<u8").view(np.uint8)[:count]
