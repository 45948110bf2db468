"""Questions asked in a batch: what is said of each is its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

import topv
from topv.answering import Answerer
from topv.evaluate import Asker, bundled_examples
from topv.evaluate.runner import inputs_of


@pytest.mark.parametrize(("method", "kept"), [(None, [144, 288]), (topv.Uniform(keep=0.25), [36, 72])])
def test_visual_tokens_are_those_of_each_question(method: topv.Method | None, kept: list[int]) -> None:
    """One question shows a picture, the other two: the mean over the batch is neither's."""
    model, processor = topv.load_mini()
    one, other = bundled_examples("validation", 2, ("existence",))["existence"]
    two = replace(other, frames=(one.image, other.image))
    with Asker(model, processor, method) as asker:
        answers = asker.ask([one, two])
    assert [answer.visual_tokens for answer in answers] == [144, 288]
    assert [answer.kept_tokens for answer in answers] == kept
    assert [answer.prompt for answer in answers] == [one.prompt, two.prompt]
    assert all((answer.visual_flops_reduction > 0) == (method is not None) for answer in answers)


def test_the_method_is_attached_inside_alone() -> None:
    model, processor = topv.load_mini()
    (example,) = bundled_examples("validation", 1, ("existence",))["existence"]
    inputs = inputs_of(processor, [example])
    answerer = Answerer(model, processor, topv.Uniform(keep=0.25))
    with answerer:
        (text,) = answerer.answer(inputs, max_new_tokens=3)
        assert answerer.kept_tokens([144]) == [36]
        latest = answerer.pruning
        assert latest is not None
    assert text == text.strip() != ""
    assert answerer.pruning is None
    assert answerer.kept_tokens([144]) == [144]
    # Detached: another method may be attached.
    with topv.prune(model, topv.TopV(keep=0.5)):
        pass
