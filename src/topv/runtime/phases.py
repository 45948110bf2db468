"""Named phases of a pruned forward, for whoever measures it; they cost nothing while nobody does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

__all__ = ["SELECTION", "Observer", "observing", "phase"]

SELECTION = "selection"
"""Ranking the visual tokens and deciding which columns stay. Reading the evidence, in the layer before,
is no part of it."""

Observer = Callable[[str], AbstractContextManager[object]]
"""Given a phase's name, a context manager that is entered when the phase begins and left when it ends."""

_observer: ContextVar[Observer | None] = ContextVar("topv_observer", default=None)


def phase(name: str) -> AbstractContextManager[object]:
    """A context manager around phase `name`: the observer's, or one that does nothing."""
    observer = _observer.get()
    return nullcontext() if observer is None else observer(name)


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Show the phases of what runs in this context, inside the block, to `observer`."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)
