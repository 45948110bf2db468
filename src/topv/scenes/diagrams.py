"""Diagrams: boxes with a letter each, joined by arrows into a chain."""

from __future__ import annotations

import itertools
import math

from .canvas import DIAGRAM_CELLS, SECTORS, Canvas, Item
from .fonts import cap_height, load_font
from .plan import Plan
from .randomness import Stream
from .words import LETTERS

__all__ = ["compose_diagram", "sector"]

_PAPERS = ((246, 246, 240), (255, 250, 205), (214, 236, 255), (226, 250, 220), (255, 224, 222))
_INK, _CHALK = (14, 14, 18), (250, 250, 250)
Cell = tuple[int, int]


def _walk(stream: Stream, length: int) -> list[Cell]:
    """A path over neighbouring cells of a 3 x 3 grid that never crosses itself."""
    while True:
        path: list[Cell] = [(stream.below(DIAGRAM_CELLS), stream.below(DIAGRAM_CELLS))]
        while len(path) < length:
            column, row = path[-1]
            steps = [(column + i, row + j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
            free = [
                cell
                for cell in steps
                if min(cell) >= 0 and max(cell) < DIAGRAM_CELLS and cell not in path and not _crosses(path, cell)
            ]
            if not free:
                break
            path.append(stream.choice(free))
        if len(path) == length:
            return path


def _crosses(path: list[Cell], new: Cell) -> bool:
    """Whether a step from the path's end would cross an earlier diagonal step."""
    last = path[-1]
    middle = (last[0] + new[0], last[1] + new[1])
    diagonal = last[0] != new[0] and last[1] != new[1]
    return diagonal and any((a[0] + b[0], a[1] + b[1]) == middle for a, b in itertools.pairwise(path))


def _border(box: tuple[int, int, int, int], towards: tuple[float, float], gap: float) -> tuple[float, float]:
    """Where the line from a box's middle to a point leaves the box, ``gap`` pixels outside."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    dx, dy = towards[0] - x, towards[1] - y
    half_width, half_height = (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
    reach = min(half_width / abs(dx) if dx else math.inf, half_height / abs(dy) if dy else math.inf)
    reach += gap / math.hypot(dx, dy)
    return x + dx * reach, y + dy * reach


def sector(start: tuple[float, float], end: tuple[float, float]) -> int:
    """The direction from one point to another, 1 for right and on clockwise to 8."""
    turn = math.atan2(end[1] - start[1], end[0] - start[0]) / (2 * math.pi)
    return 1 + round(turn * SECTORS) % SECTORS


def _draw_arrow(canvas: Canvas, start: tuple[float, float], end: tuple[float, float], dark: bool) -> int:
    scale = canvas.geometry.size / 168
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    head, width = 9 * scale, max(2, round(3 * scale))
    neck = (end[0] - 0.7 * head * math.cos(angle), end[1] - 0.7 * head * math.sin(angle))
    wings = [(end[0] - head * math.cos(angle + turn), end[1] - head * math.sin(angle + turn)) for turn in (0.5, -0.5)]
    part = canvas.new_part("arrow", colour=8 if dark else 7)
    for pen, fill in ((canvas.pen, _INK if dark else _CHALK), (canvas.owner_pen, part)):
        pen.line([start, neck], fill=fill, width=width)
        pen.polygon([end, *wings], fill=fill)
    return part


def compose_diagram(stream: Stream, canvas: Canvas, fonts: tuple[str, ...]) -> Plan:
    """Draw 3 to 6 boxes in a chain, most of its arrows, and label every box with its neighbours."""
    geometry = canvas.geometry
    pitch, scaled = geometry.size / DIAGRAM_CELLS, geometry.scaled
    count, dark = stream.between(3, 6), stream.chance(0.5)
    path, letters = _walk(stream, count), stream.sample(LETTERS, count)
    font, paper = stream.choice(fonts), stream.choice(_PAPERS)
    frames = {}
    for (column, row), letter in zip(path, letters, strict=True):
        width, height = scaled(stream.between(24, 29)), scaled(stream.between(22, 26))
        x = round(column * pitch + stream.uniform(3, pitch - width - 3))
        y = round(row * pitch + stream.uniform(3, pitch - height - 3))
        frame = (x, y, x + width, y + height)
        frames[letter] = frame
        fill, ink = (paper, _INK) if dark else (_INK, paper)
        box_part = canvas.new_part("box", colour=0)
        canvas.pen.rectangle([x, y, x + width - 1, y + height - 1], fill=fill, outline=ink, width=scaled(2))
        canvas.owner_pen.rectangle([x, y, x + width - 1, y + height - 1], fill=box_part)
        cap = scaled(stream.between(13, 16))
        pixels = round(cap / cap_height(font))
        advance = load_font(font, pixels).getlength(letter)
        corner = (round(x + (width - advance) / 2), round(y + (height - cap) / 2))
        parts = canvas.add_letters(letter, font, pixels, ink, corner, 0)
        canvas.label(parts[0], "colour", 0)
        canvas.boxes.append(frame)
        canvas.items.append(Item("box", letter, "", "small", frame, (box_part, *parts)))
    by_letter = {item.name: item for item in canvas.items}
    cells = {letter: 1 + DIAGRAM_CELLS * row + column for (column, row), letter in zip(path, letters, strict=True)}
    leaving, entering = dict.fromkeys(letters, 0), dict.fromkeys(letters, 0)
    arrows = [pair for pair in itertools.pairwise(letters) if stream.chance(0.88)] or [(letters[0], letters[1])]
    for source, target in arrows:
        start = _border(frames[source], by_letter[target].centre, 1.5)
        end = _border(frames[target], by_letter[source].centre, 1.5)
        part = _draw_arrow(canvas, start, end, dark)
        towards = sector(by_letter[source].centre, by_letter[target].centre)
        canvas.label(part, "leaves", towards)
        canvas.label(part, "enters", towards)
        canvas.label(part, "to_cell", cells[target])
        canvas.label(part, "from_cell", cells[source])
        leaving[source] = entering[target] = towards
    forward, backward = dict(arrows), {target: source for source, target in arrows}
    for letter, item in by_letter.items():
        after, before = forward.get(letter), backward.get(letter)
        for part in item.parts:
            canvas.label(part, "points_to", 0 if after is None else 1 + LETTERS.index(after))
            canvas.label(part, "pointed_from", 0 if before is None else 1 + LETTERS.index(before))
            canvas.label(part, "leaves", leaving[letter])
            canvas.label(part, "enters", entering[letter])
            canvas.label(part, "to_cell", 0 if after is None else cells[after])
            canvas.label(part, "from_cell", 0 if before is None else cells[before])
    return Plan("diagram", arrows=tuple(arrows))
