"""What the bridge to lmms-eval makes of its arguments, without lmms-eval."""

from __future__ import annotations

import subprocess
import sys

import pytest

import topv
from topv.errors import InputError
from topv.evaluate.lmms import BASES, base_name, constructor_arguments, manifest, read_request

KNOWN = frozenset({"pretrained", "device", "dtype"})


def test_arguments_are_told_apart() -> None:
    request = read_request(
        {"pretrained": "x", "base": "llava_hf", "method": "topv", "keep": 64, "device": "cpu"}, KNOWN
    )
    assert request.method == topv.TopV(keep=64)
    assert request.arguments == {"pretrained": "x", "device": "cpu"}


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({}, topv.TopV()),
        ({"keep": 0.25, "layer": 3, "importance": "potential"}, topv.TopV(keep=0.25, layer=3, importance="potential")),
        # lmms-eval reads "1" as an integer and "true" as a boolean, and leaves "none" and "relaxed" as they are.
        ({"alpha": 1, "eps": 1e-3, "normalize": False}, topv.TopV(alpha=1.0, eps=1e-3, normalize=False)),
        ({"rho": float("inf"), "iterations": 5}, topv.TopV(rho=float("inf"), iterations=5)),
        ({"method": "random", "seed": 7, "compact_early_layers": True}, topv.Random(seed=7, compact_early_layers=True)),
        ({"method": "vtw", "layer": "none"}, topv.VTW()),
        ({"visual_flops": 0.5}, topv.TopV(visual_flops=0.5)),
        ({"method": "none"}, None),
    ],
)
def test_values_as_lmms_eval_reads_them(settings: dict[str, object], method: topv.Method | None) -> None:
    assert read_request({"base": "llava_hf", **settings}, KNOWN).method == method


def test_types_of_values_are_kept() -> None:
    for keep in (1, 1.0):
        method = read_request({"base": "llava_hf", "keep": keep}, KNOWN).method
        assert method is not None
        assert type(method.keep) is type(keep)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"keeep": 0.5}, ["'keeep'", "Did you mean 'keep'", "Settings of topv: alpha, beta", "base llava_hf: device"]),
        ({"method": "none", "keep": 0.5}, ["'keep'", "'none'", "has no settings", "device, dtype, pretrained"]),
        ({"method": "vtw", "keep": 0.5}, ["'keep'", "Settings of vtw: compact_early_layers, layer"]),
        ({"method": "topw"}, ["unknown method 'topw'", "'topv'"]),
        ({"layer": 2.0}, ["topv:layer=2.0", "an integer"]),
        ({"keep": -1.0}, ["keep=-1.0", "(0, 1]"]),
        ({"normalize": 1}, ["topv:normalize=1", "true or false"]),
    ],
)
def test_refused(arguments: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        read_request({"base": "llava_hf", **arguments}, KNOWN)
    for part in parts:
        assert part in str(error.value)


def test_base() -> None:
    assert [base_name({"base": base}) for base in BASES] == list(BASES)
    with pytest.raises(InputError, match=r"'llava'\. Did you mean 'llava_hf'.* Known bases: internvl_hf, llava_hf"):
        base_name({"base": "llava"})
    with pytest.raises(InputError, match=r"base= is missing.*llava_hf, internvl_hf"):
        base_name({"method": "topv"})


def test_constructor_arguments() -> None:
    class Root:
        def __init__(self, hidden: int = 0) -> None: ...

    class Parent(Root):
        def __init__(self, pretrained: str, *, device: str = "cpu") -> None: ...

    class Child(Parent):
        def __init__(self, pixels: int, **rest: object) -> None: ...

    assert constructor_arguments(Child) == {"pixels", "pretrained", "device"}
    assert constructor_arguments(Parent) == {"pretrained", "device"}


def test_lmms_eval_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(InputError, match=r"lmms-eval.* is not installed.*pip install 'topv\[lmms\]'"):
        manifest()


def test_topv_does_not_import_lmms_eval() -> None:
    code = "import sys, topv, topv.evaluate, topv.evaluate.lmms; print(sorted(m for m in sys.modules if 'lmms' in m))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "['topv.evaluate.lmms']"
