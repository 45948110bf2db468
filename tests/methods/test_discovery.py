"""Methods are found by their files, and nothing of them is imported before it is asked for."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import topv
from package_copy import PackageCopy
from topv import methods
from topv.discovery import find_methods, read_methods
from topv.methods import METHODS, Method


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def descendants(cls: type[Method]) -> set[type[Method]]:
    return {cls}.union(*(descendants(child) for child in cls.__subclasses__()))


def test_what_is_read_is_what_is_there() -> None:
    """The files, read as text, name the very classes that importing all of them makes."""
    found = set(METHODS.values())
    folder = Path(inspect.getfile(Method)).parent
    of_library = {cls for cls in descendants(Method) if Path(inspect.getfile(cls)).parent == folder}
    assert of_library - found == {cls for cls in of_library if cls.__name__.endswith("Method")}
    assert found <= of_library
    assert list(METHODS) == sorted(cls.__name__.lower() for cls in found)
    assert {cls.__name__: cls for cls in found} == {name: getattr(topv, name) for name in find_methods()}


def test_names_are_there_without_torch() -> None:
    done = python(
        "import sys, topv\n"
        "assert not any(name.startswith('topv.') for name in sys.modules), 'importing topv imports more'\n"
        "assert {'TopV', 'prune', 'Method'} <= set(dir(topv)) & set(topv.__all__)\n"
        "assert 'torch' not in sys.modules\n"
        "topv.VTW\n"
        "assert 'topv.methods.cdpruner' not in sys.modules\n"
        "from topv import *\n"
        "CDPruner, prune, transport\n"
        "from topv.methods import *\n"
        "METHODS, CDPruner, Evidence"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("expression", "near"), [("topv.Topv", "TopV"), ("topv.fastv", "FastV"), ("topv.methods.FastW", "FastV")]
)
def test_a_name_that_is_wrong_gets_the_nearest(expression: str, near: str) -> None:
    done = python(f"import topv, topv.methods\n{expression}")
    assert f"has no attribute {expression.rpartition('.')[2]!r}. Did you mean: {near!r}?" in done.stderr


@pytest.mark.parametrize("module", [topv, methods])
def test_what_type_checkers_are_told_is_there(module: object) -> None:
    tree = ast.parse(Path(inspect.getfile(module)).read_text())  # type: ignore[arg-type]
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    told = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert told
    assert told <= set(dir(module))


def test_methods_hide_no_other_name_of_topv() -> None:
    assert not set(find_methods()) & set(topv._HOMES)


def write(folder: Path, **files: str) -> Path:
    for stem, text in files.items():
        (folder / f"{stem}.py").write_text(text)
    return folder


def test_bases_and_helpers_are_no_methods(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        base="class Method: ...\nclass Evidence: ...",
        shared="from .base import Method\nclass SharedMethod(Method): ...",
        zeta='"""Zeta: the last\none there is.\n\nMore."""\nfrom . import shared\nclass Zeta(shared.SharedMethod): ...',
        # The base is in a file that is read later, and is called otherwise here.
        alpha="from .zeta import Zeta as Base\n"
        'class Alpha(Base):\n    """Of Zeta.\n\n    Doe et al., ICML\n    2031 (arXiv 3101.00001).\n    """\n'
        "class _Hidden(Base): ...\nclass Helper: ...",
        breaks="raise RuntimeError('imported')",
    )
    assert [(found.title, found.name, found.file.name, found.summary) for found in read_methods(folder)] == [
        ("Alpha", "alpha", "alpha.py", "Of Zeta (arXiv 3101.00001)"),
        ("Zeta", "zeta", "zeta.py", "the last one there is"),
    ]


def test_two_methods_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, a="class Norm(Method): ...", b="class NORM(Method): ...")
    with pytest.raises(ImportError, match=r"called 'norm': Norm in .*a\.py and NORM in .*b\.py"):
        read_methods(folder)


def test_a_file_that_is_no_python_names_itself(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"odd\.py cannot be read as Python .*line 1"):
        read_methods(write(tmp_path, odd="class Norm(Method:"))


def test_a_file_that_fails_to_import_names_itself_and_leaves_the_others(tmp_path: Path) -> None:
    copy = PackageCopy.at(tmp_path)
    copy.write("src/topv/methods/odd.py", "import nowhere\nfrom .base import Method\nclass Odd(Method): ...\n")
    copy.run("-c", "import topv; topv.TopV, topv.prune; assert 'Odd' in dir(topv)")
    for code in ("import topv; topv.Odd", "from topv.methods.settings import build_method; build_method('odd', {})"):
        error = copy.python("-c", code).stderr.strip().splitlines()[-1]
        assert error.startswith("ImportError: the method Odd cannot be loaded: importing /")
        assert "methods/odd.py failed with ModuleNotFoundError: No module named 'nowhere'." in error
