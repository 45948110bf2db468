"""What a visitor may send, what a link may say, and how text gets into the page."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from topv.errors import InputError
from topv.ui.guard import Guard
from topv.ui.limits import Limits
from topv.ui.markup import escape, status_line
from topv.ui.settings import Settings

LIMITS = Limits(upload_bytes=2_000, pixels=10_000, prompt_characters=20, methods=2, new_tokens=8)


def test_an_upload_within_the_limits_is_read(tmp_path: Path) -> None:
    Image.new("RGBA", (100, 100), (255, 0, 0, 255)).save(tmp_path / "a.png")
    image = LIMITS.read_upload(tmp_path / "a.png")
    assert (image.size, image.mode, image.getpixel((5, 5))) == ((100, 100), "RGB", (255, 0, 0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"GIF89a nonsense", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not an image"),
        (b"x" * 2_001, r"larger than 0\.0019"),
    ],
)
def test_a_bad_upload_is_refused_without_its_path(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "secret-name.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as refused:
        LIMITS.read_upload(path)
    assert "secret-name" not in str(refused.value)


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("1", (101, 100)).save(buffer, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="10,100 pixels"):
        LIMITS.read_upload(path)


def test_no_upload_and_one_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no image"):
        LIMITS.read_upload(None)
    with pytest.raises(InputError, match="no longer there"):
        LIMITS.read_upload(tmp_path / "gone.png")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LIMITS.read_prompt(" \n"), "no question"),
        (lambda: LIMITS.read_prompt(["a"]), "no question"),
        (lambda: LIMITS.read_prompt("a" * 21), "21 characters"),
        (lambda: LIMITS.read_methods([], 0.5), "0 methods"),
        (lambda: LIMITS.read_methods("topv", 0.5), "4 methods"),
        (lambda: LIMITS.read_methods(["none", "topv", "fastv"], 0.5), "3 methods"),
        (lambda: LIMITS.read_methods(["topw"], 0.5), "Did you mean 'topv'"),
        (lambda: LIMITS.read_methods(["topv"], 1.5), "keep=1.5"),
        (lambda: LIMITS.read_methods(["topv"], True), "not a number"),
        (lambda: LIMITS.read_methods(["topv"], 0.5, recovery=1.0), "recovery=1.0"),
        (lambda: LIMITS.read_methods(["topv"], 0.5, recovery="x"), "not a number"),
        (lambda: LIMITS.read_new_tokens(9), "1 to 8"),
        (lambda: LIMITS.read_new_tokens("8"), "1 to 8"),
    ],
)
def test_what_is_out_of_range_is_refused(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_what_is_in_range_is_taken() -> None:
    assert LIMITS.read_prompt("what is this?") == "what is this?"
    assert [spec.label for spec in LIMITS.read_methods(["none", "topv"], 0.25)] == ["none", "topv keep=0.25"]
    assert [spec.label for spec in LIMITS.read_methods(["topv"], 1)] == ["topv keep=1.0"], "all tokens, not one token"
    recovering = LIMITS.read_methods(["topv", "fastv"], 0.5, recovery=0.25)
    assert [spec.label for spec in recovering] == ["topv keep=0.5 recovery=0.25", "fastv keep=0.5"]
    assert LIMITS.read_new_tokens(8.0) == 8


def test_settings_of_a_link() -> None:
    limits = Limits()
    query = {
        "picture": "2",
        "prompt": "why?",
        "methods": "topv,none,topv",
        "keep": "0.3",
        "tokens": "7",
        "measure": "1",
    }
    query["recovery"] = "0.2"
    assert Settings.from_query(query, limits) == Settings(2, "why?", ("topv", "none"), 0.3, 0.2, 7, True)
    wrong = {"picture": "-1", "prompt": " ", "methods": "rm", "keep": "nan", "tokens": "1e9", "measure": "yes"}
    wrong["recovery"] = "-inf"
    assert Settings.from_query(wrong, limits) == Settings()
    assert Settings.from_query({"prompt": "x" * 9_999}, limits).prompt is None
    assert Settings.from_query({"methods": "topv,none,fastv,vtw,random"}, limits).methods == Settings().methods


def test_text_is_inert_in_html_and_in_templates() -> None:
    text = "<script>${alert(1)}</script>{{constructor}}`\\\"'\x1b"
    escaped = escape(text)
    assert not set(escaped) & set("<>${}`\\\"'\x1b")
    assert "<script>" not in status_line(text)


def test_the_guard_refuses_to_fetch_and_allows_no_other_origin() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})

    def status(path: str, host: bytes = b"127.0.0.1:7860") -> dict[str, Any]:
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "path": path, "headers": [(b"host", host)]}
        asyncio.run(Guard(application, hosts=("127.0.0.1", "localhost", "::1"))(scope, None, send))
        return sent[0]

    for path in (
        "/gradio_api/file=HTTPS://a.b/c",
        "/file=http%3A//a.b",
        "/gradio_api/proxy=https://a.b",
        "/gradio_api/deep_link",
    ):
        assert status(path)["status"] == 403
    for host in (b"evil.example", b"evil.example:7860", b"", b"127.0.0.1.evil.example"):
        assert status("/", host)["status"] == 403
    for host in (b"localhost:7860", b"LOCALHOST", b"[::1]:7860"):
        assert status("/", host)["status"] == 200
    answered = status("/gradio_api/file=/tmp/x")
    assert answered["status"] == 200
    headers = dict(answered["headers"])
    assert headers[b"x"] == b"y"
    assert headers[b"content-security-policy"].startswith(b"default-src 'self'")
    assert b"http" not in headers[b"content-security-policy"]
