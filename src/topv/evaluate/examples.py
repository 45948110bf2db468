"""The questions that methods are compared on: the bundled tasks, drawn from a split of the bundled scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError, unknown_name
from ..scenes import CLIP_TASKS, SHIPPED, TASKS, ClipQuestion, Geometry, Question, View, draw_clip, draw_scene

__all__ = ["CLIP_TASKS", "TASKS", "Example", "bundled_clips", "bundled_examples", "foreground_tokens"]

_PER_SCENE = 2

_Drawn = tuple[Sequence[Question | ClipQuestion], Image.Image, tuple[Image.Image, ...]]
"""What one seed gives: questions, the picture, and a clip's frames."""


@dataclass(frozen=True)
class Example:
    """One question about one image, or about several that are the frames of a clip.

    Attributes:
        task: the task it belongs to.
        scene: seed of the scene; questions that share it are not independent.
        image: RGB picture; of a clip the first.
        prompt: the question.
        answer: the expected answer.
        target_size: size of the thing asked about: "small", "medium", "large" or None.
        frames: the frames of a clip, none for a picture.
    """

    task: str
    scene: int
    image: Image.Image
    prompt: str
    answer: str
    target_size: str | None
    frames: tuple[Image.Image, ...] = ()

    @property
    def shown(self) -> tuple[Image.Image, ...]:
        """The pictures of the prompt, in order."""
        return self.frames or (self.image,)


def bundled_examples(
    split: str, count: int, tasks: Sequence[str] = TASKS, geometry: Geometry = SHIPPED
) -> dict[str, list[Example]]:
    """The first `count` questions of each task of a split, at most two of a task from one scene.

    Raises:
        InputError: for an unknown task, or a count below 1.
    """
    _check(tasks, TASKS, count)

    def draw(seed: int) -> _Drawn:
        scene = draw_scene(seed, split, geometry)
        return scene.questions, scene.image, ()

    return _first_questions(count, tasks, draw)


def bundled_clips(
    split: str, count: int, frames: int, tasks: Sequence[str] = CLIP_TASKS, geometry: Geometry = SHIPPED
) -> dict[str, list[Example]]:
    """The first `count` questions of each task about clips of `frames` frames, at most two of a task from one clip.

    Raises:
        InputError: for an unknown task, or a count below 1.
    """
    _check(tasks, CLIP_TASKS, count)

    def draw(seed: int) -> _Drawn:
        clip = draw_clip(seed, split, frames, geometry)
        return clip.questions, clip.frames[0], clip.frames

    return _first_questions(count, tasks, draw)


def _first_questions(
    count: int,
    tasks: Sequence[str],
    draw: Callable[[int], _Drawn],
) -> dict[str, list[Example]]:
    """For each task the first `count` questions about what is drawn from seeds 0, 1, ..."""
    found: dict[str, list[Example]] = {task: [] for task in tasks}
    seed = 0
    while any(len(examples) < count for examples in found.values()):
        questions, image, frames = draw(seed)
        for task, examples in found.items():
            own = [question for question in questions if question.task == task][:_PER_SCENE]
            examples += [
                Example(task, seed, image, q.prompt, q.answer, q.target_size, frames)
                for q in own[: count - len(examples)]
            ]
        seed += 1
    return found


def _check(tasks: Sequence[str], known: Sequence[str], count: int) -> None:
    for task in tasks:
        if task not in known:
            raise InputError(str(unknown_name("task", task, known)))
    if count < 1:
        raise InputError(f"{count} questions per task: expected at least 1.")


@lru_cache(maxsize=4096)
def foreground_tokens(split: str, scene: int, view: View) -> NDArray[np.bool_]:
    """Which visual tokens of a scene show something that may be asked about: bool (N,), in prompt order."""
    return view.shows(draw_scene(scene, split, view.geometry).foreground)
