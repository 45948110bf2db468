"""Batches for the trainer, drawn and tokenised in worker processes.

Many questions share one image: a row is the image's prefix followed by every question with its answer, each one
a segment of its own. ``segments`` numbers them (0 for padding), and positions restart behind the prefix, so that
every question is computed exactly as if it stood alone behind the image.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from topv.scenes import TASKS, Geometry, Question, Scene, View, draw_scene
from topv.scenes.canvas import IGNORED
from topv.scenes.randomness import Stream

from .drills import counting_drills, ranks
from .mentions import mention_targets
from .pages import draw_page

__all__ = ["ASSISTANT", "END", "Batch", "Encoded", "draw_batch", "pack", "stream_batches"]

ASSISTANT, END = "<|assistant|>", "<|end|>"
_SPARE_FROM = 1 << 24
_MORE_DIAGRAMS = 0.3
_LONG_SHARE = {
    "objects": {"caption": 0.15, "description": 0.12},
    "words": {"caption": 0.5, "description": 0.5},
    "diagram": {"caption": 0.3, "description": 0.5},
}


@dataclass
class Batch:
    """One batch: ``B`` scenes with ``A`` question-and-answer tokens each, then ``E`` pages of letters.

    Attributes:
        pixels: what the model is shown, uint8 (B + E, ..., side, side, 3); see ``View.pixels``.
        labels: dense labels of the tower's patches, int8 (B + E, patches, heads).
        visual_labels: dense labels of the visual tokens, int8 (B + E, tokens, heads).
        tokens: int64 (B, A), empty for a tower batch.
        segments: int64 (B, A); 0 is padding, k the k-th question of the row.
        offsets: int64 (B, A); position behind the image prefix.
        targets: int64 (B, A); the next token where it belongs to an answer, else -100.
        weights: float32 (B, A); weight of each target.
        mentions: int64 (B, A, 7); see ``training.mentions.mention_targets``.
        ranks: int64 (B, tokens, 3); see ``training.drills.ranks``.
        tasks: for each row the tasks of its segments, as indices into ``TASKS``.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int8]
    visual_labels: NDArray[np.int8]
    tokens: NDArray[np.int64]
    segments: NDArray[np.int64]
    offsets: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]
    mentions: NDArray[np.int64]
    ranks: NDArray[np.int64]
    tasks: list[list[int]]


@dataclass(frozen=True)
class Encoded:
    """A question in tokens: with the assistant mark, its answer with the end mark, what its nouns refer to."""

    asked: list[int]
    answered: list[int]
    mentions: NDArray[np.int64]
    task: int


@dataclass
class Row:
    """Questions laid behind one another; arrays are (room, ...) as in ``Batch``."""

    tokens: NDArray[np.int64]
    segments: NDArray[np.int64]
    offsets: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]
    mentions: NDArray[np.int64]
    tasks: list[int]


def pack(questions: list[Encoded], room: int) -> Row:
    """Lay questions behind one another in ``room`` tokens, leaving out those that no longer fit."""
    row = Row(
        tokens=np.zeros(room, dtype=np.int64),
        segments=np.zeros(room, dtype=np.int64),
        offsets=np.zeros(room, dtype=np.int64),
        targets=np.full(room, IGNORED, dtype=np.int64),
        weights=np.zeros(room, dtype=np.float32),
        mentions=np.full((room, 7), IGNORED, dtype=np.int64),
        tasks=[],
    )
    at = 0
    for question in questions:
        whole = question.asked + question.answered[:-1]
        answer = len(question.answered)
        end = at + len(whole)
        if end > room:
            continue
        row.tasks.append(question.task)
        row.tokens[at:end] = whole
        row.segments[at:end] = len(row.tasks)
        row.offsets[at:end] = np.arange(len(whole))
        row.targets[end - answer : end] = question.answered
        row.weights[end - answer : end] = answer**-0.5
        row.mentions[at : at + len(question.asked)] = question.mentions
        at = end
    return row


def _chosen(stream: Stream, scene: Scene) -> list[Question]:
    """The questions of a scene to train on, shuffled: long answers only now and then, counting more often."""
    shares = _LONG_SHARE[scene.plan.kind]
    kept = [q for q in scene.questions if stream.chance(shares.get(q.task, 1.0))]
    kept += counting_drills(stream, scene.items)
    return stream.sample(kept, len(kept))


def _draw(seed: int, split: str, geometry: Geometry, reading: float) -> Scene:
    """A scene, or another one in its place.

    All but a share of the scenes with letters give way to scenes of objects. In training, where all letters are read,
    some of the objects give way to diagrams, whose arrows take longest to learn.
    """
    scene = draw_scene(seed, split, geometry)
    if scene.plan.kind == "objects":
        wanted = "diagram" if split == "train" and reading == 1 and Stream(seed, 97).chance(_MORE_DIAGRAMS) else ""
    else:
        wanted = "" if Stream(seed, 98).chance(reading) else "objects"
    other = _SPARE_FROM + 16 * seed
    while wanted not in ("", scene.plan.kind):
        scene, other = draw_scene(other, split, geometry), other + 1
    return scene


def draw_batch(
    tokenizer_file: str,
    split: str,
    start: int,
    count: int,
    view: View,
    room: int,
    pages: int = 0,
    reading: float = 1.0,
) -> Batch:
    """Draw a batch.

    Args:
        tokenizer_file: the ``tokenizer.json`` to encode questions with.
        split: split to draw from.
        start, count: scenes ``start`` to ``start + count - 1``.
        view: how the model is shown a scene.
        room: tokens for questions behind each image; 0 leaves the questions out.
        reading: share of the scenes with letters that are kept; the others give way to scenes of objects.
        pages: pages of letters behind the scenes, that only the tower learns from.
    """
    geometry = view.geometry
    drawn = [_draw(seed, split, geometry, reading) for seed in range(start, start + count)]
    sheets = [draw_page(page, geometry) for page in range(pages * start, pages * (start + 1))]
    every = [(scene.canvas, scene.labels) for scene in drawn] + [(sheet, sheet.measure()[1]) for sheet in sheets]
    pixels = np.stack([view.pixels(canvas.image) for canvas, _ in every])
    labels, visual_labels = (
        np.stack(each).astype(np.int8)
        for each in zip(*(view.labels(canvas, dense) for canvas, dense in every), strict=True)
    )
    rows = []
    tokenizer = _tokenizer(tokenizer_file) if room else None
    for seed, scene in zip(range(start, start + count), drawn, strict=True):
        encoded = []
        if tokenizer is not None:
            for q in _chosen(Stream(seed, 99), scene) if split == "train" else scene.questions:
                asked = tokenizer.encode(q.prompt + ASSISTANT)
                answered = tokenizer.encode(f" {q.answer}{END}").ids
                mentions = mention_targets(asked, q.prompt, scene.items, view.cells, q.answer, scene.plan.arrows)
                encoded.append(Encoded(asked.ids, answered, mentions, TASKS.index(q.task)))
        rows.append(pack(encoded, room))
    # Cut where time is saved by it; in training every batch has one shape, for which layers are compiled.
    longest = max(int((row.segments > 0).sum()) for row in rows) if room else 0
    used = room if split == "train" else -(-longest // 16) * 16
    names = ("tokens", "segments", "offsets", "targets", "weights", "mentions")
    arrays = {name: np.stack([getattr(row, name) for row in rows])[:, :used] for name in names}
    order = np.stack([ranks(scene.items, view) for scene in drawn])
    return Batch(pixels, labels, visual_labels, ranks=order, tasks=[row.tasks for row in rows], **arrays)


_TOKENIZERS: dict[str, object] = {}


def _tokenizer(path: str):  # type: ignore[no-untyped-def]
    """A tokenizer read once per process."""
    if path not in _TOKENIZERS:
        from tokenizers import Tokenizer

        if not Path(path).is_file():
            raise FileNotFoundError(f"No tokenizer at {path}; the trainer writes it before it draws batches.")
        _TOKENIZERS[path] = Tokenizer.from_file(path)
    return _TOKENIZERS[path]


def _start_worker() -> None:
    os.nice(5)


def stream_batches(
    tokenizer_file: str,
    start: int,
    count: int,
    stride: int,
    view: View,
    room: int,
    pages: int,
    reading: float,
    workers: int,
) -> Generator[Batch, None, None]:
    """Training batches of ``count`` scenes, without end, drawn ahead by worker processes.

    They start at scene ``start`` and ``stride`` scenes apart.
    """
    pending: deque[Future[Batch]] = deque()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker) as pool:
        try:
            while True:
                while len(pending) < 4 * workers:
                    job = pool.submit(draw_batch, tokenizer_file, "train", start, count, view, room, pages, reading)
                    pending.append(job)
                    start += stride
                yield pending.popleft().result()
        finally:
            for job in pending:
                job.cancel()
