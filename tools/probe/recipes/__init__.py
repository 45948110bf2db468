"""The recipes, by `config.model_type`; each module is imported when one of its recipes is first asked for."""

from __future__ import annotations

import importlib
from functools import lru_cache

from ..recipe import Recipe

__all__ = ["RECIPE_MODULES", "recipes"]

RECIPE_MODULES = (
    "fixed_grids",
    "tiles",
    "local_views",
    "qwen",
    "minicpm",
    "glm",
    "hunyuan",
    "discrete",
    "windows",
    "hybrids",
    "queries",
    "others",
)


@lru_cache
def recipes() -> dict[str, Recipe]:
    """Every recipe by its `model_type`."""
    found: dict[str, Recipe] = {}
    for name in RECIPE_MODULES:
        module = importlib.import_module(f"{__name__}.{name}")
        for recipe in module.RECIPES:
            if recipe.model_type in found:
                raise ValueError(f"Two recipes build {recipe.model_type!r}; keep one.")
            found[recipe.model_type] = recipe
    return found
