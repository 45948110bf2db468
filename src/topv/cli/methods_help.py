"""The methods in help texts, read from their files: neither torch nor a method is imported."""

from __future__ import annotations

import textwrap

from ..discovery import find_methods

__all__ = ["describe_methods", "list_methods"]

_UNPRUNED = ("none", "the unpruned model, which the others are compared with")
_WIDTH = 120


def describe_methods() -> str:
    """The methods and what each does, one beneath the other."""
    lines = [_UNPRUNED, *((method.name, method.summary) for method in find_methods().values())]
    column = max(len(name) for name, _ in lines) + 4
    return "\n".join(
        textwrap.fill(summary, _WIDTH, initial_indent=f"  {name}".ljust(column), subsequent_indent=" " * column)
        for name, summary in lines
    )


def list_methods() -> str:
    """The names of the methods, and how settings are written."""
    names = " ".join((_UNPRUNED[0], *(method.name for method in find_methods().values())))
    return textwrap.fill(
        f"methods: {names}, with settings after a colon: topv:keep=0.25,layer=2.", _WIDTH, subsequent_indent="  "
    )
