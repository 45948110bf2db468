"""Links of README, CONTRIBUTING and the book lead somewhere, and every public name is in the reference."""

from __future__ import annotations

import importlib
import inspect
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from .pages import PAGES, ROOT, anchors, links, name_of, references

API = sorted((ROOT / "docs" / "api").glob("*.md"))
REFERENCED = {name for page in API for name in references(page)}
PACKAGES = ("topv", "topv.methods", "topv.transport", "topv.budget", "topv.models", "topv.measure")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith(("http://", "https://")):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{name_of(page)} links to {link}"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{name_of(page)} links to {link}; anchors there: {sorted(anchors(path))}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    named = set(re.findall(r": (\S+\.md)$", navigation, re.M))
    assert named == {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}


def public(package: str) -> list[str]:
    return list(importlib.import_module(package).__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(package: str) -> None:
    # A name may stand there under another of its paths: topv.TopV is topv.methods.TopV.
    homes = {id(resolve(name)) for name in REFERENCED}
    missing = []
    for name in public(package):
        value = resolve(f"{package}.{name}")
        if inspect.ismodule(value):
            known = any(other.startswith(f"{package}.{name}.") for other in REFERENCED)
        else:
            known = f"{package}.{name}" in REFERENCED or id(value) in homes
        if not known:
            missing.append(name)
    assert not missing, f"{missing} of {package} are not in docs/api"


def test_what_the_reference_names_exists_and_is_documented() -> None:
    for name in REFERENCED:
        value = resolve(name)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert inspect.getdoc(value), f"{name} has no docstring"
            # mkdocstrings reads the tree: of a module and a function of one name it would document the module.
            assert not is_module(name), f"{name} is also a module: write {name}.{name.rpartition('.')[2]}"


def is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        # What stands before the last dot is no package.
        return False


def resolve(name: str) -> object:
    """The object of a dotted name, whose last part is looked up on the module before it."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)
