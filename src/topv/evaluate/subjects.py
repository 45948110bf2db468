"""How a model is shown the bundled scenes."""

from __future__ import annotations

from typing import Any

from ..models import family_of
from ..scenes import View, read_view
from .examples import Example
from .runner import inputs_of

__all__ = ["grids_of", "view_of"]


def view_of(model: Any, processor: Any) -> View | None:
    """How a model is shown a scene, if it is one that this package trains; else None."""
    try:
        view = read_view(model.config, processor)
    except (AttributeError, ValueError):
        return None
    return view if _draws(view) else None


def _draws(view: View) -> bool:
    # Scenes of a few hundred pixels are drawn; a checkpoint of the same class may ask for thousands.
    return 96 <= view.geometry.size <= 448


def grids_of(model: Any, processor: Any, example: Example) -> list[int]:
    """How many visual tokens each grid of an example's prompt has."""
    family = family_of(model)
    inputs = dict(inputs_of(processor, [example]))
    placeholders = family.placeholders(inputs["input_ids"], inputs).cpu()
    return [grid.tokens for grid in family.layout(placeholders, inputs).grids]
