"""The code and the commands of README, CONTRIBUTING and the book work as they stand."""

from __future__ import annotations

import itertools
import json
import re
import sys
import types
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import topv
from topv.cli.main import COMMANDS, main, parse
from topv.models import FAMILIES
from topv.scenes import draw_scene

from .pages import PAGES, ROOT, blocks, commands, name_of

WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
RUN = {"compare": ["--no-timing"], "env": [], "generate": [], "models": [], "run": []}
"""The commands that are run, with what makes them quick. Of the others only the words are checked here: they take
minutes or serve until they are stopped, and tests/cli runs each on something small."""
ELSEWHERE = {"curl", "lmms-eval", "vllm"}
"""Programs that topv does not bring."""


@pytest.fixture(scope="module")
def bundled() -> tuple[Any, Any]:
    return topv.load_mini()


@pytest.fixture
def given(bundled: tuple[Any, Any]) -> Iterator[dict[str, Any]]:
    """What blocks may take for granted: a model, its processor and inputs, and nothing left behind."""
    model, processor = bundled
    scene = draw_scene(3, "test")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": scene.questions[0].prompt}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=[scene.image], text=[text], return_tensors="pt")
    families = dict(FAMILIES)
    yield {"topv": topv, "model": model, "processor": processor, "inputs": inputs}
    FAMILIES.clear()
    FAMILIES.update(families)
    topv.attach(model, topv.TopV()).detach()


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_blocks_run_in_order(page: Path, given: dict[str, Any], monkeypatch: Any, capsys: Any) -> None:
    module = types.ModuleType("page_" + re.sub(r"\W", "_", page.stem))
    vars(module).update(given)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for number, block in enumerate(blocks(page, "python")):
        code = compile(block.code, f"{name_of(page)}#{number}", "exec")
        if block.reason is None:
            exec(code, vars(module))
    if page.name in ("README.md", "index.md"):
        printed = capsys.readouterr().out
        assert "144 -> 72" in printed
        assert "star" in printed


def test_blocks_that_are_not_run_say_why() -> None:
    reasons = [block.reason for page in WITH_PYTHON for block in blocks(page, "python") if block.reason is not None]
    assert all(reason.startswith(("needs ", "compiling ")) for reason in reasons), reasons
    assert len(reasons) < 6, "most code of the book should run"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "json")], ids=name_of)
def test_json_blocks_are_json(page: Path) -> None:
    for block in blocks(page, "json"):
        json.loads(block.code)


def topv_arguments(words: list[str]) -> list[str] | None:
    """What `topv` is told by a command, by whatever program it is started."""
    if words[0] == "topv":
        return words[1:]
    if "-m" in words and words[words.index("-m") + 1] == "topv":
        return words[words.index("-m") + 2 :]
    return None


SPOKEN = {tuple(found): name_of(page) for page in PAGES for words in commands(page) if (found := topv_arguments(words))}


def is_run(arguments: tuple[str, ...]) -> bool:
    from_hub = any("/" in value for option, value in itertools.pairwise(arguments) if option == "--model")
    return arguments[0] in RUN and not from_hub


def test_commands_are_well_formed(capsys: Any) -> None:
    assert len(SPOKEN) > 25
    for arguments, page in SPOKEN.items():
        try:
            parsed = parse(arguments)
        except SystemExit:
            raise AssertionError(f"{page}: topv {' '.join(arguments)}: {capsys.readouterr().err}") from None
        assert parsed.command in COMMANDS


@pytest.mark.parametrize("arguments", [spoken for spoken in SPOKEN if is_run(spoken)], ids=" ".join)
def test_commands_run(arguments: tuple[str, ...], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    picture = draw_scene(3, "test").image
    for name in ("photo.jpg", "photos/a.jpg", "photos/receipt.jpg", "photos/more/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture.save(tmp_path / name)
    (tmp_path / "questions.jsonl").write_text('{"image": "photos/a.jpg", "prompt": "how many stars are there?"}\n')
    monkeypatch.chdir(tmp_path)
    code = main([*arguments, *RUN[arguments[0]]])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert printed.out.strip() or arguments[0] == "run"
    for option in ("--out", "--report"):
        if option in arguments:
            assert (tmp_path / arguments[arguments.index(option) + 1]).stat().st_size


def test_other_commands_are_there() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    settings = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    extras = set(re.findall(r"^([\w-]+) = \[", settings.partition("\n[")[0], re.M))
    for page in PAGES:
        for words in commands(page):
            program, *arguments = words
            if topv_arguments(words) is not None or program in ELSEWHERE:
                continue
            said = f"{name_of(page)}: {' '.join(words)}"
            if program == "make":
                assert set(arguments) <= targets, said
            elif program == "pip":
                assert {extra for word in arguments for extra in re.findall(r"\[(\w+)\]", word)} <= extras, said
            elif arguments[0] == "-m" and program == "python":
                assert find_spec(arguments[1]) is not None, said
            elif program == "python":
                assert (ROOT / arguments[0]).is_file(), said
            else:
                raise AssertionError(f"{said}: nothing checks {program}")


def test_pictures_of_the_book_are_pictures() -> None:
    for path in (ROOT / "docs" / "images").iterdir():
        with Image.open(path) as picture:
            picture.verify()
