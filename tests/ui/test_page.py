"""The page in a real Chromium: what a visitor does, what a bad one tries, and what it looks like.

Screenshots go to runs/ui. Run by `make test-ui`; the browser is $TOPV_CHROMIUM, else `chromium` on the path."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

if find_spec("playwright") is None or find_spec("gradio") is None:
    pytest.skip("needs Gradio and Playwright: make test-ui", allow_module_level=True)

from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

SHOTS = Path(__file__).parents[2] / "runs" / "ui"
SLOW = 60_000
HOSTILE = "<img src=x onerror=window.taken=1>${window.taken=1}{{taken}}<script>window.taken=1</script>"


class Exit:
    """A proxy that every request of the server to another machine would go through. It counts and refuses them."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.connections = 0
        threading.Thread(target=self._count, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def _count(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def way_out() -> Iterator[Exit]:
    found = Exit()
    yield found
    found.listener.close()


@pytest.fixture(scope="module")
def server(way_out: Exit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`topv ui` on the bundled model, as a user starts it."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log.txt"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRADIO_")}
    environment |= {"HTTP_PROXY": way_out.address, "HTTPS_PROXY": way_out.address, "NO_PROXY": "127.0.0.1,localhost"}
    command = [sys.executable, "-m", "topv", "ui", "--port", str(port), "--no-browser", "--max-upload", "2"]
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            address, deadline = f"http://127.0.0.1:{port}/", time.monotonic() + 120
            while not answers(address):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()
            code = process.wait(timeout=30)
    assert code == 130, log.read_text()
    # The two that a visitor who makes up paths is told of by Gradio.
    intruders = log.read_text().count("Cannot move /etc/") + log.read_text().count("InputError: pictures are")
    assert log.read_text().count("Traceback") == intruders, log.read_text()


def answers(address: str) -> bool:
    try:
        return bool(urllib.request.urlopen(address, timeout=5).status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = os.environ.get("TOPV_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert executable, "no Chromium: install the package chromium, or name one in $TOPV_CHROMIUM"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )
        yield browser
        browser.close()


Opener = Callable[..., Page]


@pytest.fixture
def visit(browser: Browser, server: str) -> Iterator[Opener]:
    """Opens the page as a visitor of one's own. In the end nothing was wrong on any console, and nothing left."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def watch(page: Page) -> None:
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))

    def request(made: Any) -> None:
        if not made.url.startswith((server, "data:", "blob:")):
            wrong.append(f"a request to {made.url}")

    def open_page(query: str = "", *, width: int = 1280, theme: Any = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        contexts.append(context)
        context.on("request", request)
        page = context.new_page()
        watch(page)
        page.goto(server + query)
        expect(page.locator("#topv-status")).to_contain_text("ready", timeout=SLOW)
        expect(page.locator("#topv-link a")).to_have_attribute("href", re.compile("picture="), timeout=SLOW)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


QUICK = "?measure=0&tokens=6"


def ask(page: Page) -> None:
    page.click("#topv-ask")
    expect(page.locator("#topv-status")).to_have_text("Done", timeout=SLOW)


def labels(page: Page, part: str) -> list[str]:
    return page.locator(f"#{part} .topv-card h3").all_text_contents()


def png(path: Path, size: tuple[int, int], colour: str) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def test_ask_and_see_answers_tokens_and_savings(visit: Opener) -> None:
    page = visit("?tokens=6&measure=1&methods=none,topv,random&keep=0.25")
    ask(page)
    assert labels(page, "topv-answers") == ["none", "topv keep=0.25", "random keep=0.25"]
    assert labels(page, "topv-outcomes") == labels(page, "topv-answers")
    assert all(text.strip() for text in page.locator(".topv-answer").all_text_contents())
    bars = [bar.get_attribute("aria-label") or "" for bar in page.locator(".topv-bar").all()]
    assert len(bars) == 15, "five for each method"
    assert "Visual tokens: 144 → 36, 25 % of the unpruned model" in bars
    assert sum(bar.startswith("Prefill time") for bar in bars) == 3
    pictures = page.locator("#topv-outcomes img")
    assert pictures.count() == 4, "three token maps, and the importance of the one method that has it"
    assert all(picture.get_attribute("alt") for picture in pictures.all())


def test_recovered_tokens_are_drawn(visit: Opener) -> None:
    page = visit(QUICK + "&methods=topv&keep=0.5&recovery=0.25")
    ask(page)
    assert labels(page, "topv-outcomes") == ["topv keep=0.5 recovery=0.25"]
    expect(page.locator(".topv-legend")).to_contain_text("recovered")
    assert page.locator("[data-cell][aria-label$='recovered']").count() == 18
    assert page.locator("[data-cell][aria-label$='kept']").count() == 54


def test_answers_come_as_they_are_written(visit: Opener) -> None:
    page = visit("?measure=0&tokens=64&methods=topv&prompt=describe+the+picture+in+detail.")
    page.evaluate(
        """() => {
          window.texts = new Set();
          const look = () => window.texts.add(document.querySelector(".topv-answer")?.textContent ?? "");
          new MutationObserver(look).observe(document.querySelector("#topv-answers"), {
            childList: true, subtree: true, characterData: true
          });
        }"""
    )
    ask(page)
    final = page.locator(".topv-answer").text_content() or ""
    seen = page.evaluate("() => [...window.texts]")
    parts = [text for text in seen if text and text != final]
    assert len(parts) >= 3
    assert all(final.startswith(text) for text in parts)


def test_move_the_slider(visit: Opener) -> None:
    page = visit(QUICK + "&methods=topv&keep=0.5")
    slider = page.locator("#topv-keep input[type=range]")
    slider.focus()
    for _ in range(5):
        slider.press("ArrowLeft")
    expect(page.locator("#topv-link a")).to_have_attribute("href", re.compile(r"keep=0\.25"))
    ask(page)
    assert labels(page, "topv-answers") == ["topv keep=0.25"]
    expect(page.locator("#topv-outcomes figcaption").first).to_have_text("Kept 36 of 144 tokens")


def test_a_link_reopens_the_settings(visit: Opener) -> None:
    page = visit(
        "?picture=3&methods=uniform,topv&keep=0.35&recovery=0.2&tokens=9&measure=0&prompt=how+many+%26+where%3F"
    )
    link = page.locator("#topv-link a").get_attribute("href") or ""
    query = {name: value[0] for name, value in parse_qs(urlsplit(link).query).items()}
    assert set(query.pop("methods").split(",")) == {"uniform", "topv"}
    assert query.pop("prompt") == "how many & where?"
    assert query == {"picture": "3", "keep": "0.35", "recovery": "0.2", "tokens": "9", "measure": "0"}
    again = visit("?" + urlsplit(link).query)
    assert again.locator("#topv-prompt textarea").input_value() == "how many & where?"
    assert again.locator("#topv-keep input[type=range]").input_value() == "0.35"
    assert again.locator("#topv-methods input:checked").count() == 2
    assert again.locator("#topv-picture input").input_value().startswith("3:")
    again = visit("?picture=99&methods=rm,../etc&keep=nan&tokens=-1")
    assert again.locator("#topv-picture input").input_value().startswith("1:")
    assert again.locator("#topv-methods input:checked").count() == 3


def test_click_a_token(visit: Opener) -> None:
    page = visit(QUICK + "&methods=none,topv")
    ask(page)
    page.click("[data-cell='30']")
    panel = page.locator("#topv-panel")
    expect(panel).to_contain_text("Token at row 3, column 7", timeout=SLOW)
    assert panel.locator("h3").all_text_contents() == ["Which targets it serves", "Which sources serve it"]
    before = panel.locator("img").first.get_attribute("src")
    page.click("[data-cell='100']")
    expect(panel).to_contain_text("Token at row 9, column 5", timeout=SLOW)
    assert panel.locator("img").first.get_attribute("src") != before
    assert page.locator("[aria-selected='true']").count() == 1
    page.click("#topv-label input")
    page.get_by_role("option", name="none").click()
    expect(panel).to_contain_text("no contribution matrix", timeout=SLOW)


def test_everything_by_keyboard(visit: Opener) -> None:
    page = visit(QUICK + "&methods=topv")
    page.locator("#topv-prompt textarea").focus()
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.closest('[id^=topv-]')?.id"))
        if "topv-ask" in reached:
            break
    assert {"topv-methods", "topv-keep", "topv-ask"} <= reached
    page.keyboard.press("Enter")
    expect(page.locator("#topv-status")).to_have_text("Done", timeout=SLOW)
    page.locator("[data-cell][tabindex='0']").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowLeft", "ArrowLeft", "End", "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#topv-panel")).to_contain_text("Token at row 3, column 12", timeout=SLOW)
    assert page.evaluate("() => document.activeElement.dataset.cell") == "35"


def test_labels_for_screen_readers(visit: Opener) -> None:
    page = visit(QUICK + "&methods=topv")
    ask(page)
    page.click("[data-cell='5']")
    expect(page.locator("#topv-panel img")).to_have_count(2, timeout=SLOW)
    for role, name in {
        "textbox": "Question", "button": "Ask", "slider": "Share of visual tokens to keep", "grid": "Visual tokens",
        "checkbox": "topv", "article": "Answer of topv",
    }.items():  # fmt: skip
        expect(page.get_by_role(role, name=re.compile(name)).first).to_be_visible()
    assert page.get_by_role("gridcell").count() == 144
    assert "row 1, column 6" in (page.locator("[data-cell='5']").get_attribute("aria-label") or "")
    assert page.locator("#topv-status [role=status], #topv-panel [role=status]").count() == 2
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input:not([type=hidden]), textarea, button, img")]
          .filter(item => item.checkVisibility())
          .filter(item => !(item.labels?.length || item.ariaLabel || item.textContent.trim() || item.title
            || item.getAttribute("aria-labelledby") || item.hasAttribute("alt")))
          .map(item => item.outerHTML.slice(0, 200))"""
    )
    assert unnamed == []


def test_download_the_report(visit: Opener, tmp_path: Path) -> None:
    page = visit(QUICK + "&methods=none,topv&prompt=" + urllib.request.quote(HOSTILE))
    ask(page)
    with page.expect_download() as download:
        page.click("#topv-report")
    path = tmp_path / "report.html"
    download.value.save_as(path)
    assert download.value.suggested_filename == "topv-report.html"
    text = path.read_text(encoding="utf-8")
    assert "topv keep=0.5" in text
    assert "&lt;img src=x onerror=window.taken=1&gt;" in text
    assert "<img src=x" not in text
    assert page.evaluate("() => window.taken") is None


def test_ask_about_an_uploaded_picture(visit: Opener, tmp_path: Path) -> None:
    page = visit(QUICK + "&methods=topv")
    page.set_input_files("#topv-image input[type=file]", png(tmp_path / "red.png", (321, 123), "red"))
    expect(page.locator("#topv-status")).to_contain_text("321 x 123 pixels", timeout=SLOW)
    expect(page.locator("#topv-picture input")).to_have_value(re.compile("none"))
    ask(page)
    assert labels(page, "topv-outcomes") == ["topv keep=0.5"]


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


def test_cancel_stops_the_run(visit: Opener) -> None:
    page = visit("?measure=1&tokens=256&methods=none,topv,fastv,random&prompt=describe+the+picture+in+detail.")
    page.click("#topv-ask")
    expect(page.locator("#topv-cancel")).to_be_enabled(timeout=SLOW)
    expect(page.locator("#topv-status progress")).to_be_visible(timeout=SLOW)
    page.click("#topv-cancel")
    expect(page.locator("#topv-status")).to_have_text("Stopped", timeout=20_000)
    expect(page.locator("#topv-ask")).to_be_enabled()
    expect(page.locator("#topv-cancel")).to_be_disabled()


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


@pytest.mark.parametrize("width", [380, 1600])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_and_shows(visit: Opener, width: int, theme: str) -> None:
    page = visit("?tokens=6&measure=1&methods=none,topv,fastv&keep=0.25&picture=2", width=width, theme=theme)
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"before-{width}-{theme}.png", full_page=True)
    ask(page)
    page.click("[data-cell='40']")
    expect(page.locator("#topv-panel img")).to_have_count(2, timeout=SLOW)
    page.screenshot(path=SHOTS / f"after-{width}-{theme}.png", full_page=True)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width, "nothing sticks out"
    texts = page.evaluate(CONTRAST)
    assert [text for text in texts if text[1] < 4.5] == []
    assert len(texts) > 30


# Contrast by WCAG 2.2 of every line of the results against what is behind it.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = item => {
    for (let at = item; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255];
  };
  const lines = document.querySelectorAll("[id^=topv-] :is(h2, h3, p, a, button, figcaption, span, label)");
  return [...lines].filter(line => line.checkVisibility() && [...line.childNodes].some(n => n.nodeType === 3
      && n.textContent.trim())).map(line => {
    const pair = [luminance(rgb(getComputedStyle(line).color)), luminance(behind(line))].sort((a, b) => b - a);
    return [line.textContent.trim().slice(0, 60), (pair[0] + 0.05) / (pair[1] + 0.05)];
  });
}"""


@pytest.mark.parametrize(
    "path", ["file=/etc/passwd", "file=https://example.com/", "file=http%3A//127.0.0.1/", "proxy=https://example.com/x"]
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


def test_the_server_asks_nobody(way_out: Exit, server: str) -> None:
    """Last, after everything above was done."""
    assert way_out.connections == 0
