"""Reading methods from the command line."""

from __future__ import annotations

import math

import pytest

from topv.ask.method_spec import parse_methods
from topv.errors import InputError
from topv.methods import VTW, FastV, MeanCost, Random, TopV, Uniform


def methods(*specs, **options):
    return [spec.method for spec in parse_methods(specs, **options)]


def test_names():
    assert methods("none,fastv,topv", "vtw", " uniform , random ") == [
        None,
        FastV(),
        TopV(),
        VTW(),
        Uniform(),
        Random(),
    ]


def test_settings_follow_a_colon_until_the_next_name():
    assert methods("topv:keep=0.25,layer=3,importance=potential,fastv:attention=full,none") == [
        TopV(keep=0.25, layer=3, importance="potential"),
        FastV(attention="full"),
        None,
    ]


def test_values_are_read_by_the_type_of_the_setting():
    (method,) = methods("topv:keep=64,layer=none,rho=inf,normalize=false,iterations=5,scale=mean,target=mlp")
    assert (method.keep, type(method.keep)) == (64, int)
    assert method.layer == 2
    assert method.rho == math.inf
    assert method.normalize is False
    assert (method.iterations, method.scale, method.target) == (5, "mean", "mlp")
    (method,) = methods("meancost:keep=1.0,sigma=2")
    assert (method.keep, type(method.keep)) == (1.0, float)
    assert method == MeanCost(keep=1.0, sigma=2.0)
    assert methods("vtw:layer=6") == [VTW(layer=6)]


def test_targets_stand_in_the_place_of_keep():
    (method,) = methods("topv:visual_flops=0.5", keep=[0.25])
    assert method == TopV(visual_flops=0.5)
    specs = parse_methods(["topv,fastv:keep=9,vtw,random"], kv_share=[0.6, 0.8])
    assert [spec.label for spec in specs] == [
        "topv kv_share=0.6",
        "topv kv_share=0.8",
        "fastv keep=9",
        "vtw",
        "random kv_share=0.6",
        "random kv_share=0.8",
    ]
    assert specs[-1].settings == {
        "layer": 2,
        "budget": "grid",
        "compact_early_layers": False,
        "kv_share": 0.8,
        "seed": 0,
    }
    for wrong, part in (
        (lambda: methods("topv:keep=9,kv_share=0.5"), "keep=9 and kv_share=0.5"),
        (lambda: methods("topv:visual_flops=1"), r"\[0, 1\)"),
        (lambda: methods("vtw:visual_flops=0.5"), "unknown setting 'visual_flops'"),
        (lambda: methods("topv", keep=[0.5], visual_flops=[0.5]), "--keep and --visual-flops"),
    ):
        with pytest.raises(InputError, match=part):
            wrong()


def test_keep_and_layer_apply_where_the_specification_leaves_them_open():
    specs = parse_methods(["none,topv,fastv:keep=0.1,vtw,random:layer=4"], keep=[0.5, 64], layer=3)
    assert [spec.label for spec in specs] == [
        "none",
        "topv keep=0.5",
        "topv keep=64",
        "fastv keep=0.1",
        "vtw",
        "random keep=0.5 layer=4",
        "random keep=64 layer=4",
    ]
    assert [spec.method.layer for spec in specs if spec.method] == [3, 3, 3, None, 4, 4]


def test_settings_of_a_spec():
    none, vtw, fastv = parse_methods(["none,vtw,fastv"])
    assert none.settings is None
    assert vtw.settings == {"layer": None, "compact_early_layers": False}
    plain = {"keep": 0.5, "layer": 2, "budget": "grid", "compact_early_layers": False}
    assert fastv.settings == {**plain, "attention": "row"}


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("topw", ["'topw'", "Did you mean 'topv'", "none"]),
        ("topv:kep=0.5", ["'kep'", "'keep'", "Known settings: alpha"]),
        ("vtw:keep=0.5", ["'keep'", "Known settings: compact_early_layers, layer"]),
        ("topv:keep=half", ["topv:keep=half", "an integer", "a number"]),
        ("topv:keep=1.5", ["keep=1.5", "(0, 1]"]),
        ("topv:keep=0", ["keep=0", "at least 1"]),
        ("topv:layer=0", ["layer=0", "at least 1"]),
        ("topv:layer=two", ["layer=two", "an integer or none"]),
        ("topv:importance=potentail", ["'potentail'", "'potential'", "demand"]),
        ("topv:normalize=maybe", ["true or false"]),
        ("topv:eps=nan", ["eps=nan"]),
        ("topv:keep", ["'keep'", "name=value"]),
        ("topv:keep=", ["name=value"]),
        ("topv:keep=0.5,keep=0.6", ["'keep'", "twice"]),
        ("none:keep=0.5", ["unpruned model"]),
        ("keep=0.5", ["topv:keep=0.5"]),
        ("fastv,keep=0.5", ["fastv:keep=0.5"]),
        ("topv,topv", ["'topv keep=0.5'", "2 times"]),
        ("", ["no methods", "topv"]),
    ],
)
def test_what_is_wrong_is_said(spec, parts):
    with pytest.raises(InputError) as error:
        parse_methods([spec])
    assert all(part in str(error.value) for part in parts), str(error.value)
