"""What goes into a scene: objects, words or a diagram, placed without overlap."""

from __future__ import annotations

import numpy as np

from .backgrounds import HELD_OUT_BACKGROUNDS, TRAIN_BACKGROUNDS, draw_background
from .canvas import Canvas
from .diagrams import compose_diagram
from .fonts import HELD_OUT_FONTS, TRAIN_FONTS, cap_height
from .geometry import Geometry
from .plan import Plan
from .randomness import Stream
from .shapes import COLOURS, SHAPES
from .words import draw_word

__all__ = ["compose"]

SIDES = {"small": (18, 25), "medium": (30, 38), "large": (46, 58)}
CAPS = {"small": (12, 15), "medium": (17, 22), "large": (26, 34)}
_SIZE_NAMES = tuple(SIDES)
_TRIES = 40


def _tinted(stream: Stream, colour: str) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, value + stream.between(-14, 14))) for value in COLOURS[colour])
    return red, green, blue


def _place(stream: Stream, canvas: Canvas, width: int, height: int, gap: int) -> tuple[int, int] | None:
    """A free corner for a box, or None."""
    size, edge = canvas.geometry.size, 2
    if width > size - 2 * edge or height > size - 2 * edge:
        return None
    for _ in range(_TRIES):
        x, y = stream.between(edge, size - width - edge), stream.between(edge, size - height - edge)
        if canvas.is_free((x, y, x + width, y + height), gap):
            return x, y
    return None


def _add_shape(stream: Stream, canvas: Canvas, shape: str, colour: str, size: str) -> None:
    low, high = SIDES[size]
    side = canvas.geometry.scaled(stream.between(low, high))
    tilt, rgb = stream.uniform(-1, 1), _tinted(stream, colour)
    corner = _place(stream, canvas, side, side, canvas.geometry.scaled(3))
    if corner is not None:
        canvas.add_shape(shape, colour, rgb, size, corner, side, tilt)


def _add_word(stream: Stream, canvas: Canvas, colour: str, fonts: tuple[str, ...]) -> None:
    text, font = draw_word(stream), stream.choice(fonts)
    size = _SIZE_NAMES[stream.weighted((4, 4, 2))]
    low, high = CAPS[size]
    cap = canvas.geometry.scaled(stream.between(low, high))
    spacing = stream.between(0, 2)
    rgb = _tinted(stream, colour)
    while True:
        pixels = round(cap / cap_height(font))
        width = canvas.word_width(text, font, pixels, spacing)
        if width <= canvas.geometry.size - 8 or size == "small":
            break
        size = _SIZE_NAMES[_SIZE_NAMES.index(size) - 1]
        cap = canvas.geometry.scaled(CAPS[size][1])
    corner = _place(stream, canvas, width, cap, canvas.geometry.scaled(4))
    if corner is not None and all(item.name != text for item in canvas.items):
        canvas.add_word(text, font, pixels, colour, rgb, size, corner, spacing)


def _draw_clutter(stream: Stream, canvas: Canvas) -> None:
    """Faint strokes and dots that no question is about."""
    size = canvas.geometry.size
    for _ in range(stream.between(0, 7)):
        x, y = stream.uniform(0, size), stream.uniform(0, size)
        length, angle = size * stream.uniform(0.03, 0.15), stream.uniform(0, 2 * np.pi)
        grey = stream.between(85, 175)
        shade = (grey + stream.between(-10, 10), grey, grey + stream.between(-10, 10))
        if stream.chance(0.5):
            end = (x + length * float(np.cos(angle)), y + length * float(np.sin(angle)))
            canvas.pen.line([(x, y), end], fill=shade, width=stream.between(1, 2))
        else:
            radius = stream.uniform(1, 3) * size / 168
            canvas.pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=shade)


def _compose_objects(stream: Stream, canvas: Canvas, fonts: tuple[str, ...]) -> Plan:
    count = stream.between(1, 5)
    extra = stream.between(1, 4) if count < 4 else stream.between(0, 2)
    attribute = "shape" if stream.chance(0.5) else "colour"
    value = stream.choice(SHAPES if attribute == "shape" else tuple(COLOURS))
    total = count + extra
    weights = (3, 4, 3) if total <= 4 else (5, 4, 0.6)
    objects = []
    for index in range(total):
        shape, colour = stream.choice(SHAPES), stream.choice(tuple(COLOURS))
        if index < count:
            shape, colour = (value, colour) if attribute == "shape" else (shape, value)
        elif attribute == "shape":
            shape = stream.choice([name for name in SHAPES if name != value])
        else:
            colour = stream.choice([name for name in COLOURS if name != value])
        objects.append((shape, colour, _SIZE_NAMES[stream.weighted(weights)]))
    if total <= 6 and stream.chance(0.4):
        _add_word(stream, canvas, stream.choice(tuple(COLOURS)), fonts)
    for shape, colour, size in sorted(objects, key=lambda entry: -_SIZE_NAMES.index(entry[2])):
        _add_shape(stream, canvas, shape, colour, size)
    return Plan("objects", theme=(attribute, value))


def _compose_words(stream: Stream, canvas: Canvas, fonts: tuple[str, ...]) -> Plan:
    for colour in stream.sample(tuple(COLOURS), stream.between(1, 4)):
        _add_word(stream, canvas, colour, fonts)
    for _ in range(stream.between(0, 2)):
        size = _SIZE_NAMES[stream.weighted((5, 4, 1))]
        _add_shape(stream, canvas, stream.choice(SHAPES), stream.choice(tuple(COLOURS)), size)
    return Plan("words")


def compose(stream: Stream, geometry: Geometry, held_out: bool) -> tuple[Canvas, Plan]:
    """Draw one candidate scene; with ``held_out`` it may use the fonts and backgrounds kept from training."""
    backgrounds: tuple[str, ...] = tuple(TRAIN_BACKGROUNDS)
    fonts: tuple[str, ...] = TRAIN_FONTS
    if held_out and stream.chance(0.5):
        backgrounds = tuple(HELD_OUT_BACKGROUNDS)
    if held_out and stream.chance(0.5):
        fonts = HELD_OUT_FONTS
    canvas = Canvas(geometry, draw_background(stream, stream.choice(backgrounds), geometry.size))
    _draw_clutter(stream, canvas)
    kind = stream.weighted((50, 24, 26))
    if kind == 0:
        return canvas, _compose_objects(stream, canvas, fonts)
    if kind == 1:
        return canvas, _compose_words(stream, canvas, fonts)
    return canvas, compose_diagram(stream, canvas, fonts)
