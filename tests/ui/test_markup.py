"""The page's HTML: whatever a name, an answer or a reason holds, it is shown and does nothing. Gradio is not needed."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from topv.ask.case import GridMarks
from topv.ask.contribution import Contribution
from topv.ask.views import GridView
from topv.measure.latency import Latency
from topv.report import MethodResult
from topv.ui.comparing import Column, Outcome, Snapshot
from topv.ui.explorer import contribution_panel, token_grid
from topv.ui.markup import answer_cards, escape, outcome_cards, status_line

HOSTILE = "<img src=x onerror=alert(1)>\"'&${alert(2)}{{3}}`\\\x1b"
SHOWN = "<img src=x onerror=alert(1)>\"'&${alert(2)}{{3}}`\\�"
VIEW = GridView(f"picture{HOSTILE}", (2, 2), Image.new("RGB", (16, 16), (200, 30, 90)))
TIMES = Latency((1.0, 1.1), (0.5, 0.6))


def outcome(**changed: object) -> Outcome:
    settings: dict[str, object] = {
        "label": HOSTILE, "settings": None, "answer": "", "correct": None, "visual_tokens": 4, "kept_tokens": 2,
        "visual_flops_reduction": 0.25, "kv_bytes": 30, "kv_bytes_unpruned": 40, "kept": (0, 1), "prefill": TIMES,
    }  # fmt: skip
    result = MethodResult(**{**settings, **changed})  # type: ignore[arg-type]
    marks = GridMarks((0, 1), (1,), (4.0, 3.0, 2.0, 1.0))
    return Outcome(result, (marks,), {0: Contribution(torch.rand(4, 4, generator=torch.Generator().manual_seed(0)))})


class Page(HTMLParser):
    """The elements and the text of a fragment, as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "progress"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "progress":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


COLUMNS = (
    Column(HOSTILE, text=HOSTILE, state="answering"),
    Column(HOSTILE, reason=HOSTILE, state="failed"),
    Column(HOSTILE, text=HOSTILE, state="done", outcome=outcome(correct=True)),
)
FRAGMENTS = {
    "answers": lambda: answer_cards(Snapshot(COLUMNS, (VIEW,))),
    "outcomes": lambda: outcome_cards(Snapshot(COLUMNS, (VIEW,))),
    "status": lambda: status_line(HOSTILE, 1, 3, problem=True),
    "grid": lambda: token_grid(VIEW, outcome(), 0),
    "contribution": lambda: contribution_panel(VIEW, outcome(), 0, 3),
}


@pytest.mark.parametrize("name", FRAGMENTS)
def test_a_hostile_text_is_shown_and_does_nothing(name: str) -> None:

    text = FRAGMENTS[name]()
    page = Page(text)
    assert not page.open, "every element is closed"
    names = {attribute for _, attributes in page.elements for attribute in attributes}
    assert not {attribute for attribute in names if attribute.startswith("on")}
    assert all(attributes["src"].startswith("data:image/jpeg;") for tag, attributes in page.elements if tag == "img")
    values = [value or "" for _, attributes in page.elements for value in attributes.values()]
    assert SHOWN in page.text + "".join(values)
    # What Gradio fills in its templates, and control characters, are nowhere in the source.
    assert not set(text) & set("${}`\\\x1b")


def test_an_escaped_text_is_read_as_it_was() -> None:
    assert html.unescape(escape(HOSTILE)) == SHOWN
    assert escape(escape("<b>")) == "&lt;b&gt;"
    assert escape(7) == "7"


def test_states_of_an_answer() -> None:
    states = [
        (Column("a", text=" some ", state="answering"), "some", "answering …"),
        (Column("a", state="waiting"), "", "waiting"),
        (Column("a", text=" ", state="done"), "(no answer)", ""),
        (Column("a", text="x", state="stopped"), "x", "stopped"),
        (Column("a", text="x", state="failed", reason="why"), "why", ""),
        (Column("a", text="x", state="done", outcome=outcome(correct=True)), "x ✓ right", ""),
        (Column("a", text="x", state="done", outcome=outcome(correct=False)), "x ✗ wrong", ""),
        (Column("a", text="x", state="done", outcome=outcome()), "x", ""),
    ]
    for column, said, state in states:
        page = Page(answer_cards(Snapshot((column,))))
        assert page.text == f"Answersa{said}{state}", column


def test_bars_say_what_is_left() -> None:
    """Half of the tokens, three quarters of FLOPs and KV bytes, about half of the time; decoding was not measured."""
    text = outcome_cards(Snapshot((Column("a", state="done", outcome=outcome()),), (VIEW,)))
    bars = re.findall(r'aria-label="([^"]+)"><span>[^<]+</span>.*?width: ([\d.]+)%', text)
    assert [(said.partition(":")[0], width) for said, width in bars] == [
        ("Visual tokens", "50.0"),
        ("KV cache", "75.0"),
        ("Visual FLOPs", "75.0"),
        ("Prefill time", "55.0"),
    ]
    assert "recovered" in text
    assert "most important" in text
    assert "times: ratio" in text
    slower = Latency((1.0,) * 6, (1.2, 1.3, 1.2, 1.3, 1.2, 1.3))
    text = outcome_cards(Snapshot((Column("a", state="done", outcome=outcome(prefill=slower)),), (VIEW,)))
    assert 'class="topv-bar topv-over"' in text
    unclear = Latency((1.0,) * 6, (0.9, 1.1, 1.0, 1.2, 0.8, 1.0))
    text = outcome_cards(Snapshot((Column("a", state="done", outcome=outcome(prefill=unclear)),), (VIEW,)))
    assert 'class="topv-bar topv-unclear"' in text


def test_tiles_beyond_those_drawn_are_counted() -> None:
    marks = GridMarks((0,))
    many = Outcome(outcome().result, (marks,) * 11)
    text = outcome_cards(Snapshot((Column("a", state="done", outcome=many),), (VIEW,) * 11))
    assert text.count("<img") == 8
    assert "and 3 more parts of the picture, below" in text
    assert "topv-many" in text
