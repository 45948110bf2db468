"""Pages full of letters, and diagrams, from which the tower alone learns to read and to follow arrows.

A scene shows a dozen letters, a page a hundred: reading is what takes longest to learn, and pages make it several
times faster. They ask no questions and belong to no split.
"""

from __future__ import annotations

from topv.scenes import Geometry
from topv.scenes.backgrounds import TRAIN_BACKGROUNDS, draw_background
from topv.scenes.canvas import Canvas
from topv.scenes.diagrams import compose_diagram
from topv.scenes.fonts import TRAIN_FONTS, cap_height
from topv.scenes.randomness import Stream
from topv.scenes.shapes import COLOURS
from topv.scenes.words import LETTERS

__all__ = ["draw_page"]

_CAPS = ((12, 16), (16, 24), (24, 36))
_SEED_MARK = 7
_MOST_PARTS = 240
_DARK = ("black", "blue", "purple")


def draw_page(seed: int, geometry: Geometry) -> Canvas:
    """Draw one page, every third a diagram; its image and ``Canvas.measure`` say what a scene's do."""
    stream = Stream(_SEED_MARK, seed)
    background = draw_background(stream, stream.choice(tuple(TRAIN_BACKGROUNDS)), geometry.size)
    canvas = Canvas(geometry, background)
    if seed % 3 == 0:
        compose_diagram(stream, canvas, TRAIN_FONTS)
        return canvas
    size_class = stream.below(len(_CAPS))
    y = stream.between(1, 12)
    while True:
        cap = geometry.scaled(stream.between(*_CAPS[size_class]))
        if y + cap > geometry.size - 1 or len(canvas.labels) > _MOST_PARTS:
            break
        _write_row(stream, canvas, y, cap, size_class)
        y += cap + stream.between(3, 3 + cap // 2)
    return canvas


def _write_row(stream: Stream, canvas: Canvas, y: int, cap: int, size_class: int) -> None:
    """Words from left to right, now and then on a panel as in a diagram."""
    size, font = canvas.geometry.size, stream.choice(TRAIN_FONTS)
    pixels = round(cap / cap_height(font))
    x = stream.between(1, 14)
    while len(canvas.labels) < _MOST_PARTS:
        text = "".join(stream.choice(LETTERS) for _ in range(stream.between(1, 8)))
        spacing = stream.between(0, 2)
        while text and x + canvas.word_width(text, font, pixels, spacing) > size - 1:
            text = text[:-1]
        if not text:
            return
        colour = stream.choice(tuple(COLOURS))
        red, green, blue = (min(255, max(0, value + stream.between(-14, 14))) for value in COLOURS[colour])
        width = canvas.word_width(text, font, pixels, spacing)
        if stream.chance(0.25):
            light = stream.between(225, 255) if colour in _DARK else stream.between(0, 25)
            canvas.pen.rectangle([x - 3, y - 3, x + width + 2, y + cap + 2], fill=(light, light, light))
        parts = canvas.add_letters(text, font, pixels, (red, green, blue), (x, y), spacing)
        for part in parts:
            canvas.label(part, "colour", 1 + tuple(COLOURS).index(colour))
            canvas.label(part, "size", size_class)
        x += width + stream.between(5, 14)
