"""What a visitor of the page does, for the tests in a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

SLOW = 60_000
"""Milliseconds that a busy machine may take for anything."""

QUICK = "?measure=0&tokens=6"
"""Settings for short answers."""

HOSTILE = "<img src=x onerror=window.taken=1>${window.taken=1}{{taken}}<script>window.taken=1</script>"
"""A question that would run, were it not escaped."""

Opener = Callable[..., "Page"]


def ask(page: Page) -> None:
    """Ask, and wait for the end."""
    from playwright.sync_api import expect

    page.click("#topv-ask")
    expect(page.locator("#topv-status")).to_have_text("Done", timeout=SLOW)


def labels(page: Page, part: str) -> list[str]:
    """The methods whose cards a part of the page shows."""
    return page.locator(f"#{part} .topv-card h3").all_text_contents()


def png(path: Path, size: tuple[int, int], colour: str) -> Path:
    """A picture file of one colour."""
    Image.new("RGB", size, colour).save(path)
    return path
