from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from topv.errors import InputError, UnsupportedError
from topv.serve import ARCHITECTURES, supported
from topv.serve.supported import check_version, served_name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_class_is_where_it_is_said_to_be(architecture: str) -> None:
    module, _, name = ARCHITECTURES[architecture].partition(":")
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    classes = [node.name for node in ast.parse(Path(found.origin).read_text()).body if isinstance(node, ast.ClassDef)]
    assert name in classes
    assert name == served_name(architecture) == served_name(served_name(architecture))


def test_other_architectures_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"'GemmaForCausalLM' cannot be served pruned.*LlavaForConditional"):
        served_name("GemmaForCausalLM")


@pytest.mark.parametrize("version", ["0.32.0", "0.33.1", "0.33.0+cpu"])
def test_versions(version: str) -> None:
    assert check_version(version) == version


@pytest.mark.parametrize("version", ["0.31.0", "0.34.0", "1.0.0"])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"vLLM {version} is installed.*0\.32, 0\.33"):
        check_version(version)


def test_a_missing_vllm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise supported.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(supported.metadata, "version", missing)
    with pytest.raises(InputError, match=r"pip install 'topv\[vllm\]'"):
        check_version()
