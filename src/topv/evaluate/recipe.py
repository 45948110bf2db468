"""Recipes for the paper's experiments: data in files, one for each table or figure."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import InputError, unknown_name
from ..methods import Method, TopV
from ..methods.settings import UNPRUNED, build_method, setting_types
from .ablations import sweep

__all__ = ["KINDS", "Arm", "Benchmark", "Checkpoint", "Figure", "Recipe", "StandIn", "load_recipe", "method_text",
           "read_figures", "recipe_names"]  # fmt: skip

KINDS = ("benchmarks", "dialogue", "profile")
"""Scores on benchmarks, answers about one picture, or memory token by token."""


@dataclass(frozen=True)
class Checkpoint:
    """A model of the paper.

    Attributes:
        name: the paper's name of it.
        hub: where its weights are published.
        base: the class of lmms-eval that runs it.
        converted: whether it runs only after `topv convert`.
        visual_flops: the share of visual FLOPs that the paper removes from it.
    """

    name: str
    hub: str
    base: str
    converted: bool
    visual_flops: float


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        title: the paper's name of it.
        task: lmms-eval's name of its task.
        metric: the task's score that stands for it, or None for the first that the task has.
    """

    title: str
    task: str
    metric: str | None


@dataclass(frozen=True)
class Arm:
    """What is compared.

    Attributes:
        label: its name in the tables.
        method: the method, without its budget; None for the unpruned model.
        cell: the two settings by name that it stands for in a heat map, or None.
    """

    label: str
    method: Method | None
    cell: Mapping[str, float] | None = None


@dataclass(frozen=True)
class StandIn:
    """What runs where the checkpoints are not there.

    Attributes:
        model: a bundled model.
        split: of the bundled scenes.
        tasks: bundled tasks, or None for all.
        frames: of the clips that are asked about; 1 for pictures.
    """

    model: str
    split: str
    tasks: tuple[str, ...] | None = None
    frames: int = 1


@dataclass(frozen=True)
class Figure:
    """A published figure.

    Attributes:
        model: the paper's name of the model.
        method: the arm's label.
        quantity: a benchmark's title, or what else was measured, with its unit.
        value: as printed.
        where: the table or section.
    """

    model: str
    method: str
    quantity: str
    value: float | str
    where: str


@dataclass(frozen=True)
class Recipe:
    """One experiment of the paper.

    Attributes:
        name: its name on the command line.
        title: what it shows.
        source: the table, figure or section.
        kind: one of `KINDS`.
        notes: what a reader must know to compare.
        models: the checkpoints.
        benchmarks: the benchmarks, for the kind "benchmarks".
        arms: what is compared.
        bundled: what stands in.
        figures: the published figures.
        prompt: what is asked, for the kind "dialogue".
    """

    name: str
    title: str
    source: str
    kind: str
    notes: tuple[str, ...]
    models: tuple[Checkpoint, ...]
    benchmarks: tuple[Benchmark, ...]
    arms: tuple[Arm, ...]
    bundled: StandIn
    figures: tuple[Figure, ...]
    prompt: str | None = None


def recipe_names() -> tuple[str, ...]:
    """The names of all recipes."""
    files = resources.files(__package__).joinpath("recipes").iterdir()
    return tuple(sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json")))


def load_recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        InputError: for an unknown name, offering the nearest.
    """
    if name not in recipe_names():
        raise InputError(str(unknown_name("recipe", name, recipe_names())))
    data = json.loads(resources.files(__package__).joinpath("recipes", f"{name}.json").read_text(encoding="utf-8"))
    bundled = data["bundled"]
    return Recipe(
        name=name,
        title=data["title"],
        source=data["source"],
        kind=data["kind"],
        notes=tuple(data["notes"]),
        models=tuple(Checkpoint(**model) for model in data["models"]),
        benchmarks=tuple(Benchmark(**benchmark) for benchmark in data["benchmarks"]),
        arms=tuple(arm for entry in data["arms"] for arm in _arms(entry)),
        bundled=StandIn(**{**bundled, "tasks": tuple(bundled["tasks"]) if "tasks" in bundled else None}),
        figures=tuple(Figure(**figure) for figure in data["figures"]),
        prompt=data.get("prompt"),
    )


def _arms(entry: Mapping[str, Any]) -> list[Arm]:
    """An entry of a recipe's "arms": one method, a sweep of `topv ablate`, or a grid over two settings."""
    base = TopV.paper()
    if "sweep" in entry:
        return [Arm(label, method) for label, method in sweep(entry["sweep"], base)]
    if "grid" in entry:
        names, values = zip(*entry["grid"].items(), strict=True)
        cells = [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values)]
        return [Arm(_shown(cell), replace(base, **cell), cell) for cell in cells]
    name = entry["method"]
    return [Arm(entry["label"], base if name == "paper" else build_method(name, {}))]


def _shown(cell: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in cell.items())


def read_figures(path: Path) -> tuple[Figure, ...]:
    """Published figures from a file: a JSON list of objects with the attributes of `Figure`.

    Raises:
        InputError: when the file cannot be read, or holds something else.
    """
    names = [field.name for field in fields(Figure)]
    expected = f"Expected a JSON list of objects with {', '.join(names)}."
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"published figures in {str(path)!r} cannot be read: {error}. {expected}") from error
    found = []
    for entry in entries if isinstance(entries, Sequence) and not isinstance(entries, str) else [entries]:
        if not isinstance(entry, dict) or sorted(entry) != sorted(names):
            raise InputError(f"{str(path)!r} holds {str(entry)[:80]!r}, no published figure. {expected}")
        found.append(Figure(**entry))
    return tuple(found)


def method_text(method: Method | None, *, budget: Mapping[str, Any] | None = None) -> tuple[str, dict[str, str]]:
    """A method as commands take it: its name, and as text the settings that are not its class's own.

    Args:
        method: the method, whose own budget is left out; None for the unpruned model.
        budget: the budget to name in its place, where the method takes one.
    """
    if method is None:
        return UNPRUNED, {}
    kind = type(method)
    own = kind()
    known = setting_types(kind)
    settings = {
        name: getattr(method, name)
        for name in known
        if name not in ("keep", "visual_flops", "kv_share") and getattr(method, name) != getattr(own, name)
    }
    if "keep" in known:
        settings.update(budget or {})
    return method.name, {name: str(value) for name, value in settings.items()}
