"""The hook point around a forward's phases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import topv
from tiny_models import prompt, shared_llava
from topv.runtime.phases import SELECTION, observing, phase


class Log:
    """Writes down what it is shown."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.seen.append(f"{name} begins")
        yield
        self.seen.append(f"{name} ends")


def test_the_selection_is_shown_once_and_only_where_something_is_pruned() -> None:
    log = Log()
    model, inputs = shared_llava(), prompt([[3, "image", 4]])
    with torch.no_grad(), observing(log):
        model(**inputs)
        with topv.prune(model, topv.TopV(keep=0.5)):
            model(**prompt([[6]]))
            assert log.seen == []
            model(**inputs)
    assert log.seen == [f"{SELECTION} begins", f"{SELECTION} ends"]


def enter(name: str) -> None:
    with phase(name):
        pass


def fail() -> None:
    raise ValueError("inside")


def test_nobody_observes_outside_the_block_and_an_inner_block_observes_alone() -> None:
    outer, inner = Log(), Log()
    enter("before")
    with observing(outer):
        enter("a")
        with observing(inner):
            enter("b")
        enter("c")
    enter("after")
    assert outer.seen == ["a begins", "a ends", "c begins", "c ends"]
    assert inner.seen == ["b begins", "b ends"]


def test_an_error_gets_out_and_ends_the_observation() -> None:
    log = Log()
    with pytest.raises(ValueError, match="inside"), observing(log), phase("a"):
        fail()
    enter("after")
    assert log.seen == ["a begins"]
