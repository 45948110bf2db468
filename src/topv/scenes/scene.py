"""Scenes: pictures drawn from a seed, with questions whose answers are known exactly.

A scene is the same for the same seed and split on every machine with the same Pillow. Splits draw from disjoint seeds,
and half of the test split's scenes use fonts, and half of them backgrounds, that training never sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .canvas import Canvas, Item
from .composition import compose
from .geometry import SHIPPED, Geometry
from .plan import Plan
from .questions import TASKS, Question, ask
from .randomness import Stream

__all__ = ["SPLITS", "TASKS", "Question", "Scene", "draw_scene", "scene_seed", "scenes"]

SPLITS = ("train", "validation", "test")
FOREGROUND_SHARE = (0.05, 0.40)
_ATTEMPTS = 60


@dataclass(frozen=True)
class Scene:
    """One picture and what is true about it.

    Attributes:
        image: RGB, ``geometry.size`` pixels square.
        foreground: patches that show something a question may ask about, bool (rows, cols).
        questions: every question that applies.
        labels: dense labels per patch, int64 (rows, cols, heads); see ``topv.scenes.canvas.HEADS``.
        plan: what was composed.
        items: what questions can be about.
        canvas: the finished drawing, which can be measured on other patches.
    """

    image: Image.Image
    foreground: NDArray[np.bool_]
    questions: list[Question]
    labels: NDArray[np.int64]
    plan: Plan
    items: list[Item]
    canvas: Canvas


def scene_seed(seed: int, split: str) -> int:
    """The seed that a scene is really drawn from: no two splits share one.

    >>> scene_seed(4, "train"), scene_seed(4, "test")
    (12, 14)
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}; expected one of {', '.join(SPLITS)}.")
    if seed < 0:
        raise ValueError(f"Scene seed {seed}; expected a number from 0 up.")
    return len(SPLITS) * seed + SPLITS.index(split)


def draw_scene(seed: int, split: str, geometry: Geometry = SHIPPED) -> Scene:
    """Draw one scene.

    Args:
        seed: any integer from 0 up.
        split: "train", "validation" or "test".
        geometry: image and patch size; the shipped model's by default.

    Returns:
        A scene whose foreground covers 5 to 40 % of the patches.
    """
    own = scene_seed(seed, split)
    low, high = FOREGROUND_SHARE
    for attempt in range(_ATTEMPTS):
        stream = Stream(own, attempt)
        canvas, plan = compose(stream, geometry, held_out=split == "test")
        counts, labels = canvas.measure()
        foreground = canvas.foreground(counts)
        if canvas.items and low <= foreground.mean() <= high:
            questions = ask(stream, canvas, plan, counts)
            return Scene(canvas.image, foreground, questions, labels, plan, canvas.items, canvas)
    raise RuntimeError(
        f"Scene {seed} of split {split!r} found no layout with {low:.0%} to {high:.0%} foreground in {_ATTEMPTS}"
        f" attempts on {geometry}; take another seed or a larger image."
    )


def scenes(split: str, count: int, start: int = 0, geometry: Geometry = SHIPPED) -> Iterator[Scene]:
    """Draw ``count`` scenes of a split, from seed ``start`` up."""
    for seed in range(start, start + count):
        yield draw_scene(seed, split, geometry)
