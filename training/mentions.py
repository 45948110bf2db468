"""What a question's nouns refer to: how many things, and where.

The decoder's middle layers are taught to know this at the last token of each noun ("the green star"), which turns
comparing and counting, slow to learn from yes, no and left alone, into reading off what is already there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topv.scenes import Geometry
from topv.scenes.canvas import IGNORED, Item
from topv.scenes.shapes import COLOURS, SHAPES

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
    encoding: Any,
    prompt: str,
    items: list[Item],
    geometry: Geometry,
    answer: str = "",
    arrows: Sequence[tuple[str, str]] = (),
) -> NDArray[np.int64]:
    """Targets at the tokens of an encoded question, ``IGNORED`` elsewhere.

    Args:
        encoding: the question in tokens, with the assistant's mark.
        prompt: its text.
        items: what it can be about.
        geometry: the grid of visual tokens.
        answer: where it is the letter of a box, the last token has that box's row and column.
        arrows: from box to box, by letter.

    Returns:
        (tokens, 7): count, row and column of what a noun refers to; row and column of the box that a box points to,
        and of the one that points to it.
    """
    targets = np.full((len(encoding.ids), 7), IGNORED, dtype=np.int64)
    places = {item.name: geometry.cell(item.centre) for item in items if item.kind == "box"}
    targets[-1, 1:3] = places.get(answer, IGNORED)
    forward, backward = dict(arrows), {target: source for source, target in arrows}
    for last, count, row, column in find_mentions(prompt, items, geometry):
        token, letter = encoding.char_to_token(last), prompt[last]
        targets[token, :3] = (count, row, column)
        targets[token, 3:5] = places.get(forward.get(letter, ""), IGNORED)
        targets[token, 5:7] = places.get(backward.get(letter, ""), IGNORED)
    return targets
