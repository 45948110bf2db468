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

from topv.mini.canvas import IGNORED
from topv.mini.geometry import Geometry
from topv.mini.pages import draw_page
from topv.mini.questions import TASKS, Question
from topv.mini.randomness import Stream
from topv.mini.scenes import draw_scene

__all__ = ["ASSISTANT", "END", "Batch", "draw_batch", "pack", "stream_batches"]

ASSISTANT, END = "<|assistant|>", "<|end|>"
_LONG_SHARE = {
    "objects": {"caption": 0.15, "description": 0.12},
    "words": {"caption": 0.5, "description": 0.5},
    "diagram": {"caption": 0.3, "description": 0.5},
}


@dataclass
class Batch:
    """One batch: ``B`` scenes with ``A`` question-and-answer tokens each, then ``E`` pages of letters.

    Attributes:
        pixels: uint8 (B + E, size, size, 3).
        labels: dense labels, int64 (B + E, rows * cols, heads).
        tokens: int64 (B, A), empty for a tower batch.
        segments: int64 (B, A); 0 is padding, k the k-th question of the row.
        offsets: int64 (B, A); position behind the image prefix.
        targets: int64 (B, A); the next token where it belongs to an answer, else -100.
        weights: float32 (B, A); weight of each target.
        tasks: for each row the tasks of its segments, as indices into ``TASKS``.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    tokens: NDArray[np.int64]
    segments: NDArray[np.int64]
    offsets: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]
    tasks: list[list[int]]


def pack(
    questions: list[tuple[list[int], list[int], int]], room: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], list[int]]:
    """Lay questions behind one another, leaving out those that no longer fit.

    Args:
        questions: (question tokens with the assistant mark, answer tokens with the end mark, task index).
        room: number of tokens in the row.

    Returns:
        tokens, segments, offsets, targets, weights, each (room,), and the tasks of the segments.
    """
    tokens, segments, offsets = (np.zeros(room, dtype=np.int64) for _ in range(3))
    targets, weights = np.full(room, IGNORED, dtype=np.int64), np.zeros(room, dtype=np.float32)
    tasks: list[int] = []
    at = 0
    for asked, answered, task in questions:
        whole = asked + answered[:-1]
        if at + len(whole) > room:
            continue
        tasks.append(task)
        end = at + len(whole)
        tokens[at:end] = whole
        segments[at:end] = len(tasks)
        offsets[at:end] = np.arange(len(whole))
        targets[end - len(answered) : end] = answered
        weights[end - len(answered) : end] = len(answered) ** -0.5
        at = end
    return tokens, segments, offsets, targets, weights, tasks


def _chosen(stream: Stream, questions: list[Question], kind: str, everything: bool) -> list[Question]:
    """The questions of a scene to train on, shuffled; long answers only now and then."""
    shares = _LONG_SHARE[kind]
    kept = [q for q in questions if everything or stream.chance(shares.get(q.task, 1.0))]
    return kept if everything else stream.sample(kept, len(kept))


def draw_batch(
    tokenizer_file: str, split: str, start: int, count: int, geometry: Geometry, room: int, pages: int = 0
) -> Batch:
    """Draw a batch.

    Args:
        tokenizer_file: the ``tokenizer.json`` to encode questions with.
        split: split to draw from.
        start, count: scenes ``start`` to ``start + count - 1``.
        geometry: image and patch size.
        room: tokens for questions behind each image; 0 leaves the questions out.
        pages: pages of letters behind the scenes, that only the tower learns from.
    """
    drawn = [draw_scene(seed, split, geometry) for seed in range(start, start + count)]
    sheets = [draw_page(page, geometry) for page in range(pages * start, pages * (start + 1))]
    pixels = np.stack([*(np.asarray(scene.image, dtype=np.uint8) for scene in drawn), *(s[0] for s in sheets)])
    every = [scene.labels for scene in drawn] + [dense for _, dense in sheets]
    labels = np.stack(every).reshape(len(every), geometry.grid**2, -1)
    rows = []
    tokenizer = _tokenizer(tokenizer_file) if room else None
    for seed, scene in zip(range(start, start + count), drawn, strict=True):
        encoded = []
        if tokenizer is not None:
            for q in _chosen(Stream(seed, 99), scene.questions, scene.plan.kind, split != "train"):
                asked = tokenizer.encode(q.prompt + ASSISTANT).ids
                encoded.append((asked, tokenizer.encode(f" {q.answer}{END}").ids, TASKS.index(q.task)))
        rows.append(pack(encoded, room))
    used = max(16, -(-max(int((row[1] > 0).sum()) for row in rows) // 16) * 16) if room else 0
    tokens, segments, offsets, targets, weights = (np.stack([row[i] for row in rows])[:, :used] for i in range(5))
    return Batch(pixels, labels, tokens, segments, offsets, targets, weights, [row[5] for row in rows])


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
    tokenizer_file: str, start: int, count: int, stride: int, geometry: Geometry, room: int, pages: int, workers: int
) -> Generator[Batch, None, None]:
    """Training batches of ``count`` scenes, without end, drawn ahead by worker processes.

    They start at scene ``start`` and ``stride`` scenes apart.
    """
    pending: deque[Future[Batch]] = deque()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker) as pool:
        try:
            while True:
                while len(pending) < 4 * workers:
                    job = pool.submit(draw_batch, tokenizer_file, "train", start, count, geometry, room, pages)
                    pending.append(job)
                    start += stride
                yield pending.popleft().result()
        finally:
            for job in pending:
                job.cancel()
