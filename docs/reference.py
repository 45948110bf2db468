"""Add to the reference what `docs/api/methods.md` does not name: a new method is in the book because its file is."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

PAGE = "api/methods.md"
MARK = "<!-- methods that are not named above -->\n"
DISCOVERY = Path(__file__).parents[1] / "src" / "topv" / "discovery.py"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """What MkDocs makes a page of: the page of methods with all of them."""
    return with_methods(markdown) if page.file.src_uri == PAGE else markdown


def with_methods(markdown: str) -> str:
    """The page of methods, with a section of those that it does not name in the place of its mark."""
    found = runpy.run_path(str(DISCOVERY))["find_methods"]().values()
    missing = [method for method in found if f"\n::: topv.methods.{method.title}\n" not in markdown]
    entries = [f"::: topv.methods.{m.file.stem}.{m.title}\n    options: {{heading_level: 3}}\n" for m in missing]
    return markdown.replace(MARK, "\n".join(("## More methods\n", *entries)) if entries else "")
