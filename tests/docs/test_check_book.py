"""The check of a built book finds what it is for."""

from __future__ import annotations

import runpy
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from .pages import ROOT

NAMES = "".join(
    f"{name} py:function 1 api.html#$ -\n" for name in ("topv.prune", "topv.methods.TopV", "topv.transport.solve")
)


@pytest.fixture
def check() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "check_book.py")))


def book(folder: Path, page: str, style: str = "", names: str = NAMES) -> Path:
    (folder / "api").mkdir()
    (folder / "api" / "topv.html").write_text(page)
    (folder / "book.css").write_text(style)
    (folder / "objects.inv").write_bytes(b"# 1\n# 2\n# 3\n# 4\n" + zlib.compress(names.encode()))
    return folder


def test_a_good_book_passes(check: Any, tmp_path: Path) -> None:
    page = '<link rel="canonical" href="https://a.example"><a href="https://b.example">b</a><img src="../x.png">'
    assert check.main(book(tmp_path, page, "a { background: url('x.png') }")) == 0


@pytest.mark.parametrize(
    ("page", "style", "names", "complaint"),
    [
        ('<script src="https://cdn.example/x.js"></script>', "", NAMES, "loads https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', "", NAMES, "loads //cdn.example/x.css"),
        ("", "@font-face { src: url(https://fonts.example/x) }", NAMES, "loads https://fonts.example/x"),
        ("<p>see :func:<code>solve</code></p>", "", NAMES, "unconverted"),
        ("", "", "topv.prune py:function 1 a -\n", "lacks the library"),
    ],
)
def test_a_bad_book_fails(
    check: Any, tmp_path: Path, capsys: Any, page: str, style: str, names: str, complaint: str
) -> None:
    assert check.main(book(tmp_path, page, style, names)) == 1
    assert complaint in capsys.readouterr().err
