from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from topv.serve import symbols
from topv.serve.symbols import SYMBOLS, main, missing_symbols

SOURCE = """
from elsewhere import imported
TABLE: dict = {}
class Model:
    def __init__(self):
        self.norm = 1
    async def embed(self, *, images, **kwargs): ...
def broadcast(tensor, other, src=0): ...
"""


@pytest.mark.parametrize(
    ("name", "parameters", "found"),
    [
        ("imported", (), []),
        ("TABLE", (), []),
        ("Model", (), []),
        ("Model.norm", (), []),
        ("Model.embed", ("self", "images"), []),
        ("broadcast", ("tensor", "src"), []),
        ("broadcast", ("src", "tensor"), ["a.py: broadcast takes tensor, other, src; expected src, tensor among them"]),
        ("broadcast", ("rank",), ["a.py: broadcast takes tensor, other, src; expected rank among them"]),
        ("Model.post_norm", (), ["a.py has no Model.post_norm"]),
        ("Tower", (), ["a.py has no Tower"]),
        ("elsewhere", (), ["a.py has no elsewhere"]),
    ],
)
def test_what_is_found(
    name: str, parameters: tuple[str, ...], found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.py").write_text(SOURCE)
    monkeypatch.setattr(symbols, "SYMBOLS", {"a.py": {name: parameters}})
    assert missing_symbols(tmp_path) == found


def test_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines() == [f"{file} is not there" for file in SYMBOLS]


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: `make test-vllm` runs this")
def test_the_installed_vllm_has_them_all() -> None:
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    assert missing_symbols(Path(spec.origin).parent) == []
