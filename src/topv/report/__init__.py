"""Showing what pruning did: token maps, heat maps, and the self-contained HTML report."""

from .comparison import Case, Comparison, MethodResult, Summary
from .html import render_html
from .token_map import draw_heat_map, draw_token_map, enlarge, outline_token, seen_image

__all__ = [
    "Case",
    "Comparison",
    "MethodResult",
    "Summary",
    "draw_heat_map",
    "draw_token_map",
    "enlarge",
    "outline_token",
    "render_html",
    "seen_image",
]
