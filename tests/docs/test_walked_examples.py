"""What CONTRIBUTING says to write is all there is to write: its files, put where it says, are a method and a family."""

from __future__ import annotations

import json

import pytest

from package_copy import PackageCopy
from topv.discovery import find_methods

from .pages import ROOT, files

WRITTEN = files(ROOT / "CONTRIBUTING.md")


@pytest.fixture(scope="module")
def contributed(tmp_path_factory: pytest.TempPathFactory) -> PackageCopy:
    """The library with both examples of CONTRIBUTING."""
    copy = PackageCopy.at(tmp_path_factory.mktemp("contributed"))
    for file, text in WRITTEN.items():
        if not (ROOT / file).exists():
            copy.write(file, text)
    registry = "src/topv/models/registry.py"
    head, opening, rest = (ROOT / registry).read_text().partition("FAMILIES: dict[str, str] = {\n")
    copy.write(registry, head + opening + WRITTEN[registry] + rest)
    return copy


def test_a_method_touches_three_files_and_a_family_two() -> None:
    assert list(WRITTEN) == [
        "src/topv/methods/norm.py",
        "tests/methods/test_norm.py",
        "docs/methods.md",
        "src/topv/models/chameleon.py",
        "src/topv/models/registry.py",
    ]


def test_the_method_is_a_name_of_topv(contributed: PackageCopy) -> None:
    contributed.run("-c", "import topv; assert 'Norm' in topv.__all__; assert topv.Norm(keep=0.5).name == 'norm'")


@pytest.mark.parametrize("command", [(), ("compare",), ("eval",)])
def test_help_offers_the_method(contributed: PackageCopy, command: tuple[str, ...]) -> None:
    printed = contributed.run("-m", "topv", *command, "--help")
    assert " norm " in printed.partition("methods:\n" if not command else "methods: ")[2]
    if not command:
        assert "keep the visual tokens with the largest norm\n" in printed


def test_the_method_is_compared_and_evaluated(contributed: PackageCopy) -> None:
    printed = contributed.run(
        *("-m", "topv", "compare", "--methods", "norm:keep=0.25", "--samples", "1"),
        *("--max-new-tokens", "2", "--no-timing", "--json"),
    )
    (case,) = json.loads(printed)["cases"]
    assert [result["kept_tokens"] for result in case["results"]] == [36]
    printed = contributed.run(
        *("-m", "topv", "eval", "--methods", "norm", "--tasks", "existence", "--questions", "1"),
        *("--reductions", "0.5", "--no-foreground"),
    )
    assert "norm" in printed


def test_the_page_offers_the_method(contributed: PackageCopy) -> None:
    """By what its boxes are made of: a link that names it is understood. Gradio need not be there."""
    contributed.run(
        "-c",
        "from topv.methods import METHODS\n"
        "from topv.ui.limits import Limits\n"
        "from topv.ui.settings import Settings\n"
        "assert 'norm' in list(METHODS)\n"
        "assert Settings.from_query({'methods': 'none,norm'}, Limits()).methods == ('none', 'norm')",
    )


def test_the_test_of_the_method_passes(contributed: PackageCopy) -> None:
    printed = contributed.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/methods/test_norm.py")
    assert "1 passed" in printed


def test_the_row_fits_the_table_and_the_reference_has_the_method(contributed: PackageCopy) -> None:
    header = next(
        line for line in (ROOT / "docs" / "methods.md").read_text().splitlines() if line.startswith("| method")
    )
    (row,) = WRITTEN["docs/methods.md"].splitlines()
    assert row.count(" | ") == header.count(" | ")
    assert row.startswith("| `Norm` | ")
    (contributed.root / "docs").mkdir()
    hook = contributed.write("docs/reference.py", (ROOT / "docs" / "reference.py").read_text())
    page = (ROOT / "docs" / "api" / "methods.md").read_text()
    code = f"import runpy; print(runpy.run_path({str(hook)!r})['with_methods']({page!r}))"
    assert "\n::: topv.methods.norm.Norm\n" in contributed.run("-c", code)


def test_the_family_says_where_tokens_are(contributed: PackageCopy) -> None:
    contributed.run(
        "-c",
        "import torch, topv\n"
        "from topv.models import family_of\n"
        "from tools.probe.recipes import recipes\n"
        "torch.manual_seed(0)\n"
        "recipe = recipes()['chameleon']\n"
        "model = recipe.build()\n"
        "inputs = recipe.prompt(model, [[3, 'image', 4]])\n"
        "with topv.prune(model, topv.Uniform(keep=0.5)) as pruning, torch.no_grad():\n"
        "    model(**inputs)\n"
        "rows, columns = family_of(model).fixed_grid()\n"
        "assert pruning.report().visual_tokens == rows * columns == 2 * pruning.report().kept_tokens",
    )


def test_every_method_has_its_row() -> None:
    table = (ROOT / "docs" / "methods.md").read_text()
    missing = [title for title in find_methods() if f"\n| `{title}` | " not in table]
    assert not missing, f"docs/methods.md has no row for {missing}"
