"""What a careless or a bad visitor tries in a real Chromium, and what others see of it."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import pytest

if find_spec("playwright") is None or find_spec("gradio") is None:
    pytest.skip("needs Gradio and Playwright: make test-ui", allow_module_level=True)

from PIL import Image
from playwright.sync_api import expect

from topv.ui.limits import Limits
from topv.ui.model_slot import ModelSlot
from topv.ui.page import build_page
from visitor import HOSTILE, QUICK, SLOW, Opener, ask, labels, png


@pytest.mark.parametrize(
    ("content", "message"), [(b"<html>not an image</html>", "not an image"), (b"", "empty"), (None, "pixels")]
)
def test_a_bad_upload_is_a_message(visit: Opener, tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "bad.png"
    if content is None:
        Image.new("1", (8000, 8000)).save(path)
    else:
        path.write_bytes(content)
    page = visit(QUICK + "&methods=topv")
    page.set_input_files("#topv-image input[type=file]", path)
    status = page.locator("#topv-status")
    expect(status).to_contain_text("This picture cannot be used", timeout=SLOW)
    expect(status).to_contain_text(message)
    assert str(tmp_path) not in (status.text_content() or "")
    page.click("#topv-ask")
    expect(status).to_contain_text("there is no image", timeout=SLOW)
    page.click("#topv-picture input")
    page.get_by_role("option", name=re.compile("^2:")).click()
    ask(page)


def test_mistakes_are_messages(visit: Opener) -> None:
    page = visit(QUICK + "&methods=none,topv,fastv,random")
    page.get_by_label("uniform", exact=True).check()
    page.click("#topv-ask")
    expect(page.locator("#topv-status")).to_contain_text("5 methods are chosen. Choose 1 to 4", timeout=SLOW)
    page.get_by_label("uniform", exact=True).uncheck()
    page.fill("#topv-prompt textarea", "  ")
    page.click("#topv-ask")
    expect(page.locator("#topv-status")).to_contain_text("there is no question", timeout=SLOW)
    page.fill("#topv-prompt textarea", f"<image> {HOSTILE}")
    page.click("#topv-ask")
    expect(page.locator("#topv-answers .topv-problem").first).to_contain_text("placeholder", timeout=SLOW)
    assert page.evaluate("() => window.taken") is None
    page.fill("#topv-prompt textarea", "what is this?")
    ask(page)


def test_two_visitors_at_once(visit: Opener, tmp_path: Path) -> None:
    """Each sees the answers to their own question about their own picture."""
    first = visit(QUICK + "&methods=none,topv&picture=1")
    second = visit(QUICK + "&methods=random&keep=0.1")
    second.set_input_files("#topv-image input[type=file]", png(tmp_path / "blue.png", (64, 48), "blue"))
    expect(second.locator("#topv-status")).to_contain_text("64 x 48 pixels", timeout=SLOW)
    first.click("#topv-ask")
    second.click("#topv-ask")
    for page in (first, second):
        expect(page.locator("#topv-status")).to_have_text("Done", timeout=SLOW)
    assert labels(first, "topv-answers") == ["none", "topv keep=0.5"]
    assert labels(second, "topv-answers") == ["random keep=0.1"]
    assert first.locator("#topv-picture input").input_value().startswith("1:")
    sources = [page.locator("#topv-outcomes img").first.get_attribute("src") for page in (first, second)]
    assert sources[0] != sources[1]
    first.click("[data-cell='7']")
    expect(first.locator("#topv-panel")).to_contain_text("row 1, column 8", timeout=SLOW)
    expect(second.locator("#topv-panel")).not_to_contain_text("row 1, column 8")


@pytest.mark.parametrize(
    "path",
    [
        "file=/etc/passwd",
        "file=https://example.com/",
        "file=http%3A//127.0.0.1/",
        "proxy=https://example.com/x",
        "deep_link?session_hash=x",
        "monitoring/summary",
    ],
)
def test_no_file_and_no_address_is_read_for_a_visitor(server: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{server}gradio_api/{path}", timeout=30)
    assert refused.value.code in (403, 404)


@pytest.mark.parametrize("path", ["/etc/hostname", "https://example.com/a.png"])
def test_no_path_is_taken_for_an_upload(visit: Opener, path: str) -> None:
    """What a browser sends for an upload, with a path of the visitor's own in it."""
    page = visit(QUICK + "&methods=topv&picture=0")
    said = page.evaluate(SEND, path)
    assert '"success":false' in said.replace(" ", ""), said
    assert "root:" not in said


# Joins the queue with a picture of the visitor's own invention, and reads what comes back.
SEND = """async path => {
  const ask = window.gradio_config.dependencies.find(d => d.targets.some(t => t[1] === "submit"));
  const session_hash = "intruder" + Math.random().toString(36).slice(2);
  const picture = { path, url: null, orig_name: "a.png", meta: { _type: "gradio.FileData" } };
  const body = { data: [picture, 0, "what?", ["topv"], 0.5, 0, 4, false], fn_index: ask.id, session_hash };
  const sent = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const root = window.location.origin + "/gradio_api/queue/";
  await fetch(root + "join", sent);
  const events = (await fetch(root + "data?session_hash=" + session_hash)).body.getReader();
  let text = "";
  for (let read = await events.read(); !read.done; read = await events.read()) {
    text += new TextDecoder().decode(read.value);
    if (text.includes("process_completed")) break;
  }
  return text;
}"""


def test_another_sites_name_for_this_machine_is_refused(server: str) -> None:
    request = urllib.request.Request(server, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == 403


def test_a_file_over_the_limit_is_not_taken(server: str, tmp_path: Path) -> None:
    boundary = "frontier"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head.encode() + b"x" * (3 * 2**20) + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(
        f"{server}gradio_api/upload",
        data=body,
        headers={"content-type": f"multipart/form-data; boundary={boundary}"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == 413


def test_it_listens_on_loopback_alone(server: str) -> None:
    port = urlsplit(server).port
    listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    addresses = re.findall(rf"\s([0-9A-F]+):{port:04X}\s[0-9A-F:]+\s0A", listening)
    assert addresses == ["0100007F"]


def test_a_visitors_picture_is_not_written_while_another_reads_it(tmp_path: Path) -> None:
    blocks = build_page(ModelSlot("mini"), Limits(), folder=tmp_path, measure=False)
    picks = [function.fn for function in blocks.fns.values() if getattr(function.fn, "__name__", "") == "_pick"]
    assert len(picks) == 1
    picked = [picks[0](2)[0] for _ in range(2)]
    assert picked == [str(tmp_path / "picture-2.png")] * 2
    before = Path(picked[0]).stat()
    assert Path(picks[0](2)[0]).stat().st_ctime_ns == before.st_ctime_ns
