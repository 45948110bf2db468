"""Score a bundled model on the test split: ``python -m topv.mini.score --questions 300``.

Every answer is generated, greedily, from the processor's own chat format. The image-blind score asks the same
questions with the image replaced by noise.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from topv.mini import MINI_PATH
from topv.mini.geometry import Geometry
from topv.mini.questions import TASKS, Question
from topv.mini.randomness import Stream
from topv.mini.scenes import SPLITS, draw_scene
from topv.mini.statistics import answer_score, gain_interval, mean_interval
from topv.mini.views import read_view

__all__ = ["answer_all", "collect", "main", "noise_image"]

_LONGEST = {"caption": 64, "description": 160}
_PER_SCENE = 2


@dataclass(frozen=True)
class Asked:
    """A question with the scene it is about."""

    scene: int
    image: Image.Image
    question: Question


def collect(split: str, count: int, geometry: Geometry, start: int = 0) -> dict[str, list[Asked]]:
    """The first ``count`` questions of each task from a split, at most two of a task per scene."""
    found: dict[str, list[Asked]] = {task: [] for task in TASKS}
    seed = start
    while any(len(asked) < count for asked in found.values()):
        scene = draw_scene(seed, split, geometry)
        for task in TASKS:
            chosen = [q for q in scene.questions if q.task == task][:_PER_SCENE]
            room = count - len(found[task])
            found[task] += [Asked(seed, scene.image, q) for q in chosen[:room]]
        seed += 1
    return found


def noise_image(seed: int, side: int) -> Image.Image:
    """Uniform noise: what a model is shown in place of the image to measure what it guesses."""
    return Image.fromarray(Stream(3, seed).bytes(side * side * 3).reshape(side, side, 3))


def answer_all(
    model: Any, processor: Any, pairs: Sequence[tuple[Image.Image, str]], longest: int, batch: int
) -> list[str]:
    """Greedy answers to (image, question) pairs, in order."""
    import torch

    answers: list[str] = []
    for first in range(0, len(pairs), batch):
        part = pairs[first : first + batch]
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}],
                add_generation_prompt=True,
            )
            for _, prompt in part
        ]
        inputs = processor(images=[image for image, _ in part], text=texts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**inputs.to(model.device), max_new_tokens=longest, do_sample=False)
        written = ids[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.batch_decode(written, skip_special_tokens=True)]
    return answers


def _score_task(model: Any, processor: Any, task: str, asked: list[Asked], batch: int, side: int) -> dict[str, Any]:
    longest = _LONGEST.get(task, 12)
    seen = answer_all(model, processor, [(a.image, a.question.prompt) for a in asked], longest, batch)
    noise = [(noise_image(a.scene, side), a.question.prompt) for a in asked]
    blind = answer_all(model, processor, noise, longest, batch)
    scores = [answer_score(task, answer, a.question.answer) for answer, a in zip(seen, asked, strict=True)]
    guesses = [answer_score(task, answer, a.question.answer) for answer, a in zip(blind, asked, strict=True)]
    by_size = defaultdict(list)
    for score, a in zip(scores, asked, strict=True):
        if a.question.target_size is not None:
            by_size[a.question.target_size].append(score)
    return {
        "task": task,
        "questions": len(asked),
        "score": mean_interval(scores),
        "blind": mean_interval(guesses),
        "gain": gain_interval(scores, guesses, [a.scene for a in asked]),
        "by_size": {size: (sum(s) / len(s), len(s)) for size, s in sorted(by_size.items())},
    }


def _row(result: dict[str, Any]) -> str:
    def cell(name: str) -> str:
        low, mean, high = (100 * value for value in result[name])
        return f"{mean:5.1f} [{low:.1f}, {high:.1f}]"

    sizes = ", ".join(f"{size} {100 * mean:.0f} ({n})" for size, (mean, n) in result["by_size"].items())
    cells = (result["task"], str(result["questions"]), cell("score"), cell("blind"), cell("gain"), sizes)
    return "| " + " | ".join(cells) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of accuracy per task, with the image and blind, with 95 % intervals."""
    parser = argparse.ArgumentParser(prog="python -m topv.mini.score", description=__doc__)
    parser.add_argument("--model", type=Path, default=MINI_PATH, help="model folder")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--questions", type=int, default=300, help="questions per task")
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args(arguments)
    tasks = options.tasks.split(",")
    unknown = sorted(set(tasks) - set(TASKS))
    if unknown:
        raise ValueError(f"Unknown tasks {unknown}; expected some of {', '.join(TASKS)}.")
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(options.model, dtype=torch.float32, local_files_only=True)
    model.to(options.device)
    processor = AutoProcessor.from_pretrained(options.model, local_files_only=True)
    geometry = read_view(model.config, processor).geometry
    asked = collect(options.split, options.questions, geometry)
    print("| task | questions | score, % | image-blind, % | gain, points | score by target size (questions) |")
    print("|---|---|---|---|---|---|")
    results = []
    for task in tasks:
        results.append(_score_task(model.eval(), processor, task, asked[task], options.batch, geometry.size))
        print(_row(results[-1]), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
