"""`topv ui` before there is a page: what it needs, and what it refuses. The page itself is tested in tests/ui."""

from __future__ import annotations

import signal
import sys
from importlib.util import find_spec

import pytest


@pytest.fixture(autouse=True)
def handler():
    """The command changes how the process ends; here it is not the process's last."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_without_gradio_it_names_the_extra(topv, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, err = topv("ui", "--no-browser")
    assert code == 2
    assert "pip install 'topv[ui]'" in err


@pytest.mark.skipif(find_spec("gradio") is None, reason="needs Gradio: make test-ui")
def test_a_model_that_is_not_there_ends_it(topv):
    code, out, err = topv("ui", "--no-browser", "--model", "/nowhere/at/all")
    assert code == 2
    assert "topv ui at http://127.0.0.1:" in out
    assert "/nowhere/at/all" in err
    assert "Traceback" not in err


def test_a_device_that_is_not_there_is_told_before_anything_is_served(topv, monkeypatch):
    if find_spec("gradio") is None:
        monkeypatch.setitem(sys.modules, "gradio", sys)
    code, out, err = topv("ui", "--no-browser", "--device", "warp")
    assert (code, out) == (2, "")
    assert "device='warp'" in err
