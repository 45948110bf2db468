"""The page's results as HTML, from the templates beside this file. Everything that came from outside is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import markupsafe
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ..ask.case import GridMarks
from ..ask.views import GridView
from ..report import MethodResult, draw_heat_map, draw_token_map
from ..report.text import format_bytes, format_kept, format_latency, format_share, printable
from .comparing import Outcome, Snapshot

__all__ = ["Figure", "answer_cards", "escape", "outcome_cards", "render", "status_line"]

_SHOWN_GRIDS = 8
"""Grids drawn for each method; all can be looked at further down the page."""

_STATES = {"waiting": "waiting", "answering": "answering …", "stopped": "stopped"}


def escape(text: object) -> Markup:
    """Text for HTML, inert in a template too: Gradio fills its templates with what it shows.

    >>> print(escape('<b>${x} {{y}} "'))
    &lt;b&gt;&#36;&#123;x&#125; &#123;&#123;y&#125;&#125; &#34;
    """
    if isinstance(text, Markup):
        return text
    escaped = str(markupsafe.escape(printable(str(text))))
    for character in "${}`\\":
        escaped = escaped.replace(character, f"&#{ord(character)};")
    return Markup(escaped)


def render(fragment: str, *values: object) -> str:
    """A piece of the page: a macro of `fragments.html.jinja`, filled with `values`."""
    return str(getattr(_fragments(), fragment)(*values))


@lru_cache(maxsize=1)
def _fragments() -> Any:
    # `finalize` sees every value before autoescape, which leaves what it returns alone.
    environment = Environment(
        loader=PackageLoader("topv.ui", "."),
        autoescape=True,
        finalize=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("fragments.html.jinja").module


class Figure(NamedTuple):
    """A picture inside the page.

    Attributes:
        source: its data URL.
        alternative: what it shows, for those who do not see it.
        caption: what stands beneath it; nothing where empty.
    """

    source: Markup
    alternative: str
    caption: str = ""

    @classmethod
    def of(cls, image: Image.Image, alternative: str, caption: str = "") -> Figure:
        """The figure of an image."""
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88, optimize=True, subsampling=0)
        # Base64 has no character that HTML or a template knows, and is long.
        url = Markup("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))
        return cls(url, alternative, caption)


class _Bar(NamedTuple):
    """A share of the unpruned model's, which fills the bar at 100 percent.

    `kind` is "unclear" for grey, where no difference was measured, or "over" above the unpruned model's.
    """

    name: str
    value: str
    said: str
    percent: float
    kind: str


class _Card(NamedTuple):
    """What one method kept and left; `more` of its grids are not drawn."""

    label: str
    many: bool
    figures: list[Figure]
    more: int
    bars: list[_Bar]


def status_line(text: str, done: int = 0, steps: int = 0, *, problem: bool = False) -> str:
    """What is going on, with a bar where there are steps."""
    return render("status_line", text, done, steps, problem)


def answer_cards(snapshot: Snapshot) -> str:
    """The answers side by side."""
    return render("answer_cards", snapshot.columns, _STATES)


def outcome_cards(snapshot: Snapshot) -> str:
    """For each method that is done its token map, its heat map, and its savings as bars."""
    done = [column.outcome for column in snapshot.columns if column.outcome is not None]
    if not done:
        return ""
    return render(
        "outcome_cards",
        [_card(outcome, snapshot) for outcome in done],
        any(outcome.marks[0].recovered for outcome in done),
        any(outcome.marks[0].importance for outcome in done),
        any(outcome.result.prefill for outcome in done),
    )


def _card(outcome: Outcome, snapshot: Snapshot) -> _Card:
    many = len(snapshot.views) > 1
    shown = list(zip(snapshot.views, outcome.marks, strict=True))[:_SHOWN_GRIDS]
    figures = [figure for view, marks in shown for figure in _figures(view, marks, named=many)]
    more = len(snapshot.views) - len(shown)
    return _Card(outcome.result.label, many, figures, more, _bars(outcome.result))


def _figures(view: GridView, marks: GridMarks, *, named: bool) -> Iterator[Figure]:
    """The token map of one grid, and its heat map where there is importance."""
    if view.picture is None:
        return
    kept = f"kept {len(marks.kept)} of {view.grid[0] * view.grid[1]} tokens"
    tokens = draw_token_map(view.picture, view.grid, marks.kept, marks.recovered)
    yield Figure.of(
        tokens, f"The {view.name}, {kept}, the others greyed", f"{view.name}: {kept}" if named else kept.capitalize()
    )
    if marks.importance is not None:
        heat = draw_heat_map(view.picture, view.grid, marks.importance)
        yield Figure.of(heat, f"Heat map of the importance of each token of the {view.name}", "Importance")


def _bars(result: MethodResult) -> list[_Bar]:
    visual_flops = 1 - result.visual_flops_reduction
    bars = [
        _bar(
            "Visual tokens",
            result.kept_tokens / result.visual_tokens,
            format_kept(result.visual_tokens, result.kept_tokens),
        ),
        _bar("KV cache", _over(result.kv_bytes, result.kv_bytes_unpruned), format_bytes(result.kv_bytes)),
        _bar("Visual FLOPs", visual_flops, format_share(visual_flops)),
    ]
    for name, latency in (("Prefill time", result.prefill), ("Decode time", result.decode)):
        if latency is not None:
            ratio = latency.ratio
            unclear = ratio is not None and ratio.unclear
            bars.append(_bar(name, 1.0 if ratio is None else ratio.value, format_latency(latency), unclear=unclear))
    return bars


def _bar(name: str, share: float, value: str, *, unclear: bool = False) -> _Bar:
    known = share == share
    percent = min(100.0, max(0.0, 100 * share)) if known else 0.0
    said = f"{name}: {value}, {100 * share:.0f} % of the unpruned model" if known else f"{name}: not counted"
    return _Bar(name, value, said, percent, "unclear" if unclear else "over" if known and share > 1.005 else "")


def _over(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
