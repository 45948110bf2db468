"""Questions about a scene, with short canonical answers that the question alone does not give away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .canvas import Canvas, Item
from .plan import Plan
from .randomness import Stream
from .shapes import COLOURS, SHAPES

__all__ = ["TASKS", "Question", "ask", "plural"]

TASKS = ("ocr", "recognition", "counting", "relation", "existence", "diagram", "caption", "description")
_PLURALS = {"cross": "crosses"}


@dataclass(frozen=True)
class Question:
    """A question, its answer, and where in the picture the answer is.

    Attributes:
        task: one of ``TASKS``.
        prompt: the plain text of the question.
        answer: the canonical answer.
        foreground: patches that the answer needs, bool (rows, cols), or None where that is the whole picture.
        target_size: size of the thing asked about, or None where there is not exactly one.
    """

    task: str
    prompt: str
    answer: str
    foreground: NDArray[np.bool_] | None
    target_size: str | None


Draft = tuple[str, str, str, list[Item] | None]


def plural(name: str) -> str:
    """A shape's name for several of them."""
    return _PLURALS.get(name, name + "s")


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _noun(item: Item) -> str:
    return f"{item.colour} {item.name}"


def _recognition(stream: Stream, shapes: list[Item]) -> Iterable[Draft]:
    by_shape, by_colour = Counter(i.name for i in shapes), Counter(i.colour for i in shapes)
    for item in shapes:
        if by_shape[item.name] == 1:
            yield "recognition", f"what colour is the {item.name}?", item.colour, [item]
        if by_colour[item.colour] == 1:
            yield "recognition", f"what shape is the {item.colour} object?", item.name, [item]
    for size in ("small", "large"):
        sized = [item for item in shapes if item.size == size]
        if len(sized) == 1 and len(shapes) > 1:
            yield "recognition", f"what is the {size} object?", _noun(sized[0]), sized


def _counting(stream: Stream, shapes: list[Item], plan: Plan) -> Iterable[Draft]:
    if plan.theme is None:
        return
    attribute, value = plan.theme
    themed = [item for item in shapes if (item.name if attribute == "shape" else item.colour) == value]
    if themed:
        noun = plural(value) if attribute == "shape" else f"{value} objects"
        yield "counting", f"how many {noun} are there?", str(len(themed)), themed
    others = [i for i in shapes if i not in themed]
    if others and stream.chance(0.25):
        item = stream.choice(others)
        by_shape = stream.chance(0.5)
        same = [i for i in shapes if (i.name == item.name if by_shape else i.colour == item.colour)]
        noun = plural(item.name) if by_shape else f"{item.colour} objects"
        yield "counting", f"how many {noun} are there?", str(len(same)), same
    if stream.chance(0.35):
        yield "counting", "how many objects are there?", str(len(shapes)), shapes


def _relation(stream: Stream, items: list[Item]) -> Iterable[Draft]:
    shapes = [item for item in items if item.kind == "shape"]
    words = [item for item in items if item.kind == "word"]
    names = Counter(i.name for i in shapes)
    nouns = Counter(_noun(i) for i in shapes)
    named: list[tuple[str, Item]] = []
    for item in shapes:
        if names[item.name] == 1 and stream.chance(0.5):
            named.append((item.name, item))
        elif nouns[_noun(item)] == 1:
            named.append((_noun(item), item))
    if len(words) == 1:
        named.append(("word", words[0]))
    pairs = [(a, b) for a in named for b in named if a[1] is not b[1]]
    for (name, item), (other_name, other) in stream.sample(pairs, len(pairs)):
        dx, dy = item.centre[0] - other.centre[0], item.centre[1] - other.centre[1]
        if max(abs(dx), abs(dy)) < 1.4 * min(abs(dx), abs(dy)):
            continue
        across, upright = "left" if dx < 0 else "right", "above" if dy < 0 else "below"
        answer = across if abs(dx) > abs(dy) else upright
        yield "relation", f"where is the {name} relative to the {other_name}?", answer, [item, other]


def _existence(stream: Stream, shapes: list[Item]) -> Iterable[Draft]:
    present = {(i.colour, i.name) for i in shapes}
    colours, names = {i.colour for i in shapes}, {i.name for i in shapes}
    for item in stream.sample(shapes, 2):
        if stream.chance(0.6):
            same = [i for i in shapes if _noun(i) == _noun(item)]
            yield "existence", f"is there {_a(_noun(item))}?", "yes", same
        elif stream.chance(0.5):
            yield "existence", f"is there {_a(item.name)}?", "yes", [i for i in shapes if i.name == item.name]
        else:
            same = [i for i in shapes if i.colour == item.colour]
            yield "existence", f"is there {_a(item.colour)} object?", "yes", same
    for _ in range(min(2, len(shapes))):
        if stream.chance(0.6):
            if stream.chance(0.6):
                near = [(c, s) for c in sorted(colours) for s in sorted(names) if (c, s) not in present]
            elif stream.chance(0.5):
                near = [(c, s) for c in sorted(colours) for s in SHAPES if (c, s) not in present]
            else:
                near = [(c, s) for c in COLOURS for s in sorted(names) if (c, s) not in present]
            near = near or [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in present]
            colour, name = stream.choice(near)
            yield "existence", f"is there {_a(colour)} {name}?", "no", None
        elif stream.chance(0.5):
            yield "existence", f"is there {_a(stream.choice([s for s in SHAPES if s not in names]))}?", "no", None
        else:
            absent = [c for c in COLOURS if c not in colours]
            yield "existence", f"is there {_a(stream.choice(absent))} object?", "no", None


def _ocr(stream: Stream, words: list[Item]) -> Iterable[Draft]:
    if len(words) == 1:
        yield "ocr", "what word is written?", words[0].name, words
        return
    for item in words:
        yield "ocr", f"what is the {item.colour} word?", item.name, [item]


def _diagram(stream: Stream, boxes: list[Item], plan: Plan) -> Iterable[Draft]:
    by_name = {item.name: item for item in boxes}
    for source, target in plan.arrows:
        pair = [by_name[source], by_name[target]]
        yield "diagram", f"which box does {source} point to?", target, pair
        yield "diagram", f"which box points to {target}?", source, pair
    if boxes and stream.chance(0.5):
        yield "diagram", "how many boxes are there?", str(len(boxes)), boxes


def _position(item: Item, size: int) -> str:
    x, y = item.centre
    row = ("top", "middle", "bottom")[min(2, int(3 * y / size))]
    column = ("left", "centre", "right")[min(2, int(3 * x / size))]
    return f"at the {row} {column}"


def _caption(items: list[Item], plan: Plan) -> Draft:
    ordered = sorted(items, key=lambda item: item.centre[0])
    if plan.kind == "diagram":
        return "caption", "write a caption.", "a diagram of boxes " + " ".join(i.name for i in ordered), None
    names = [f"the word {i.name}" if i.kind == "word" else _a(_noun(i)) for i in ordered]
    text = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return "caption", "write a caption.", text, None


def _description(items: list[Item], plan: Plan, size: int) -> Draft:
    prompt = "describe the picture in detail."
    if plan.kind == "diagram":
        links = [f"{source} points to {target}." for source, target in plan.arrows]
        return "description", prompt, " ".join([f"a diagram of {len(items)} boxes.", *links]), None
    sentences = []
    for item in sorted(items, key=lambda item: item.centre[0]):
        what = f"the {item.colour} word {item.name}" if item.kind == "word" else f"a {item.size} {_noun(item)}"
        sentences.append(f"{what} {_position(item, size)}.")
    return "description", prompt, " ".join(sentences), None


def ask(stream: Stream, canvas: Canvas, plan: Plan, counts: NDArray[np.int64]) -> list[Question]:
    """Every question that applies to a drawn canvas.

    Args:
        stream: the scene's random stream.
        canvas: what was drawn.
        plan: what was meant: the counting theme, the diagram's arrows.
        counts: pixels of each part in each patch, (rows * cols, parts).
    """
    items = canvas.items
    shapes = [item for item in items if item.kind == "shape"]
    words = [item for item in items if item.kind == "word"]
    boxes = [item for item in items if item.kind == "box"]
    makers: list[tuple[int, Callable[[], Iterable[Draft]]]] = [
        (5, lambda: _recognition(stream, shapes)),
        (3, lambda: _counting(stream, shapes, plan)),
        (4, lambda: _relation(stream, items)),
        (4, lambda: _existence(stream, shapes)),
        (4, lambda: _ocr(stream, words)),
        (7, lambda: _diagram(stream, boxes, plan)),
    ]
    drafts = [draft for limit, make in makers for draft in stream.sample(list(make()), limit)]
    drafts += [_caption(items, plan), _description(items, plan, canvas.geometry.size)]
    questions = []
    for task, prompt, answer, needed in drafts:
        where = None
        if needed is not None:
            where = canvas.foreground(counts, [part for item in needed for part in item.parts])
        size = needed[0].size if needed is not None and len(needed) == 1 else None
        questions.append(Question(task, prompt, answer, where, size))
    return questions
