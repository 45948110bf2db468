"""Where the time to the first token goes: vision tower, layers before the pruning layer, selection, layers after, rest.

Every moment of the prefill belongs to exactly one stage, so that the stages add up to the whole. What tells them apart
are hooks on the stock modules, and on a CUDA device events in its stream: nothing waits for the device until the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..errors import UnsupportedError
from ..models import Family
from ..runtime.phases import SELECTION, observing

__all__ = ["STAGES", "ClockMarks", "EventMarks", "Marks", "StageTimes", "Stages", "marks_for"]

STAGES = ("encode", "before", "selection", "after", "rest")
"""The stages of a prefill in their order, see `StageTimes`."""

_REST = "rest"
_ENCODE = "encode"


class Marks(Protocol):
    """Points in time on the device that does the work."""

    def set(self) -> None:
        """Set the next mark here."""

    def seconds(self) -> list[float]:
        """Seconds from each mark to the next, once the device has reached the last."""


class ClockMarks:
    """Marks on the host's clock, for a device that works while the host waits.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._times: list[float] = []

    def set(self) -> None:
        self._times.append(self._clock())

    def seconds(self) -> list[float]:
        return [after - before for before, after in zip(self._times, self._times[1:], strict=False)]


class EventMarks:
    """Marks in the current stream of a CUDA device: the host goes on at once, and waits only in `seconds`.

    Args:
        record: records an event with timing in that stream, and returns it.
    """

    def __init__(self, record: Callable[[], Any]) -> None:
        self._record = record
        self._events: list[Any] = []

    def set(self) -> None:
        self._events.append(self._record())

    def seconds(self) -> list[float]:
        if self._events:
            self._events[-1].synchronize()
        pairs = zip(self._events, self._events[1:], strict=False)
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]


def marks_for(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> Marks:
    """Marks for work on `device`.

    Raises:
        UnsupportedError: when it is neither a CPU nor a CUDA device.
    """
    if device.type == "cuda":

        def record() -> Any:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(device))
            return event

        return EventMarks(record)
    if device.type == "cpu":
        return ClockMarks(clock)
    raise UnsupportedError(f"stages cannot be timed on device {str(device)!r}. Expected cpu or cuda.")


@dataclass(frozen=True)
class StageTimes:
    """Seconds of each stage of one prefill.

    Attributes:
        encode: from the call to the decoder: vision tower, projector, embedding, and the plan of what to prune.
        layers: each decoder layer, what the method reads in it and what the decoder adds behind it included.
        selection: inside the layer at which pruning begins: ranking and choosing tokens. 0 without pruning.
        rest: masks and positions in front of the first layer, and what follows the last: final norm, states put back
            at their prompt positions, head, next token.
    """

    encode: float
    layers: tuple[float, ...]
    selection: float
    rest: float

    @property
    def decoder(self) -> float:
        """The decoder layers with the selection."""
        return sum(self.layers) + self.selection

    @property
    def total(self) -> float:
        """The whole prefill."""
        return self.encode + self.decoder + self.rest

    def split(self, layer: int) -> dict[str, float]:
        """Seconds by stage (of `STAGES`), the decoder cut in front of layer `layer`.

        >>> StageTimes(1.0, (2.0, 3.0, 4.0), 0.5, 0.25).split(1)
        {'encode': 1.0, 'before': 2.0, 'selection': 0.5, 'after': 7.0, 'rest': 0.25}
        """
        parts = (self.encode, sum(self.layers[:layer]), self.selection, sum(self.layers[layer:]), self.rest)
        return dict(zip(STAGES, parts, strict=True))


class Stages:
    """Cuts one prefill into stages.

    Args:
        family: the model's parts. A pruning, if any, is attached before `watching` is entered.
        marks: fresh marks for the device.
    """

    def __init__(self, family: Family, marks: Marks) -> None:
        self._family = family
        self._marks = marks
        self._names: list[str | int] = []
        self._running = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on the model for the block, in which `run` may be entered."""
        family = self._family
        handles: list[Any] = []
        try:
            handles.append(family.language_model.register_forward_pre_hook(self._enter(_REST), prepend=True))
            for index, layer in enumerate(family.layers):
                # In front of the pruning's hooks, so that shortening a layer's input is part of that layer.
                handles.append(layer.register_forward_pre_hook(self._enter(index), prepend=True))
            handles.append(family.layers[-1].register_forward_hook(self._enter(_REST)))
            with observing(self._phase):
                yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def run(self) -> Iterator[None]:
        """The prefill itself, from its call to its first token."""
        self._running = True
        self._begin(_ENCODE)
        try:
            yield
        finally:
            self._running = False
        self._marks.set()

    def times(self) -> StageTimes:
        """The stages of the prefill that ran, once the device has done it.

        Raises:
            UnsupportedError: when some decoder layer did not run.
        """
        spent: dict[str | int, float] = {}
        for name, seconds in zip(self._names, self._marks.seconds(), strict=True):
            spent[name] = spent.get(name, 0.0) + seconds
        depth = len(self._family.layers)
        missing = [index for index in range(depth) if index not in spent]
        if missing:
            raise UnsupportedError(
                f"decoder layers {missing} of {depth} did not run as modules, so their time is not known. Stages need "
                "a forward that calls every decoder layer, and is not compiled."
            )
        return StageTimes(
            encode=spent[_ENCODE],
            layers=tuple(spent[index] for index in range(depth)),
            selection=spent.get(SELECTION, 0.0),
            rest=spent[_REST],
        )

    def _begin(self, name: str | int) -> None:
        self._names.append(name)
        self._marks.set()

    def _enter(self, name: str | int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if self._running:
                self._begin(name)

        return hook

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        if not self._running:
            yield
            return
        before = self._names[-1]
        self._begin(name)
        yield
        self._begin(before)
