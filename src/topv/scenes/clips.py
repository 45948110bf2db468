"""Clips: a scene's objects over several frames, some moving, one in a single frame, with questions about all of it.

A clip is the same for the same seed, split and number of frames on every machine with the same Pillow. What does not
move is the same to the pixel in every frame.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .backgrounds import HELD_OUT_BACKGROUNDS, TRAIN_BACKGROUNDS, draw_background
from .canvas import Canvas
from .composition import SIDES
from .geometry import SHIPPED, Geometry
from .questions import plural
from .randomness import Stream
from .scene import scene_seed
from .shapes import COLOURS, SHAPES

__all__ = ["CLIP_TASKS", "Clip", "ClipQuestion", "draw_clip"]

CLIP_TASKS = ("recognition", "existence", "counting", "glimpse")
"""The last asks what `recognition` does, of the object that one frame alone shows."""

_SALT = 0xC11B
_TRIES = 60
_ATTEMPTS = 40
_GAP = 3

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class ClipQuestion:
    """A question that has the same answer whichever frame it is read from, of those that show what it asks about.

    Attributes:
        task: one of `CLIP_TASKS`.
        prompt: the question, in the words of the bundled scenes.
        answer: the answer.
        target_size: size of the thing asked about, or None where there is not exactly one.
    """

    task: str
    prompt: str
    answer: str
    target_size: str | None


@dataclass(frozen=True)
class Clip:
    """A clip of F frames.

    Attributes:
        frames: RGB pictures, all of one size.
        changed: bool (F, rows, cols), the patches in which a frame differs from the one before; all of the first's.
        glimpsed: the frame that alone shows one of the objects.
        questions: what can be asked.
    """

    frames: tuple[Image.Image, ...]
    changed: NDArray[np.bool_]
    glimpsed: int
    questions: list[ClipQuestion]


@dataclass(frozen=True)
class _Actor:
    """An object with the corner that it has in each frame that shows it."""

    shape: str
    colour: str
    rgb: tuple[int, int, int]
    size: str
    side: int
    tilt: float
    corners: dict[int, tuple[int, int]]


def draw_clip(seed: int, split: str, frames: int, geometry: Geometry = SHIPPED) -> Clip:
    """Draw one clip.

    Args:
        seed: any integer from 0 up.
        split: "train", "validation" or "test".
        frames: how many frames, at least 1.
        geometry: image and patch size.

    Raises:
        ValueError: for fewer than 1 frame.
        RuntimeError: when the objects find no room.
    """
    if frames < 1:
        raise ValueError(f"frames={frames}: expected at least 1.")
    own = scene_seed(seed, split)
    for attempt in range(_ATTEMPTS):
        stream = Stream(own, _SALT, frames, attempt)
        backgrounds = tuple(TRAIN_BACKGROUNDS)
        if split == "test" and stream.chance(0.5):
            backgrounds = tuple(HELD_OUT_BACKGROUNDS)
        background = draw_background(stream, stream.choice(backgrounds), geometry.size)
        actors, glimpsed = _cast(stream, geometry, frames)
        if actors is None:
            continue
        pictures = tuple(_draw(background, actors, frame, geometry) for frame in range(frames))
        return Clip(pictures, _changes(pictures, geometry), glimpsed, _ask(stream, actors))
    raise RuntimeError(f"Clip {seed} of split {split!r} found no room in {_ATTEMPTS} attempts on {geometry}.")


def _cast(stream: Stream, geometry: Geometry, frames: int) -> tuple[list[_Actor] | None, int]:
    """The actors, the one that a single frame shows last, and that frame; None where there is no room."""
    theme = stream.choice(SHAPES)
    others = stream.sample([shape for shape in SHAPES if shape != theme], 3)
    colours = stream.sample(tuple(COLOURS), 6)
    count = stream.between(1, 3)
    cast = [(theme, colours.pop()) for _ in range(count)]
    cast += [(shape, colours.pop()) for shape in others[: stream.between(1, 2)]]
    glimpsed = stream.below(frames)
    taken: list[list[Box]] = [[] for _ in range(frames)]
    actors = []
    for number, (shape, colour) in enumerate([*cast, (others[-1], colours.pop())]):
        last = number == len(cast)
        shown = [glimpsed] if last else list(range(frames))
        size = tuple(SIDES)[stream.weighted((3, 4, 1))]
        low, high = SIDES[size]
        side = geometry.scaled(stream.between(low, high))
        moves = not last and stream.chance(0.5)
        corners = _path(stream, geometry, side, shown, taken, moves=moves)
        if corners is None:
            return None, glimpsed
        red, green, blue = (min(255, max(0, value + stream.between(-14, 14))) for value in COLOURS[colour])
        actors.append(_Actor(shape, colour, (red, green, blue), size, side, stream.uniform(-1, 1), corners))
        for frame, (x, y) in corners.items():
            taken[frame].append((x, y, x + side, y + side))
    return actors, glimpsed


def _path(
    stream: Stream, geometry: Geometry, side: int, shown: list[int], taken: list[list[Box]], *, moves: bool
) -> dict[int, tuple[int, int]] | None:
    """A corner for each frame that shows an object, clear of the others, or None."""
    edge, reach = 2, geometry.scaled(22)
    for _ in range(_TRIES):
        x, y = (stream.between(edge, geometry.size - side - edge) for _ in range(2))
        dx, dy = (stream.between(-reach, reach) if moves else 0 for _ in range(2))
        corners = {frame: (x + dx * frame, y + dy * frame) for frame in shown}
        inside = all(edge <= min(c) and max(c) + side <= geometry.size - edge for c in corners.values())
        far = not moves or max(abs(dx), abs(dy)) >= geometry.patch
        if inside and far and all(_is_free(corner, side, taken[f], geometry) for f, corner in corners.items()):
            return corners
    return None


def _is_free(corner: tuple[int, int], side: int, taken: list[Box], geometry: Geometry) -> bool:
    x, y = corner
    gap = geometry.scaled(_GAP)
    return all(
        x >= right + gap or x + side <= left - gap or y >= bottom + gap or y + side <= top - gap
        for left, top, right, bottom in taken
    )


def _draw(background: Image.Image, actors: list[_Actor], frame: int, geometry: Geometry) -> Image.Image:
    canvas = Canvas(geometry, background.copy())
    for actor in actors:
        if frame in actor.corners:
            corner = actor.corners[frame]
            canvas.add_shape(actor.shape, actor.colour, actor.rgb, actor.size, corner, actor.side, actor.tilt)
    return canvas.image


def _changes(pictures: tuple[Image.Image, ...], geometry: Geometry) -> NDArray[np.bool_]:
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    differs = np.ones(pixels.shape[:3], dtype=np.bool_)
    differs[1:] = np.any(pixels[1:] != pixels[:-1], axis=3)
    grid, patch = geometry.grid, geometry.patch
    patches: NDArray[np.bool_] = np.any(differs.reshape(-1, grid, patch, grid, patch), axis=(2, 4))
    return patches


def _ask(stream: Stream, actors: list[_Actor]) -> list[ClipQuestion]:
    """Every question about a cast, in random order."""
    shapes = Counter(actor.shape for actor in actors)
    visitor = actors[-1]
    questions = []
    for actor in actors:
        task = "glimpse" if actor is visitor else "recognition"
        if shapes[actor.shape] == 1:
            questions.append(ClipQuestion(task, f"what colour is the {actor.shape}?", actor.colour, actor.size))
        questions.append(ClipQuestion(task, f"what shape is the {actor.colour} object?", actor.shape, actor.size))
    there = {(actor.colour, actor.shape) for actor in actors}
    present = stream.choice(actors[:-1])
    absent = stream.choice([(c, s) for c in COLOURS for s in SHAPES if (c, s) not in there])
    for (colour, shape), answer, size in (((present.colour, present.shape), "yes", present.size), (absent, "no", None)):
        article = "an" if colour[0] in "aeiou" else "a"
        questions.append(ClipQuestion("existence", f"is there {article} {colour} {shape}?", answer, size))
    # The object of a single frame is left out: how many there are would depend on the frame.
    for shape in sorted(shapes.keys() - {visitor.shape}):
        questions.append(ClipQuestion("counting", f"how many {plural(shape)} are there?", str(shapes[shape]), None))
    return stream.sample(questions, len(questions))
