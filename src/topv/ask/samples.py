"""The built-in pictures that `topv compare` asks about when no image is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..images import open_image
from ..scenes import Question, Scene, draw_scene

__all__ = ["DEFAULT_PROMPT", "Subject", "subjects_from_files", "subjects_from_scenes"]

DEFAULT_PROMPT = "describe the picture in detail."
TASKS = ("ocr", "recognition", "counting", "relation", "existence", "diagram")
"""Tasks with one short right answer, in the order in which samples show them."""

_LAST_SEED = 1_000


@dataclass(frozen=True)
class Subject:
    """One image and the question about it.

    Attributes:
        image: RGB.
        image_name: where it came from.
        prompt: the question.
        expected: the true answer, when it is known.
        foreground: bool (rows, columns), the patches that show something, when it is known.
    """

    image: Image.Image
    image_name: str
    prompt: str
    expected: str | None = None
    foreground: NDArray[np.bool_] | None = None


def subjects_from_files(paths: list[Path], prompts: list[str]) -> list[Subject]:
    """Every prompt about every image.

    Raises:
        InputError: when an image cannot be read.
    """
    images = [(str(path), open_image(path)) for path in paths]
    return [Subject(image, name, prompt) for name, image in images for prompt in prompts or [DEFAULT_PROMPT]]


def subjects_from_scenes(count: int, prompts: list[str]) -> list[Subject]:
    """Test scenes that training never saw, in the order of their seeds.

    Without prompts, sample i asks the first question of task i (in turns) in the first scene not yet used that has
    one: nothing is picked by how well it goes.

    Args:
        count: number of scenes.
        prompts: questions to ask about every scene instead of its own.
    """
    subjects: list[Subject] = []
    unused = 0
    for index in range(count):
        task = TASKS[index % len(TASKS)]
        if prompts:
            scene = draw_scene(index, "test")
            subjects += [_subject(scene, index, prompt, _answer(scene, prompt)) for prompt in prompts]
            continue
        for seed in range(unused, _LAST_SEED):
            scene = draw_scene(seed, "test")
            question = next((q for q in scene.questions if q.task == task), None)
            if question is not None:
                subjects.append(_subject(scene, seed, question.prompt, question))
                unused = seed + 1
                break
    return subjects


def _answer(scene: Scene, prompt: str) -> Question | None:
    return next((q for q in scene.questions if q.prompt == prompt and q.task in TASKS), None)


def _subject(scene: Scene, seed: int, prompt: str, question: Question | None) -> Subject:
    expected = None if question is None else question.answer
    return Subject(scene.image, f"built-in test scene {seed}", prompt, expected, scene.foreground)
