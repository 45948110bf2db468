"""What a batch job is about: questions read from folders, globs and JSONL files, and which of them share a batch."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..images import image_size

__all__ = ["IMAGE_SUFFIXES", "JobItem", "digest", "plan_batches", "read_items"]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Files of a folder that are taken for images, whatever the case."""

_GROWTH = 2
"""The largest image of a batch has at most this many times the pixels of its smallest."""


@dataclass(frozen=True)
class JobItem:
    """One question about one image.

    Attributes:
        image: the image as it was named; None where the line that should name it does not.
        path: where it lies.
        prompt: the question.
        id: what the line gave as its "id", any JSON value.
        fault: why it cannot be asked, or None.
    """

    image: str | None
    path: Path | None
    prompt: str | None
    id: Any = None
    fault: str | None = None


def read_items(sources: Sequence[str], prompt: str | None) -> list[JobItem]:
    """The questions that `sources` hold, in their order, files of a folder or glob by name.

    Args:
        sources: each a folder (its image files, not those of folders in it), a glob, an image file, or a JSONL file
            whose lines are objects with "image" (a path, from the JSONL file's folder where it is relative), "prompt"
            and, if wanted, "id".
        prompt: the question about images of folders and globs, and of lines without one.

    Raises:
        InputError: when a source does not exist or holds nothing, or images come without a question.
    """
    items: list[JobItem] = []
    for source in sources:
        path = Path(source).expanduser()
        found = list(_read_lines(path, prompt) if path.suffix.lower() == ".jsonl" else _read_images(path, prompt))
        if not found:
            raise InputError(
                f"{source!r} holds nothing to ask about. Expected a folder with image files "
                f"({', '.join(IMAGE_SUFFIXES)}), a glob such as 'photos/**/*.jpg', or a JSONL file of lines such as "
                '{"image": "a.jpg", "prompt": "What is this?"}.'
            )
        items += found
    return items


def digest(items: Iterable[JobItem]) -> str:
    """A fingerprint of the questions, for telling one job from another."""
    named = [[item.image, item.prompt, item.id, item.fault] for item in items]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]


def plan_batches(items: Sequence[JobItem], batch_size: int) -> list[list[int]]:
    """Which items, by their places, share a batch: images of similar size, whose prompts are of similar length.

    Reads the header of every image. Items whose image has none that can be read come last.
    """
    sizes = [None if item.path is None or item.fault else image_size(item.path) for item in items]
    areas = [size[0] * size[1] if size else 0 for size in sizes]
    readable = [place for place in range(len(items)) if areas[place]]
    readable.sort(key=lambda place: (areas[place], sizes[place], len(items[place].prompt or ""), place))
    batches: list[list[int]] = []
    for place in readable:
        if not batches or len(batches[-1]) == batch_size or areas[place] > _GROWTH * areas[batches[-1][0]]:
            batches.append([])
        batches[-1].append(place)
    faulty = [place for place in range(len(items)) if not areas[place]]
    return batches + [faulty[first : first + batch_size] for first in range(0, len(faulty), batch_size)]


def _read_images(path: Path, prompt: str | None) -> Iterator[JobItem]:
    if path.is_dir():
        found = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.is_dir()]
    elif path.exists():
        found = [path]
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True) if not Path(name).is_dir()]
    if found and prompt is None:
        raise InputError(f"--prompt is missing: {str(path)!r} names images alone. Give the question about them.")
    for file in sorted(found):
        yield JobItem(image=str(file), path=file, prompt=prompt)


def _read_lines(path: Path, prompt: str | None) -> Iterator[JobItem]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is not a JSONL file: it is no UTF-8 text ({error}).") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _read_line(line, f"line {number} of {path.name}", path.parent, prompt)


def _read_line(line: str, name: str, folder: Path, prompt: str | None) -> JobItem:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return JobItem(None, None, None, fault=f"{name} is not JSON: {error}")
    if not isinstance(record, dict):
        return JobItem(None, None, None, fault=f"{name} is a {type(record).__name__}, expected an object")
    image, question, identity = record.get("image"), record.get("prompt", prompt), record.get("id")
    if not isinstance(image, str) or not image:
        fault = f'{name} names no image: expected "image" with a path, got {image!r}'
        return JobItem(None, None, None, identity, fault)
    if not isinstance(question, str):
        fault = f'{name} asks nothing: expected "prompt" with a text, got {question!r}; --prompt gives one to all'
        return JobItem(image, None, None, identity, fault)
    return JobItem(image, folder / Path(image).expanduser(), question, identity)
