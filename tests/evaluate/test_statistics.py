"""Means over tasks and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from topv.evaluate import macro_interval, task_interval
from topv.evaluate.statistics import answer_score, mean_interval


def test_tasks_weigh_the_same() -> None:
    low, mean, high = macro_interval({"a": ([1.0] * 90 + [0.0] * 10, list(range(100))), "b": ([0.0] * 4, [0, 1, 2, 3])})
    assert mean == pytest.approx(0.45)
    assert low < mean < high


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        values = (generator.random(150) < 0.3).astype(float).tolist()
        low, _, high = macro_interval({"a": (values, list(range(150)))}, seed=trial)
        covered += low <= 0.3 <= high
    assert 180 <= covered <= 199


def test_questions_about_one_scene_are_not_independent() -> None:
    values = [float(i % 2) for i in range(50) for _ in range(4)]
    apart = macro_interval({"a": (values, list(range(200)))})
    together = macro_interval({"a": (values, [i for i in range(50) for _ in range(4)])})
    assert together[2] - together[0] > 1.7 * (apart[2] - apart[0])


def test_a_resample_without_a_task_is_drawn_again() -> None:
    """Two tasks about one scene each: half of all resamples hold one of them alone."""
    assert macro_interval({"a": ([1.0], [0]), "b": ([1.0], [1])}) == (1.0, 1.0, 1.0)


def test_no_spread_gives_no_width() -> None:
    assert macro_interval({"a": ([0.5] * 10, list(range(10)))}) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("tasks", [{"a": ([], [])}, {"a": ([1.0], [1, 2])}])
def test_bad_input(tasks: dict[str, tuple[list[float], list[int]]]) -> None:
    with pytest.raises(ValueError, match="task 'a' has"):
        macro_interval(tasks)


def test_a_task_without_errors_is_not_certain():
    scenes = [scene for scene in range(50) for _ in range(2)]
    low, mean, high = task_interval([1.0] * 100, scenes)
    assert (mean, high) == (1.0, 1.0)
    # Wilson's lower end for 50 of 50, not for 100 of 100.
    assert low == pytest.approx(50 / (50 + 1.959964**2))
    assert task_interval([0.0] * 100, scenes) == pytest.approx((0.0, 0.0, 1 - low))
    some = [0.0] + [1.0] * 99
    assert task_interval(some, scenes) == macro_interval({"": (some, scenes)})


def test_answers_are_scored_by_their_task() -> None:
    assert answer_score("ocr", " CAT ", "CAT") == 1.0
    assert answer_score("caption", "a red star", "a red star and a ring") == pytest.approx(2 / 3)


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="No scores"):
        mean_interval([])
