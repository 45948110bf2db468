"""The stages of a prefill, on a clock that moves only where a test lets a module take time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import topv
from module_snapshot import snapshot
from tiny_models import prompt, tiny_llava
from topv.errors import UnsupportedError
from topv.measure.stages import STAGES, ClockMarks, EventMarks, Marks, Stages, StageTimes, marks_for
from topv.methods import Evidence
from topv.models import family_of
from topv.runtime import prune
from topv.runtime.evidence import EvidenceReader

LAYERS = 5
SAMPLE = [[3, "image", 4]]


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, module: Any, seconds: float) -> Any:
        """Let each call of `module` take so long."""

        def pass_time(*_: object) -> None:
            self.now += seconds

        return module.register_forward_hook(pass_time)


@dataclass(frozen=True, kw_only=True)
class Slow(topv.TopV):
    """TopV that calls something while it ranks."""

    on_score: Callable[[], None] = lambda: None

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        self.on_score()
        return super().score(evidence, count)


@contextmanager
def slowed(model: Any, clock: Clock) -> Iterator[None]:
    """The vision tower takes 100 s, the projector 20 s, layer i 1 + i / 8 s, the final norm 3 s, the head 1000 s."""
    decoder = model.model.language_model
    handles = [
        clock.takes(model.model.vision_tower, 100.0),
        clock.takes(model.model.multi_modal_projector, 20.0),
        clock.takes(decoder.rotary_emb, 0.5),
        clock.takes(decoder.norm, 3.0),
        clock.takes(model.lm_head, 1000.0),
        *(clock.takes(layer.mlp, 1 + index / 8) for index, layer in enumerate(decoder.layers)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def staged(model: Any, marks: Marks, inputs: dict[str, Any], method: topv.Method | None = None) -> StageTimes:
    stages = Stages(family_of(model), marks)
    with torch.no_grad():
        if method is None:
            with stages.watching(), stages.run():
                model(**inputs)
        else:
            with prune(model, method), stages.watching(), stages.run():
                model(**inputs)
    return stages.times()


LAYER_SECONDS = tuple(1 + index / 8 for index in range(LAYERS))


def test_each_second_is_in_its_stage() -> None:
    model, clock = tiny_llava(layers=LAYERS), Clock()
    with slowed(model, clock):
        times = staged(model, ClockMarks(clock), prompt(SAMPLE))
    assert times == StageTimes(encode=120.0, layers=LAYER_SECONDS, selection=0.0, rest=1003.5)
    assert times.total == clock.now
    assert times.split(2) == {"encode": 120, "before": 2.125, "selection": 0, "after": 4.125, "rest": 1003.5}


@pytest.mark.parametrize("layer", [1, 3])
def test_the_selection_is_apart_from_the_layer_that_it_precedes(layer: int) -> None:
    model, clock = tiny_llava(layers=LAYERS), Clock()

    def take_ten() -> None:
        clock.now += 10

    with slowed(model, clock):
        times = staged(model, ClockMarks(clock), prompt(SAMPLE), Slow(keep=0.5, layer=layer, on_score=take_ten))
    assert times == StageTimes(encode=120.0, layers=LAYER_SECONDS, selection=10.0, rest=1003.5)
    assert times.total == clock.now


def test_what_is_read_in_a_layer_belongs_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clock = tiny_llava(layers=LAYERS), Clock()
    own = EvidenceReader.read_target

    def slow(self: EvidenceReader, hidden_states: torch.Tensor, **options: Any) -> None:
        clock.now += 7
        own(self, hidden_states, **options)

    monkeypatch.setattr(EvidenceReader, "read_target", slow)
    times = staged(model, ClockMarks(clock), prompt(SAMPLE), topv.TopV(keep=0.5, layer=2))
    assert times.layers == (0, 7, 0, 0, 0)
    assert times.selection == 0


@pytest.mark.parametrize("method", [None, topv.TopV(keep=0.5), topv.FastV(keep=4, attention="full"), topv.VTW()])
def test_on_the_real_clock_the_parts_add_up_to_the_whole(method: topv.Method | None) -> None:
    model = tiny_llava(layers=LAYERS)
    times = staged(model, marks_for(torch.device("cpu")), prompt([[3, "image", 4], [1, "image", 6]]), method)
    parts = times.split(2)
    assert list(parts) == list(STAGES)
    assert sum(parts.values()) == pytest.approx(times.total, rel=1e-9)
    assert (parts["selection"] > 0) == (method is not None)
    assert all(seconds > 0 for name, seconds in parts.items() if name != "selection")


def test_the_model_is_left_as_it_was_even_after_an_error() -> None:
    model, inputs = tiny_llava(), prompt(SAMPLE)
    with torch.no_grad():
        model(**inputs)
    before = snapshot(model)
    stages = Stages(family_of(model), ClockMarks())
    inputs["pixel_values"] = inputs["pixel_values"][:, :1]
    with stages.watching():
        assert snapshot(model) != before
    with pytest.raises(RuntimeError), stages.watching(), stages.run(), torch.no_grad():
        model(**inputs)
    assert snapshot(model) == before


def test_calls_outside_the_run_count_for_nothing() -> None:
    model, clock, inputs = tiny_llava(layers=LAYERS), Clock(), prompt(SAMPLE)
    stages = Stages(family_of(model), ClockMarks(clock))
    with slowed(model, clock), stages.watching(), torch.no_grad():
        model(**inputs)
        with stages.run():
            model(**inputs)
        model(**inputs)
    assert stages.times().total == 1123.5 + sum(LAYER_SECONDS) < clock.now


def test_layers_that_do_not_run_as_modules_are_named() -> None:
    model = tiny_llava(layers=LAYERS)
    stages = Stages(family_of(model), ClockMarks())
    layers = model.model.language_model.layers
    # transformers iterates over the list, so a shorter one is a forward that goes past two layers.
    model.model.language_model.layers = layers[:3]
    with stages.watching(), stages.run(), torch.no_grad():
        model(**prompt(SAMPLE))
    with pytest.raises(UnsupportedError, match=r"layers \[3, 4\] of 5 did not run"):
        stages.times()


class Event:
    """A CUDA event in a world where every recording is 2 ms after the one before."""

    log: tuple[str, ...] = ()
    count = 0

    def __init__(self) -> None:
        Event.count += 1
        self.at = 2.0 * Event.count
        Event.log += ("record",)

    def synchronize(self) -> None:
        Event.log += ("synchronize",)

    def elapsed_time(self, other: Event) -> float:
        return other.at - self.at


def test_on_a_device_nothing_waits_until_all_is_recorded() -> None:
    Event.log, Event.count = (), 0
    times = staged(tiny_llava(layers=LAYERS), EventMarks(Event), prompt(SAMPLE), topv.TopV(keep=0.5))
    assert Event.log == ("record",) * Event.count + ("synchronize",)
    # The call, the decoder, each layer, selection's beginning and end, the last layer's end, and the whole's.
    assert Event.count == 1 + 1 + LAYERS + 2 + 1 + 1
    assert times.total == pytest.approx(2e-3 * (Event.count - 1))
    assert times.layers == pytest.approx((2e-3, 2e-3, 4e-3, 2e-3, 2e-3))


def test_other_devices_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="'meta'"):
        marks_for(torch.device("meta"))
