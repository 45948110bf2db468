from __future__ import annotations

import argparse
from importlib.util import find_spec

import pytest

from topv.cli.main import main
from topv.cli.serve import _settings


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--method", "fastv"], ["'fastv' cannot be served", "uniform"]),
        (["--method", "topw"], ["unknown method 'topw'", "'topv'"]),
        (["--method", "none"], ["unknown method 'none'"]),
        (["--method", "topv:stage=decoder"], ["stage='encoder'"]),
        (["--method", "uniform,random"], ["names 2 methods"]),
        (["--method", "topv:keep=0.3", "--keep", "0.5"], ["each set keep"]),
        (["--keep", "0.9", "--max-keep", "0.5"], ["keep=0.9 is above max_keep=0.5"]),
        (["--max-keep", "1.5"], ["max_keep=1.5"]),
    ],
)
def test_settings_that_cannot_be_served(
    arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "mini", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("topv serve: error: ")
    for part in parts:
        assert part in message


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_vllm_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "mini", "--port", "8000"]) == 2
    assert "pip install 'topv[vllm]'" in capsys.readouterr().err


def test_settings_of_a_method() -> None:
    args = argparse.Namespace(method="topv:eps=0.1,recovery=0.25", keep=0.25, max_keep=0.5)
    expected = {"method": "topv", "stage": "encoder", "eps": 0.1, "recovery": 0.25, "keep": 0.25, "max_keep": 0.5}
    assert _settings(args) == expected


def test_other_commands_take_no_unknown_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["env", "--port", "8000"])
    assert "unrecognized arguments: --port 8000" in capsys.readouterr().err
