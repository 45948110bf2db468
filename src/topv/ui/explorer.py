"""Looking at one token: its place on the picture, and its row and column of the contribution matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..ask.contribution import MAX_TOKENS
from ..ask.views import GridView
from ..report import draw_heat_map, draw_token_map, outline_token
from .comparing import Outcome
from .markup import Figure, render

__all__ = ["contribution_panel", "place_of", "token_grid"]

_MOST = 5


def token_grid(view: GridView, outcome: Outcome, number: int) -> str:
    """The picture of one grid with its tokens as cells to click, or to go to with the arrow keys.

    Args:
        view: what the grid shows.
        outcome: the method's outcome.
        number: the grid's number among the prompt's.
    """
    if view.picture is None:
        return _note("The tokens of this model have no place in the picture that could be shown.")
    rows, columns = view.grid
    marks = outcome.marks[number]
    kept, recovered = set(marks.kept), set(marks.recovered)
    cells = []
    for cell in range(rows * columns):
        state = "recovered" if cell in recovered else "kept" if cell in kept else "pruned"
        cells.append((cell, f"{place_of(cell, columns)}, {state}"))
    label = (
        f"Visual tokens of the {view.name}, {rows} rows and {columns} columns. Arrow keys move, Enter looks at a token."
    )
    figure = Figure.of(draw_token_map(view.picture, view.grid, kept, recovered), "")
    return render("token_grid", figure, label, rows, columns, cells)


class _Half(NamedTuple):
    title: str
    figure: Figure
    most: str


def contribution_panel(view: GridView, outcome: Outcome, number: int, cell: int | None) -> str:
    """A token's row and column of the contribution matrix as heat maps, with the largest shares in words.

    Args:
        view: what the grid shows.
        outcome: the method's outcome.
        number: the grid's number among the prompt's.
        cell: the token, or None when none is chosen.
    """
    rows, columns = view.grid
    tokens = rows * columns
    contribution = outcome.contributions.get(number)
    if contribution is None:
        if outcome.contributions or tokens > MAX_TOKENS:
            return _note(f"This grid of {tokens:,} tokens is too large to keep its contribution matrix for.")
        return _note(
            f"{outcome.result.label} solved no transport problem, so there is no contribution matrix. topv does, where "
            "it prunes."
        )
    if cell is None or not 0 <= cell < tokens or view.picture is None:
        return _note("Click a token on the picture, or go to it with the arrow keys and press Enter.")
    place = place_of(cell, columns)
    state = "kept" if cell in outcome.marks[number].kept else "pruned"
    surplus = 100 * (contribution.demand(cell) - 1)
    amount = f"{abs(surplus):.2f} % {'more' if surplus >= 0 else 'less'} than the even share"
    about = f"Token at {place}: {state}. In all it contributes {amount}{_rank(outcome, number, cell)}."
    parts = (
        ("Which targets it serves", "its row", contribution.serves(cell), f"{place} contributes to"),
        ("Which sources serve it", "its column", contribution.served_by(cell), f"contribute to {place}"),
    )
    halves = []
    for title, part, shares, verb in parts:
        heat = outline_token(draw_heat_map(view.picture, view.grid, shares), view.grid, cell)
        most = _largest(shares, columns)
        alternative = f"Heat map over the {view.name} of how much tokens {verb}; most: {most}"
        halves.append(_Half(title, Figure.of(heat, alternative, f"{part} of the contribution matrix"), most))
    return render("contribution", about, halves)


def place_of(cell: int, columns: int) -> str:
    """A cell in words, counted from 1.

    >>> place_of(13, 12)
    'row 2, column 2'
    """
    row, column = divmod(cell, columns)
    return f"row {row + 1}, column {column + 1}"


def _rank(outcome: Outcome, number: int, cell: int) -> str:
    importance = outcome.marks[number].importance
    if importance is None:
        return ""
    rank = 1 + sum(value > importance[cell] for value in importance)
    return f", and its importance ranks {rank} of {len(importance)}"


def _largest(shares: Sequence[float], columns: int) -> str:
    order = sorted(range(len(shares)), key=lambda cell: -shares[cell])[:_MOST]
    return "; ".join(f"{place_of(cell, columns)} ({100 * shares[cell]:.1f} %)" for cell in order)


def _note(text: str) -> str:
    return render("note", text)
