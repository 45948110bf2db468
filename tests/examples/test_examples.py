"""Every example runs as it stands, offline."""

from __future__ import annotations

import base64
import json
import runpy
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connecting to anything is an error."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError(f"an example went online: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def run(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    monkeypatch.setattr(sys, "argv", [name, *options])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_quick_start(monkeypatch: Any, capsys: Any) -> None:
    lines = run("quick_start.py", monkeypatch, capsys)
    assert lines[0].endswith("(right answer: star)")
    assert lines[1:3] == ["unpruned: star", "pruned:   star"]
    assert any("144 -> 72" in line for line in lines)


def test_batch(monkeypatch: Any, capsys: Any) -> None:
    lines = run("batch.py", monkeypatch, capsys, "--size", "3", "--keep", "0.25")
    assert sum("36 tokens kept" in line for line in lines) == 3
    assert any("432 -> 108" in line for line in lines)


def test_images_and_turns(monkeypatch: Any, capsys: Any) -> None:
    lines = run("images_and_turns.py", monkeypatch, capsys)
    assert "first turn: 144 of 288 visual tokens kept" in lines
    second = next(line for line in lines if line.startswith("second turn: 72 kept"))
    assert int(second.split("columns ")[1].split()[0]) > 288, "columns count from the start of the conversation"


def test_custom_method(monkeypatch: Any, capsys: Any) -> None:
    lines = run("custom_method.py", monkeypatch, capsys)
    assert [line.split()[0] for line in lines] == ["contrast", "topv", "random"]
    assert all(line.endswith("of 6 right") for line in lines)


def test_token_maps() -> None:
    notebook = json.loads((EXAMPLES / "token_maps.ipynb").read_text())
    assert notebook["nbformat"] == 4
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        assert not cell.get("outputs"), "clear the outputs before committing"
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"token_maps.ipynb#{cell['id']}", "exec"), names)
    assert len(names["looks"]) == len(names["methods"]) == 4
    maps = {token_map.tobytes() for token_map, _ in names["looks"]}
    assert len(maps) == 4, "each method keeps other tokens"
    assert names["looks"][0][0].size == names["seen"].size


@pytest.fixture
def client() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / "serving_client.py")))


def test_serving_client_asks_as_servers_expect(client: Any, tmp_path: Path) -> None:
    picture = tmp_path / "photo.png"
    Image.new("RGB", (4, 4), "red").save(picture)
    options = client.parse(
        ["http://localhost:8000/v1", "--image", str(picture), "--prompt", "What is this?", "--keep", "0.25"]
    )
    body = client.request("mini", options)
    image, text = body["messages"][0]["content"]
    head, _, content = image["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(content) == picture.read_bytes()
    assert text == {"type": "text", "text": "What is this?"}
    assert body["mm_processor_kwargs"] == {"topv_keep": 0.25}
    assert "mm_processor_kwargs" not in client.request("mini", client.parse(["http://h/v1", "--prompt", "?"]))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["localhost:8000", "--prompt", "?"], "is not an address"),
        (["http://localhost:8000/v1"], "--prompt"),
        (["http://localhost:8000/v1", "--prompt", "?", "--keep", "2"], "is not a ratio"),
        (["http://localhost:8000/v1", "--prompt", "?", "--keep", "half"], "is not a ratio"),
        (["http://localhost:8000/v1", "--prompt", "?", "--image", "none.png"], "is not an image file"),
    ],
)
def test_serving_client_refuses(client: Any, capsys: Any, arguments: list[str], complaint: str) -> None:
    with pytest.raises(SystemExit):
        client.parse(arguments)
    assert complaint in capsys.readouterr().err


def test_serving_client_without_a_server(client: Any, monkeypatch: Any, capsys: Any) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise ConnectionRefusedError("connection refused")

    monkeypatch.setattr(client.main.__globals__["urllib"].request, "urlopen", refuse)
    assert client.main(["http://localhost:1/v1", "--prompt", "?"]) == 1
    assert "Is the server running?" in capsys.readouterr().err


def test_every_example_is_tested_and_in_the_book() -> None:
    here, page = Path(__file__).read_text(), (EXAMPLES.parent / "docs" / "examples.md").read_text()
    for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")]:
        assert path.name in here
        assert path.name in page
