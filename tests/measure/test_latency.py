"""Latency tables from callables whose time is known, on a clock that only they move."""

from __future__ import annotations

import gc

import pytest

from topv.errors import InputError
from topv.measure.latency import (
    LatencyTable,
    Ratio,
    Stopwatch,
    measure_latency,
    measure_phases,
)


class Clock:
    """A clock in seconds that moves only when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def takes(self, *seconds):
        """A callable that takes these times, one after another and over again."""
        calls = []

        def run(*_):
            self.now += seconds[len(calls) % len(seconds)]
            calls.append(self.now)

        return run


def test_medians_spreads_and_ratios():
    clock = Clock()
    table = measure_latency(
        {"none": clock.takes(2.0), "half": clock.takes(1.0), "drifting": clock.takes(1.0, 2.0, 3.0, 4.0, 5.0)},
        baseline="none",
        warmup=0,
        repetitions=5,
        clock=clock,
    )
    assert table["none"].median == 2.0
    assert table["none"].ratio is None
    assert table["half"].ratio == Ratio(0.5, 0.5, 0.5, 1 - 2 / 2**5)
    assert table["drifting"].median == 3.0
    assert table["drifting"].spread == 2.0
    assert (table["drifting"].ratio.value, table["drifting"].ratio.low) == (1.5, 0.5)
    assert list(table.rows) == ["none", "half", "drifting"]


def test_a_ratio_whose_interval_holds_one_is_flagged():
    def ratio(*times):
        return LatencyTable.from_seconds({"a": [1.0] * len(times), "b": times}, "a")["b"].ratio

    assert ratio(0.9, 0.8, 1.01).unclear
    assert not ratio(0.9, 0.8, 0.95).unclear
    assert ratio(1.0, 1.0).unclear
    assert not ratio(1.2, 1.3).unclear
    assert str(ratio(0.9, 0.8, 1.01)) == "~0.90 (0.80–1.01)"
    assert str(ratio(0.5, 0.5)) == "0.50 (0.50–0.50)"


def test_a_slowdown_of_the_machine_leaves_the_ratio_alone():
    # Both become ten times slower from the third round on; medians of each alone would hide the pairing.
    times = {"none": [1.0, 1.1, 10.0, 11.0, 10.5], "half": [0.5, 0.55, 5.0, 5.5, 5.25]}
    ratio = LatencyTable.from_seconds(times, "none")["half"].ratio
    assert ratio.value == ratio.low == ratio.high == 0.5


def test_outliers_are_trimmed_once_there_are_enough_rounds():
    times = [0.5] * 8 + [50.0]
    ratio = Ratio.of(times)
    assert (ratio.value, ratio.high) == (0.5, 0.5)
    assert ratio.coverage >= 0.95


def test_rounds_are_interleaved_and_rotate():
    order = []
    measure_latency(
        {name: lambda name=name: order.append(name) for name in "abc"},
        baseline="a",
        warmup=1,
        repetitions=3,
        clock=iter(range(1000)).__next__,
    )
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"


def test_warm_up_does_not_count():
    clock = Clock()
    table = measure_latency(
        {"none": clock.takes(9.0, 1.0, 1.0), "b": clock.takes(7.0, 2.0, 2.0)},
        baseline="none",
        warmup=1,
        repetitions=2,
        clock=clock,
    )
    assert table["none"].seconds == (1.0, 1.0)
    assert table["b"].ratio.value == 2.0


def test_phases_are_timed_apart():
    clock = Clock()

    def candidate(first, second):
        def run(watch):
            clock.now += 100
            with watch.phase("prefill"):
                clock.now += first
            for _ in range(3):
                with watch.phase("decode"):
                    clock.now += second

        return run

    runs = []
    tables = measure_phases(
        {"none": candidate(4, 1), "b": candidate(1, 2)},
        baseline="none",
        warmup=1,
        repetitions=2,
        clock=clock,
        on_run=lambda: runs.append(1),
    )
    assert tables["prefill"]["b"].ratio.value == 0.25
    assert tables["decode"]["none"].median == 3
    assert tables["decode"]["b"].ratio.value == 2
    assert len(runs) == 6


def test_the_device_is_waited_for_before_every_reading():
    log = []

    def clock():
        log.append("clock")
        return float(len(log))

    watch = Stopwatch(clock, lambda: log.append("wait"))
    with watch.phase("a"):
        log.append("work")
    assert log == ["wait", "clock", "work", "wait", "clock"]


def test_the_collector_is_left_as_it_was():
    def fail():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        measure_latency({"a": fail}, baseline="a")
    assert gc.isenabled()
    gc.disable()
    try:
        measure_latency({"a": lambda: None}, baseline="a", repetitions=1)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_text_and_values():
    table = LatencyTable.from_seconds({"none": [0.002, 0.002], "topv": [0.001, 0.001]}, "none")
    assert str(table).splitlines()[1] == "topv      1.00 ms ± 0.00  x 0.50 (0.50–0.50)"
    assert table["topv"].to_dict() == {
        "median_seconds": 0.001,
        "spread_seconds": 0.0,
        "seconds": [0.001, 0.001],
        "ratio": {"value": 0.5, "low": 0.5, "high": 0.5, "coverage": 0.5, "unclear": False},
    }
    assert table["none"].to_dict()["ratio"] is None


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"baseline": "c"}, "'c' is not a candidate"),
        ({"baseline": "a", "repetitions": 0}, "repetitions=0"),
        ({"baseline": "a", "warmup": -1}, "warmup=-1"),
        ({"baseline": "a", "clock": lambda: 1.0}, "too coarse"),
    ],
)
def test_bad_input(options, part):
    with pytest.raises(InputError, match=part):
        measure_latency({"a": lambda: None, "b": lambda: None}, **options)
