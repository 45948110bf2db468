"""What a question's nouns refer to: how many things, and where.

The decoder's middle layers are taught to know this at the last token of each noun ("the green star"), which turns
comparing and counting, slow to learn from yes, no and left alone, into reading off what is already there.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topv.mini.canvas import IGNORED, Item
from topv.mini.geometry import Geometry
from topv.mini.shapes import COLOURS, SHAPES

__all__ = ["MOST_COUNTED", "find_mentions", "mention_targets"]

MOST_COUNTED = 7
_NOUN = re.compile(
    rf"\b(?:(?P<size>small|medium|large) )?(?:(?P<colour>{'|'.join(COLOURS)}) )?"
    rf"(?P<noun>{'|'.join(SHAPES)}|object|word|box)(?:e?s)?\b"
    r"|\b(?P<letter>[A-Z])\b"
)


def _refers(item: Item, match: re.Match[str]) -> bool:
    if match["letter"]:
        return item.kind == "box" and item.name == match["letter"]
    noun = match["noun"]
    fits = item.kind == noun if noun in ("word", "box") else item.kind == "shape" and noun in ("object", item.name)
    return fits and match["size"] in (None, item.size) and match["colour"] in (None, item.colour)


def find_mentions(prompt: str, items: list[Item], geometry: Geometry) -> list[tuple[int, int, int, int]]:
    """The nouns of a question.

    Returns:
        for each: index of its last character, how many items it fits, and the grid row and column of the item's
        centre (``IGNORED`` unless exactly one fits).
    """
    found = []
    for match in _NOUN.finditer(prompt):
        fitting = [item for item in items if _refers(item, match)]
        row = column = IGNORED
        if len(fitting) == 1:
            row, column = geometry.cell(fitting[0].centre)
        found.append((match.end() - 1, min(MOST_COUNTED, len(fitting)), row, column))
    return found


def mention_targets(
    encoding: Any, prompt: str, items: list[Item], geometry: Geometry, answer: str = ""
) -> NDArray[np.int64]:
    """Targets at the tokens of an encoded question: (tokens, 3) count, row and column, ``IGNORED`` elsewhere.

    Where the answer is the letter of a box, the question's last token has that box's row and column.
    """
    targets = np.full((len(encoding.ids), 3), IGNORED, dtype=np.int64)
    for last, count, row, column in find_mentions(prompt, items, geometry):
        targets[encoding.char_to_token(last)] = (count, row, column)
    for item in items:
        if item.kind == "box" and item.name == answer:
            targets[-1, 1:] = geometry.cell(item.centre)
    return targets
