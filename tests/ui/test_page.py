"""The page in a real Chromium: what a visitor does, and what it looks like. Screenshots go to runs/ui."""

from __future__ import annotations

import re
import urllib.parse
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

if find_spec("playwright") is None or find_spec("gradio") is None:
    pytest.skip("needs Gradio and Playwright: make test-ui", allow_module_level=True)

from playwright.sync_api import expect

from visitor import HOSTILE, QUICK, SLOW, Opener, ask, labels, png

SHOTS = Path(__file__).parents[2] / "runs" / "ui"


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
    expect(page.locator("[data-cell][aria-label$='recovered']")).to_have_count(18, timeout=SLOW)
    expect(page.locator("[data-cell][aria-label$='kept']")).to_have_count(54)


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
    page = visit(QUICK + "&methods=none,topv&prompt=" + urllib.parse.quote(HOSTILE))
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


def test_cancel_stops_the_run(visit: Opener) -> None:
    page = visit("?measure=1&tokens=256&methods=none,topv,fastv,random&prompt=describe+the+picture+in+detail.")
    page.click("#topv-ask")
    expect(page.locator("#topv-cancel")).to_be_enabled(timeout=SLOW)
    expect(page.locator("#topv-status progress")).to_be_visible(timeout=SLOW)
    page.click("#topv-cancel")
    expect(page.locator("#topv-status")).to_have_text("Stopped", timeout=20_000)
    expect(page.locator("#topv-ask")).to_be_enabled()
    expect(page.locator("#topv-cancel")).to_be_disabled()


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
