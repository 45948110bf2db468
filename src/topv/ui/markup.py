"""The page's results as HTML. Everything that came from outside is escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Iterator, Sequence

from PIL import Image

from ..ask.case import GridMarks
from ..ask.views import GridView
from ..report import MethodResult, draw_heat_map, draw_token_map
from ..report.text import format_bytes, format_kept, format_latency, format_share, printable
from .comparing import Column, Outcome, Snapshot

__all__ = ["answer_cards", "escape", "figure", "outcome_cards", "status_line"]

_SHOWN_GRIDS = 8
"""Grids drawn for each method; all can be looked at further down the page."""

_STATES = {"waiting": "waiting", "answering": "answering …", "stopped": "stopped"}


def escape(text: object) -> str:
    """Text for HTML, inert in a template too: Gradio fills its templates with what it shows.

    >>> escape('<b>${x} {{y}} "')
    '&lt;b&gt;&#36;&#123;x&#125; &#123;&#123;y&#125;&#125; &quot;'
    """
    escaped = html.escape(printable(str(text)))
    for character in "${}`\\":
        escaped = escaped.replace(character, f"&#{ord(character)};")
    return escaped


def status_line(text: str, done: int = 0, steps: int = 0, *, problem: bool = False) -> str:
    """What is going on, with a bar where there are steps."""
    bar = f'<progress value="{done}" max="{steps}" aria-label="Progress"></progress>' if steps else ""
    kind = " topv-problem" if problem else ""
    return f'<div class="topv-status{kind}"><span>{escape(text)}</span>{bar}</div>'


def answer_cards(snapshot: Snapshot) -> str:
    """The answers side by side."""
    return _heading("Answers") + _cards(_answer_card(column) for column in snapshot.columns)


def outcome_cards(snapshot: Snapshot) -> str:
    """For each method that is done its token map, its heat map, and its savings as bars."""
    done = [column.outcome for column in snapshot.columns if column.outcome is not None]
    if not done:
        return ""
    cards = _cards(_outcome_card(outcome, snapshot) for outcome in done)
    return _heading("What each method kept, and what it left") + cards + _legend(done)


def figure(image: Image.Image, alternative: str, caption: str) -> str:
    """A picture inside the page, with its description and caption."""
    return (
        f'<figure class="topv-figure"><img src="{_data_url(image)}" alt="{escape(alternative)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _heading(text: str) -> str:
    return f'<h2 class="topv-heading">{escape(text)}</h2>'


def _cards(cards: Iterable[str]) -> str:
    return f'<div class="topv-cards">{"".join(cards)}</div>'


def _answer_card(column: Column) -> str:
    label = escape(column.label)
    if column.state == "failed":
        body = f'<p class="topv-problem" role="alert">{escape(column.reason)}</p>'
    else:
        body = f'<p class="topv-answer">{escape(column.text.strip())}{_verdict(column.outcome)}</p>'
        if column.state == "done" and not column.text.strip():
            body = '<p class="topv-answer">(no answer)</p>'
    state = f'<p class="topv-soft">{_STATES[column.state]}</p>' if column.state in _STATES else ""
    return f'<article class="topv-card" aria-label="Answer of {label}"><h3>{label}</h3>{body}{state}</article>'


def _verdict(outcome: Outcome | None) -> str:
    if outcome is None or outcome.result.correct is None:
        return ""
    kind, word = ("right", "✓ right") if outcome.result.correct else ("wrong", "✗ wrong")
    return f' <span class="topv-{kind}">{word}</span>'


def _outcome_card(outcome: Outcome, snapshot: Snapshot) -> str:
    label, many = escape(outcome.result.label), len(snapshot.views) > 1
    parts = [f'<article class="topv-card" aria-label="Savings of {label}"><h3>{label}</h3>']
    parts.append(f'<div class="topv-pictures{" topv-many" if many else ""}">')
    for view, marks in list(zip(snapshot.views, outcome.marks, strict=True))[:_SHOWN_GRIDS]:
        parts += _figures(view, marks, named=many)
    parts.append("</div>")
    if (more := len(snapshot.views) - _SHOWN_GRIDS) > 0:
        parts.append(f'<p class="topv-soft">and {more} more parts of the picture, below</p>')
    parts += [*_bars(outcome.result), "</article>"]
    return "".join(parts)


def _figures(view: GridView, marks: GridMarks, *, named: bool) -> Iterator[str]:
    """The token map of one grid, and its heat map where there is importance."""
    if view.picture is None:
        return
    kept = f"kept {len(marks.kept)} of {view.grid[0] * view.grid[1]} tokens"
    tokens = draw_token_map(view.picture, view.grid, marks.kept, marks.recovered)
    yield figure(
        tokens, f"The {view.name}, {kept}, the others greyed", f"{view.name}: {kept}" if named else kept.capitalize()
    )
    if marks.importance is not None:
        heat = draw_heat_map(view.picture, view.grid, marks.importance)
        yield figure(heat, f"Heat map of the importance of each token of the {view.name}", "Importance")


def _bars(result: MethodResult) -> Sequence[str]:
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
    return ['<div class="topv-bars">', *bars, "</div>"]


def _bar(name: str, share: float, value: str, *, unclear: bool = False) -> str:
    """A share of the unpruned model's: 1 fills the bar. Grey where no difference was measured."""
    known = share == share
    percent = min(100.0, max(0.0, 100 * share)) if known else 0.0
    said = f"{name}: {value}, {100 * share:.0f} % of the unpruned model" if known else f"{name}: not counted"
    kind = " topv-unclear" if unclear else " topv-over" if known and share > 1.005 else ""
    return (
        f'<div class="topv-bar{kind}" role="img" aria-label="{escape(said)}">'
        f'<span>{escape(name)}</span><span class="topv-value">{escape(value)}</span>'
        f'<span class="topv-track"><span style="width: {percent:.1f}%"></span></span></div>'
    )


def _over(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _legend(outcomes: Sequence[Outcome]) -> str:
    parts = ['<span><i class="topv-swatch"></i>kept</span>']
    if any(outcome.marks[0].recovered for outcome in outcomes):
        parts.append('<span><i class="topv-swatch topv-recovered"></i>recovered</span>')
    parts.append('<span><i class="topv-swatch topv-pruned"></i>pruned</span>')
    if any(outcome.marks[0].importance for outcome in outcomes):
        parts.append('<span>least <i class="topv-swatch topv-heat"></i> most important</span>')
    parts.append("<span>bars: what is left; full is the unpruned model</span>")
    if any(outcome.result.prefill for outcome in outcomes):
        parts.append("<span>times: ratio and 95 % interval; grey with ~ where no difference was measured</span>")
    return f'<p class="topv-legend">{"".join(parts)}</p>'


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, optimize=True, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
