"""Turn what docstrings say in reStructuredText into Markdown and MathML, for the API reference of the book.

A formula becomes MathML, which browsers draw by themselves: nothing is fetched when a page is read.
"""

from __future__ import annotations

import html
import inspect
import re
from typing import Any

import griffe
from latex2mathml.converter import convert

ROLE = re.compile(r":(func|class|data|meth|mod):`(?:~)?([^`]+)`")
BLOCK = re.compile(r"^( *)\.\. math::\n((?:\n|\1[ ]+\S.*(?:\n|$))+)", re.MULTILINE)
INLINE = re.compile(r":math:`([^`]+)`")
CITED = re.compile(r"\[(\d+)\]_")
REFERENCE = re.compile(r"^( *)\.\. \[(\d+)\] ", re.MULTILINE)


class RestructuredText(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value, obj)


def to_markdown(text: str, owner: griffe.Object) -> str:
    """A docstring in Markdown, its formulas in MathML.

    Args:
        text: the docstring.
        owner: what it documents; names in it are looked up in the owner's package.
    """
    text = BLOCK.sub(lambda found: f"{found[1]}{_formula(found[2], 'block')}\n", text)
    text = INLINE.sub(lambda found: _formula(found[1], "inline"), text)
    text = ROLE.sub(lambda found: _link(found[2], owner), text)
    text = REFERENCE.sub(r"\1\2. ", text)
    return CITED.sub(r"[\1]", text)


def _formula(latex: str, display: str) -> str:
    mathml: str = convert(" ".join(inspect.cleandoc(latex).split()), display=display)
    # Python-Markdown would read these as emphasis and links.
    for mark in "*_[]`":
        mathml = mathml.replace(mark, f"&#{ord(mark)};")
    mathml = re.sub(r"&#x([0-9A-Fa-f]+);", lambda found: html.escape(chr(int(found[1], 16))), mathml)
    return f'<div class="formula">{mathml}</div>' if display == "block" else mathml


def _link(name: str, owner: griffe.Object) -> str:
    if name.startswith(f"{owner.package.name}."):
        return f"[`{name}`][{_home(name, owner)}]"
    scope: griffe.Object | griffe.Alias | None = owner
    while scope is not None:
        exports = scope.exports or () if scope.is_module else ()
        if name in {str(export) for export in exports}:
            return f"[`{name}`][{_home(f'{scope.path}.{name}', owner)}]"
        scope = scope.parent
    return f"`{name}`"


def _home(path: str, owner: griffe.Object) -> str:
    """Where a name is documented: a function that is named as its module hides it, but has its anchor within."""
    name = path.rpartition(".")[2]
    found = owner.modules_collection.members.get(owner.package.name)
    for part in path.split(".")[1:]:
        found = found.members.get(part) if found is not None else None
    if found is not None and found.is_module and name in found.members:
        return f"{path}.{name}"
    return path
