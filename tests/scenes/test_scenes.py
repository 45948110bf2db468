import os
import subprocess
import sys

import numpy as np
import pytest

from topv.scenes import SHIPPED, TASKS, Geometry
from topv.scenes.canvas import HEADS, IGNORED
from topv.scenes.scene import SPLITS, draw_scene, scene_seed, scenes


@pytest.fixture(scope="module")
def drawn():
    return list(scenes("train", 120))


def test_same_seed_same_scene():
    first, second = draw_scene(11, "test"), draw_scene(11, "test")
    assert first.image.tobytes() == second.image.tobytes()
    assert [(q.prompt, q.answer) for q in first.questions] == [(q.prompt, q.answer) for q in second.questions]
    np.testing.assert_array_equal(first.foreground, second.foreground)
    np.testing.assert_array_equal(first.labels, second.labels)


def test_same_pixels_on_another_processor():
    """Without the vector instructions beyond the oldest that numpy is built for, whose sines end in other bits."""
    core = pytest.importorskip("numpy._core._multiarray_umath")
    found = " ".join(name for name in core.__cpu_dispatch__ if core.__cpu_features__[name])
    code = (
        "import hashlib; from topv.scenes.backgrounds import BACKGROUNDS, draw_background;"
        "from topv.scenes.randomness import Stream; from topv.scenes import scenes;"
        "drawn = [draw_background(Stream(seed), kind, 168) for kind in BACKGROUNDS for seed in range(6)];"
        "drawn += [scene.image for scene in scenes('test', 20)];"
        "print(hashlib.sha256(b''.join(image.tobytes() for image in drawn)).hexdigest())"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled},
            capture_output=True, text=True, check=True,
        ).stdout
        for disabled in ("", found)
    ]  # fmt: skip
    assert digests[0] == digests[1] != ""


def test_splits_never_share_a_seed():
    used = {split: {scene_seed(seed, split) for seed in range(500)} for split in SPLITS}
    assert sum(len(seeds) for seeds in used.values()) == len(set().union(*used.values()))
    images = {draw_scene(seed, split).image.tobytes() for split in SPLITS for seed in range(20)}
    assert len(images) == 60


def test_foreground_share_and_shape(drawn):
    for scene in drawn:
        assert scene.image.size == (SHIPPED.size, SHIPPED.size)
        assert scene.foreground.shape == (SHIPPED.grid, SHIPPED.grid)
        assert scene.foreground.dtype == np.bool_
        assert 0.05 <= scene.foreground.mean() <= 0.40


def test_foreground_agrees_with_the_pixels():
    """Foreground patches differ from their surroundings more than background patches do."""
    inside, outside = [], []
    for scene in scenes("validation", 40):
        pixels = np.asarray(scene.image, dtype=np.float32)
        grid, patch = SHIPPED.grid, SHIPPED.patch
        patches = pixels.reshape(grid, patch, grid, patch, 3).transpose(0, 2, 1, 3, 4).reshape(grid, grid, -1, 3)
        spread = np.abs(patches - np.median(pixels, axis=(0, 1))).mean(axis=(2, 3))
        inside.append(spread[scene.foreground].mean())
        outside.append(spread[~scene.foreground].mean())
    assert np.mean(inside) > 2 * np.mean(outside)


def test_dense_labels_are_in_range_and_follow_foreground(drawn):
    for scene in drawn:
        assert scene.labels.shape == (SHIPPED.grid, SHIPPED.grid, len(HEADS))
        for index, classes in enumerate(HEADS.values()):
            values = scene.labels[..., index]
            assert ((values == IGNORED) | ((values >= 0) & (values < classes))).all()
        kind = scene.labels[..., 0]
        assert scene.foreground[kind > 0].all()


def test_questions_are_well_formed(drawn):
    seen = set()
    for scene in drawn:
        for question in scene.questions:
            seen.add(question.task)
            assert question.task in TASKS
            assert question.prompt
            assert question.answer == question.answer.strip() != ""
            assert question.answer not in question.prompt.split()
            assert question.target_size in (None, "small", "medium", "large")
            if question.foreground is not None:
                assert question.foreground.shape == scene.foreground.shape
                assert question.foreground.any()
                assert not (question.foreground & ~scene.foreground).any()
    assert seen == set(TASKS)


def test_needed_patches_of_a_lone_word_are_the_word():
    """The patches that an OCR answer needs hold letters, and no letter lies outside of them."""
    checked = 0
    for scene in scenes("train", 80):
        asked = [q for q in scene.questions if q.task == "ocr" and q.prompt == "what word is written?"]
        for question in asked:
            letters = (scene.labels[..., 0] >= 9) & (scene.labels[..., 0] <= 34)
            assert question.foreground[letters].all()
            checked += 1
    assert checked >= 5


def test_answers_are_balanced():
    answers = {task: [] for task in TASKS}
    for scene in scenes("train", 400):
        for question in scene.questions:
            answers[question.task].append(question.answer)
    assert abs(np.mean([a == "yes" for a in answers["existence"]]) - 0.5) < 0.03
    for task, most in (("relation", 0.33), ("counting", 0.35), ("recognition", 0.2), ("diagram", 0.25), ("ocr", 0.05)):
        counts = np.unique(answers[task], return_counts=True)[1]
        assert counts.max() / counts.sum() < most, task


def test_other_geometry():
    scene = draw_scene(3, "train", Geometry(336, 14))
    assert scene.image.size == (336, 336)
    assert scene.foreground.shape == (24, 24)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_scene(0, "tests"), "'tests'; expected one of train, validation, test"),
        (lambda: draw_scene(-1, "test"), "-1; expected a number from 0 up"),
        (lambda: Geometry(170, 14), "170 with patch 14"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
