"""Which methods there are, read from the files in `methods/` without importing them, so that no list needs editing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["MethodFile", "find_methods", "read_methods"]

_FOLDER = Path(__file__).parent / "methods"
_BASE = "Method"
_PAPER = re.compile(r"\b\d{4}\s+\(arXiv\s+(\d{4}\.\d{4,5})\)")
"""How a method's docstring says where it was published: "CVPR 2025 (arXiv 2503.18278)"."""


class MethodFile(NamedTuple):
    """A method as its file says it.

    Attributes:
        title: the name of its class.
        file: where it is.
        summary: the first line of the file's docstring, or of the class's where that has none, and the paper.
    """

    title: str
    file: Path
    summary: str

    @property
    def name(self) -> str:
        """The name of the method on the command line and in tables."""
        return self.title.lower()


@lru_cache(maxsize=1)
def find_methods() -> MappingProxyType[str, MethodFile]:
    """The library's methods by the name of their class, in alphabetical order.

    Raises:
        ImportError: as `read_methods`.
    """
    return MappingProxyType({found.title: found for found in read_methods(_FOLDER)})


def read_methods(folder: Path) -> list[MethodFile]:
    """The methods in the files of `folder`, in the order of their names.

    A method is a public class that descends from `Method`. A class whose name ends in "Method" is a base that others
    build on, and no method itself.

    Raises:
        ImportError: when a file is no Python, or two methods have one name.
    """
    classes = [found for file in sorted(folder.glob("*.py")) for found in _classes(file)]
    methods = {_BASE}
    # Until no more are found: a method may descend from one whose file comes later.
    while more := {found.name for found in classes if found.name not in methods and found.bases & methods}:
        methods |= more
    found: dict[str, MethodFile] = {}
    for each in classes:
        if each.name not in methods or each.name.endswith(_BASE) or each.name.startswith("_"):
            continue
        file, method = each.file, MethodFile(each.name, each.file, _summary(each))
        other = found.setdefault(method.name, method)
        if other is not method:
            raise ImportError(
                f"two methods are called {method.name!r}: {other.title} in {other.file} and {method.title} in {file}. "
                "The command line tells them apart by that name alone, so rename one of the classes.",
                name=method.name,
                path=str(file),
            )
    return [found[name] for name in sorted(found)]


class _Class(NamedTuple):
    name: str
    file: Path
    bases: set[str]
    file_docstring: str
    docstring: str


def _classes(file: Path) -> Iterator[_Class]:
    """The classes of a file, each with the names of its bases as the files where these are know them."""
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except (SyntaxError, ValueError) as error:
        raise ImportError(
            f"{file} cannot be read as Python ({error}), so the methods in it are not known. Correct or remove it.",
            name=file.stem,
            path=str(file),
        ) from error
    imports = (alias for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names)
    real = {alias.asname: alias.name for alias in imports if alias.asname}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            bases = (base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in node.bases)
            names = {real.get(base, base) for base in bases}
            yield _Class(node.name, file, names, ast.get_docstring(tree) or "", ast.get_docstring(node) or "")


def _summary(method: _Class) -> str:
    paragraph = (method.file_docstring or method.docstring).strip().partition("\n\n")[0]
    line = " ".join(paragraph.split()).removeprefix(f"{method.name}: ").rstrip(".")
    paper = _PAPER.search(method.docstring)
    return line if paper is None else f"{line} (arXiv {paper[1]})"
