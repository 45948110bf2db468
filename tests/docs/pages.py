"""What the pages of README, CONTRIBUTING and the book hold: code blocks, commands, links."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n+)?"
    r"^```(?P<language>\w*)(?: title=\"(?P<file>[^\"\n]+)\")?\n(?P<code>.*?)^```",
    re.M | re.S,
)
_REFERENCE = re.compile(r"^::: (\S+)$(\n    options: .*)?", re.M)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.M)


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        language: as the page names it.
        code: what is in it.
        reason: why the page says that it is not run; None where it is.
        file: the file of the repository that the page says it belongs into; None where it says of none.
    """

    language: str
    code: str
    reason: str | None
    file: str | None = None


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[Block]:
    """The blocks of a page in a language that run where they stand."""
    return [block for block in _blocks(page) if block.language == language and block.file is None]


def files(page: Path) -> dict[str, str]:
    """What a page says to write, by the file of the repository that it belongs into."""
    return {block.file: block.code for block in _blocks(page) if block.file is not None}


def _blocks(page: Path) -> list[Block]:
    found = _BLOCK.finditer(page.read_text())
    return [Block(match["language"], match["code"], match["reason"], match["file"]) for match in found]


def commands(page: Path) -> list[list[str]]:
    """The words of each command in a page's shell blocks; comments left out, continued lines and quotes joined."""
    found: list[list[str]] = []
    for block in blocks(page, "bash"):
        pending = ""
        for line in block.code.replace("\\\n", " ").splitlines():
            pending += line
            try:
                words = shlex.split(pending, comments=True)
            except ValueError:
                # A quote that a later line closes.
                pending += "\n"
                continue
            pending = ""
            if words:
                found.append(words)
        assert not pending, f"{name_of(page)} leaves a quote open: {pending}"
    return found


def links(page: Path) -> list[str]:
    return _LINK.findall(_without_code(page))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as MkDocs makes them."""
    found = _HEADING.findall(_without_code(page))
    slugs = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in found}
    return slugs | set(references(page))


def references(page: Path) -> list[str]:
    """The names that a page of the API reference documents, but for modules of which it shows only the introduction."""
    text = page.read_text()
    if page == ROOT / "docs" / "api" / "methods.md":
        # As the book shows it.
        text = runpy.run_path(str(ROOT / "docs" / "reference.py"))["with_methods"](text)
    return [name for name, options in _REFERENCE.findall(text) if "members: false" not in options]


def _without_code(page: Path) -> str:
    return _BLOCK.sub("", page.read_text())
