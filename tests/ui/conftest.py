"""`topv ui` as a user starts it, and visitors in a real Chromium: $TOPV_CHROMIUM, else `chromium` on the path."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from visitor import SLOW

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

    from visitor import Opener


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


@pytest.fixture(scope="session")
def way_out() -> Iterator[Exit]:
    found = Exit()
    yield found
    found.listener.close()


@pytest.fixture(scope="session")
def server(way_out: Exit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`topv ui` on the bundled model, as a user starts it."""
    port, folder = free_port(), tmp_path_factory.mktemp("server")
    log = folder / "log.txt"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRADIO_")}
    environment |= {"HTTP_PROXY": way_out.address, "HTTPS_PROXY": way_out.address, "NO_PROXY": "127.0.0.1,localhost"}
    environment["TMPDIR"] = str(folder)
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
    assert [path for path in folder.iterdir() if path != log] == [], "nothing of any visitor is left"
    # The two that a visitor who makes up paths is told of by Gradio.
    assert way_out.connections == 0, "the server asked another machine for something"
    intruders = log.read_text().count("Cannot move /etc/") + log.read_text().count("InputError: pictures are")
    assert log.read_text().count("Traceback") == intruders, log.read_text()


def answers(address: str) -> bool:
    try:
        return bool(urllib.request.urlopen(address, timeout=5).status == 200)
    except OSError:
        return False


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = os.environ.get("TOPV_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert executable, "no Chromium: install the package chromium, or name one in $TOPV_CHROMIUM"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, server: str) -> Iterator[Opener]:
    """Opens the page as a visitor of one's own. In the end nothing was wrong on any console, and nothing left."""
    from playwright.sync_api import expect

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
