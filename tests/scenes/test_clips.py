"""Clips: what moves, what is glimpsed, and questions that any of the right frames answers."""

from __future__ import annotations

import numpy as np
import pytest

from topv.errors import InputError
from topv.evaluate import bundled_clips
from topv.scenes import CLIP_TASKS, Geometry, draw_clip

SMALL = Geometry(112, 14)


def test_the_same_seed_draws_the_same_clip() -> None:
    one, other = (draw_clip(3, "test", 3) for _ in range(2))
    assert [frame.tobytes() for frame in one.frames] == [frame.tobytes() for frame in other.frames]
    assert one.questions == other.questions
    assert one.frames[0].tobytes() != draw_clip(3, "validation", 3).frames[0].tobytes()


@pytest.mark.parametrize("seed", range(6))
def test_what_changed_is_what_differs(seed: int) -> None:
    clip = draw_clip(seed, "validation", 4, SMALL)
    assert clip.changed.shape == (4, 8, 8)
    assert clip.changed[0].all()
    for before, after, changed in zip(clip.frames, clip.frames[1:], clip.changed[1:], strict=False):
        differs = (np.asarray(before) != np.asarray(after)).any(axis=2).reshape(8, 14, 8, 14).any(axis=(1, 3))
        assert np.array_equal(differs, changed)
        assert not changed.all(), "the background stands still"


def test_one_object_is_seen_in_one_frame_alone() -> None:
    """Where nothing moves, only the frame that shows it and the one after it differ from the one before."""
    for seed in range(40):
        clip = draw_clip(seed, "validation", 5, SMALL)
        moments = [frame for frame in range(1, 5) if clip.changed[frame].any()]
        if len(moments) <= 2:
            assert set(moments) == {clip.glimpsed, clip.glimpsed + 1} & {1, 2, 3, 4}
            return
    pytest.fail("no clip of the forty stands still")


def test_questions_are_answered_by_the_cast() -> None:
    clip = draw_clip(1, "validation", 4)
    by_task = {task: [q for q in clip.questions if q.task == task] for task in CLIP_TASKS}
    assert all(by_task.values())
    assert {q.answer for q in by_task["existence"]} == {"yes", "no"}
    glimpsed = {q.prompt: q.answer for q in by_task["glimpse"]}
    shape = next(answer for prompt, answer in glimpsed.items() if prompt.startswith("what shape"))
    colour = glimpsed[f"what colour is the {shape}?"]
    assert f"what shape is the {colour} object?" in glimpsed
    assert all(shape not in q.prompt for q in by_task["counting"])


def test_examples_about_clips() -> None:
    found = bundled_clips("validation", 5, 3, ("glimpse", "counting"))
    assert {task: len(examples) for task, examples in found.items()} == {"glimpse": 5, "counting": 5}
    assert all(len(example.shown) == 3 for examples in found.values() for example in examples)
    assert max(np.bincount([example.scene for example in found["glimpse"]])) == 2
    with pytest.raises(InputError, match="unknown task 'ocr'"):
        bundled_clips("validation", 5, 3, ("ocr",))
    with pytest.raises(ValueError, match="frames=0"):
        draw_clip(0, "test", 0)
