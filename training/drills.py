"""Counting practice for training scenes: questions that no split is scored on.

Counting is the slowest task to learn from one question a scene. Here a scene asks for the number of every colour
and shape in it, and every object learns how many like it were seen before it: what a causal decoder has to know
at the last of them to answer.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from topv.scenes import View
from topv.scenes.canvas import IGNORED, Item
from topv.scenes.questions import Question, plural
from topv.scenes.randomness import Stream

from .mentions import MOST_COUNTED

__all__ = ["RANKS", "counting_drills", "ranks"]

RANKS = ("colour", "shape", "object")
"""What an object is counted among."""

_MOST_DRILLS = 7
_MOST_SINGLES = 2


def counting_drills(stream: Stream, items: list[Item]) -> list[Question]:
    """Up to seven questions for the number of a colour, a shape or both, few of them about a single object."""
    shapes = [item for item in items if item.kind == "shape"]
    if not shapes:
        return []
    counts = Counter(f"{item.colour} objects" for item in shapes)
    counts.update(plural(item.name) for item in shapes)
    counts.update(f"{item.colour} {plural(item.name)}" for item in shapes)
    counts["objects"] = len(shapes)
    several = [noun for noun, count in counts.items() if count > 1]
    single = [noun for noun, count in counts.items() if count == 1]
    nouns = stream.sample(several, _MOST_DRILLS - _MOST_SINGLES) + stream.sample(single, _MOST_SINGLES)
    return [Question("counting", f"how many {n} are there?", str(counts[n]), None, None) for n in nouns]


def ranks(items: list[Item], view: View) -> NDArray[np.int64]:
    """How many objects of the same colour, the same shape and at all stand up to and at a visual token, in the order
    in which the decoder sees the tokens.

    Returns:
        int64 (tokens, len(RANKS)) from 1 up at the tokens that hold an object's centre, ``IGNORED`` elsewhere.
    """
    found = np.full((len(view.places), len(RANKS)), IGNORED, dtype=np.int64)
    seen: Counter[str] = Counter()
    placed = [(view.token_at(item.centre), item) for item in items if item.kind == "shape"]
    for token, item in sorted(placed, key=lambda entry: entry[0]):
        for rank, group in enumerate((item.colour, item.name, "object")):
            seen[group] += 1
            found[token, rank] = min(MOST_COUNTED, seen[group])
    return found
