"""The HTML report: one file, nothing fetched, everything foreign escaped."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from topv.measure import Latency
from topv.report import Case, Comparison, MethodResult, render_html
from topv.report.html import write_html

HOSTILE = '<script>alert("x")</script> {{ 7 * 7 }} & "quoted"'


def result(label="none", **changes) -> MethodResult:
    plain = MethodResult(
        label=label,
        settings=None,
        answer="a red star",
        correct=None,
        visual_tokens=4,
        kept_tokens=4,
        visual_flops_reduction=0.0,
        kv_bytes=4096,
        kv_bytes_unpruned=4096,
        kept=(0, 1, 2, 3),
        prefill=Latency((0.02, 0.02)),
        decode=Latency((0.01, 0.01)),
    )
    return replace(plain, **changes)


def pruned(**changes) -> MethodResult:
    return replace(
        result("topv keep=0.5"),
        settings={"keep": 0.5, "layer": 2},
        kept_tokens=2,
        kept=(0, 3),
        recovered=(3,),
        importance=(0.4, 0.1, 0.2, float("nan")),
        visual_flops_reduction=0.3,
        kv_bytes=3072,
        prefill=Latency((0.01, 0.011), (0.5, 0.55)),
        decode=Latency((0.01, 0.01), (1.0, 0.9)),
        **changes,
    )


def comparison(*results: MethodResult, **case) -> Comparison:
    plain = Case(
        image_name="photo.jpg",
        prompt="what is there?",
        expected=None,
        seen=Image.new("RGB", (8, 8), "red"),
        grid=(2, 2),
        prompt_tokens=9,
        results=results or (result(), pruned()),
    )
    versions = {"topv": "0.1.0", "python": "3.11", "torch": "2.13.0", "transformers": "5.23.0"}
    return Comparison(
        model={
            "name": "mini",
            "class": "Llava",
            "dtype": "float32",
            "attention": "sdpa",
            "layers": 5,
            "parameters": 12345,
        },
        environment={"versions": versions},
        device="a processor",
        command="topv compare --report out.html",
        date="2025-01-01 00:00 UTC",
        timing={"repetitions": 7, "warmup": 1, "decode_steps": 8, "coverage": 0.984},
        cases=(replace(plain, **case),),
    )


class Page(HTMLParser):
    """Collects a page's tags, attributes and text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._shown = True
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._shown = tag != "style"

    def handle_endtag(self, tag):
        self._shown = True

    def handle_data(self, data):
        if self._shown:
            self.text += data


def test_nothing_is_fetched():
    html = render_html(comparison())
    assert "http:" not in html
    assert "https:" not in html
    page = Page(html)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "base", "form"}
    sources = [attributes[name] for _, attributes in page.tags for name in ("src", "href") if name in attributes]
    assert len(sources) == 3
    for source in sources:
        head, _, data = source.partition(",")
        assert head == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).format == "JPEG"
    assert not re.search(r"url\(|@import", html)
    policy = [a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_everything_foreign_is_escaped():
    found = comparison(result(answer=HOSTILE), pruned(), prompt=HOSTILE, image_name=HOSTILE, expected=HOSTILE)
    found = replace(found, command=HOSTILE, model={**found.model, "name": HOSTILE})
    html = render_html(found)
    assert "<script" not in html
    assert "49" not in re.sub(r"base64,[^\"]*", "", html)
    assert Page(html).text.count(HOSTILE) >= 6


def test_what_it_shows():
    text = " ".join(Page(render_html(comparison())).text.split())
    for part in (
        "mini", "a processor", "float32", "sdpa", "2025-01-01", "topv 0.1.0", "torch 2.13.0", "12,345 parameters",
        "topv compare --report out.html", "what is there?", "photo.jpg", "2 × 2 visual tokens", "a red star",
        "topv keep=0.5", "4 → 2", "30.0 %", "3.0 KiB (−25.0 %)", "1 (20.0 ms)", "0.53 (0.50–0.55)",
        "~0.95 (0.90–1.00)", "of them recovered", "keep=0.5 layer=2", "98.4 %", "8 greedy steps",
    ):  # fmt: skip
        assert part in text, part


def test_right_and_wrong_answers():
    text = Page(render_html(comparison(result(correct=True), pruned(correct=False), expected="a star"))).text
    assert "✓ right" in text
    assert "✗ wrong" in text
    assert "1 of 1" in text
    assert "0 of 1" in text


def test_what_was_not_measured_is_left_out():
    found = comparison(result(prefill=None, decode=None, answer=""))
    text = Page(render_html(replace(found, timing=None))).text
    assert "Prefill" not in text
    assert "Foreground" not in text
    assert "recovered" not in text
    assert "(no answer)" in text


def test_phones_and_dark_mode():
    html = render_html(comparison())
    assert 'name="viewport" content="width=device-width' in html
    assert "prefers-color-scheme: dark" in html


def test_the_file(tmp_path):
    path = tmp_path / "new" / "report.html"
    write_html(comparison(), path)
    assert path.read_text(encoding="utf-8") == render_html(comparison())


def test_summary_over_cases():
    (one,) = comparison().cases
    other = replace(
        one, results=(result(), pruned(foreground_kept=0.5, answer="x")), grid=(2, 2), image_name="other.jpg"
    )
    none, topv = replace(comparison(), cases=(one, other)).summaries
    assert (none.label, none.pruned, none.prefill) == ("none", False, None)
    assert none.prefill_seconds == pytest.approx(0.02)
    assert topv.prefill.value == pytest.approx(0.525)
    assert topv.prefill.coverage == 1 - 2 / 2**4
    assert (topv.kept_tokens, topv.kv_bytes, topv.foreground_kept, topv.asked) == (2, 3072, 0.5, 0)


def test_values_are_json():
    import json

    values = json.loads(json.dumps(comparison().to_dict(), allow_nan=False))
    assert values["cases"][0]["results"][1]["importance"] == [0.4, 0.1, 0.2, None]
    assert values["summary"][1]["decode"]["unclear"] is True
