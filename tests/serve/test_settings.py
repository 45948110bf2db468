from __future__ import annotations

from typing import Any

import pytest

import topv
from topv.errors import InputError
from topv.serve import ServeSettings


def test_defaults() -> None:
    settings = ServeSettings.read({})
    assert settings.method == topv.TopV(keep=0.5, stage="encoder", layer=0)
    assert settings.max_keep == 1.0


@pytest.mark.parametrize(
    "options",
    [
        {"keep": 0.3},
        {"keep": 64, "max_keep": 0.5},
        {"method": "uniform", "keep": 0.25},
        {"method": "random", "keep": 0.25, "seed": 3},
        {"keep": 0.5, "eps": 0.1, "beta": 0.2, "target": "mlp", "recovery": 0.25, "budget": "image"},
        {"method": "meancost"},
        {"method": "facilitylocation", "keep": 0.1},
    ],
)
def test_written_and_read_again(options: dict[str, Any]) -> None:
    settings = ServeSettings.read(options)
    for name, value in options.items():
        holder = settings if name == "max_keep" else settings.method
        assert (settings.method.name if name == "method" else getattr(holder, name)) == value
    assert ServeSettings.read(settings.to_dict()) == settings


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (0.5, ["topv=0.5", "not a mapping"]),
        ({"kep": 0.5}, ["unknown setting 'kep'", "'keep'"]),
        ({"keep": 1.5}, ["keep=1.5"]),
        ({"keep": 0.0}, ["keep=0.0"]),
        ({"keep": "half"}, ["'half'"]),
        ({"keep": 0.8, "max_keep": 0.5}, ["keep=0.8", "max_keep=0.5"]),
        ({"max_keep": 2.0}, ["max_keep=2.0"]),
        ({"max_keep": 3}, ["max_keep=3", "ratio"]),
        ({"method": "topw"}, ["unknown method 'topw'", "'topv'"]),
        ({"method": "fastv"}, ["'fastv' cannot be served", "uniform"]),
        ({"visual_flops": 0.5}, ["visual_flops=0.5", "keep"]),
        ({"budget": "sample"}, ["budget='sample'", "budget='image'"]),
        ({"stage": "decoder", "layer": 2}, ["stage='encoder'"]),
        ({"layer": 2}, ["layer=0"]),
        ({"eps": -1}, ["eps=-1"]),
    ],
)
def test_refused(options: Any, parts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        ServeSettings.read(options)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("asked", [0.5, 0.25, 1, 64, 0.75])
def test_a_request_may_ask_for(asked: float) -> None:
    assert ServeSettings.read({"keep": 0.5, "max_keep": 0.75}).keep_of(asked) == asked


@pytest.mark.parametrize("asked", [0, -1, 0.0, 1.0, 0.76, float("nan"), float("inf"), "0.5", [0.5], True, {}])
def test_a_request_may_not_ask_for(asked: Any) -> None:
    settings = ServeSettings.read({"keep": 0.5, "max_keep": 0.75})
    with pytest.raises(InputError, match="keep"):
        settings.keep_of(asked)


def test_identities_differ_by_method_and_ratio() -> None:
    options: list[dict[str, Any]] = [{}, {"eps": 0.1}, {"method": "uniform"}, {"method": "random"}]
    options += [{"method": "random", "seed": 1}]
    salts = {ServeSettings.read(o).salt(digest, keep) for o in options for digest in "ab" for keep in (0.5, 0.25, 72)}
    assert len(salts) == 5 * 2 * 3
    assert ServeSettings.read({}).salt("a", 0.5) == ServeSettings.read({"keep": 0.25}).salt("a", 0.5)
