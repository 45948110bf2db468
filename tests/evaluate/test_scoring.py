from __future__ import annotations

import pytest

from topv.evaluate.scoring import answer_score


def test_answers_are_scored_by_their_task() -> None:
    assert answer_score("ocr", " CAT ", "CAT") == 1.0
    assert answer_score("ocr", "CAR", "CAT") == 0.0
    assert answer_score("caption", "a red star", "a red star and a ring") == pytest.approx(2 / 3)
