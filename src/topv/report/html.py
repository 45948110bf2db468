"""The report as one HTML file that needs nothing else: images inside, no script, no request."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from .comparison import Case, Comparison, MethodResult
from .text import format_kept, format_kv, format_latency, format_share, format_time
from .token_map import draw_heat_map, draw_token_map, enlarge

__all__ = ["render_html", "write_html"]

_TEMPLATE = "report.html.jinja"


def render_html(comparison: Comparison) -> str:
    """The whole report as HTML text. Everything that came from outside is escaped."""
    environment = Environment(
        loader=PackageLoader("topv.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(latency=format_latency, share=format_share)
    environment.globals.update(format_kept=format_kept, format_kv=format_kv, format_time=format_time)
    return environment.get_template(_TEMPLATE).render(
        comparison=comparison,
        summaries=comparison.summaries,
        cases=[(case, _inline(_seen(case)), _figures(case)) for case in comparison.cases],
        pooled_coverage=max((row.prefill.coverage for row in comparison.summaries if row.prefill), default=0.0),
        any_recovered=any(result.recovered for case in comparison.cases for result in case.results),
        any_importance=any(result.importance for case in comparison.cases for result in case.results),
        any_asked=any(summary.asked for summary in comparison.summaries),
        any_foreground=any(r.foreground_kept is not None for case in comparison.cases for r in case.results),
    )


def write_html(comparison: Comparison, path: Path) -> None:
    """Write the report to `path`, making its directory when needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_html(comparison), encoding="utf-8")


def _seen(case: Case) -> Image.Image:
    return enlarge(case.seen, case.grid)


def _figures(case: Case) -> list[tuple[MethodResult, Markup, Markup | None]]:
    """For each method its result, its token map, and its heat map where it has importance."""
    image = _seen(case)
    figures = []
    for result in case.results:
        tokens = draw_token_map(image, case.grid, result.kept, result.recovered)
        heat = None if result.importance is None else draw_heat_map(image, case.grid, result.importance)
        figures.append((result, _inline(tokens), None if heat is None else _inline(heat)))
    return figures


def _inline(image: Image.Image) -> Markup:
    """The image as a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, optimize=True, subsampling=0)
    return Markup("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))
