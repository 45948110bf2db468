"""Check a built book: what its pages load lies in it, and every public name has an entry in its index of names.

python docs/check_book.py runs/book
"""

from __future__ import annotations

import re
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
ELSEWHERE = re.compile(r"(?:https?:)?//", re.I)
LEFT_OVER = re.compile(r":(?:func|class|data|meth|math):|\.\. math::|\$\$")


class Page(HTMLParser):
    """Collects what a page loads from other servers."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        address = given.get(LOADING.get(tag, "")) or ""
        if ELSEWHERE.match(address) and given.get("rel") not in ("canonical",):
            self.foreign.append(address)


def main(folder: Path) -> int:
    """Print what is wrong; 1 where something is."""
    complaints = []
    pages = sorted(folder.rglob("*.html"))
    for path in pages:
        text = path.read_text(encoding="utf-8")
        page = Page()
        page.feed(text)
        name = path.relative_to(folder)
        complaints += [f"{name} loads {address}" for address in page.foreign]
        if name.parts[0] == "api" and (found := LEFT_OVER.search(text)):
            complaints.append(f"{name} shows unconverted reStructuredText: {found[0]}")
    for path in folder.rglob("*.css"):
        for address in re.findall(r"url\(['\"]?((?:https?:)?//[^)]+)\)", path.read_text(encoding="utf-8")):
            complaints.append(f"{path.relative_to(folder)} loads {address}")
    names = objects(folder / "objects.inv")
    if not {"topv.prune", "topv.methods.TopV", "topv.transport.solve"} <= names:
        complaints.append(f"the index of names lacks the library: it has {len(names)} names")
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    print(f"{len(pages)} pages, {len(names)} names, {len(complaints)} complaints")
    return 1 if complaints else 0


def objects(inventory: Path) -> set[str]:
    """The names in an inventory of objects: four lines of text, then compressed lines that begin with a name."""
    content = inventory.read_bytes().split(b"\n", 4)[4]
    return {line.split()[0] for line in zlib.decompress(content).decode().splitlines() if line}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
