"""The matrix of architectures: which topv prunes exactly, and why the others cannot be pruned. Made by running them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UnsupportedError, unknown_name
from ..models.reasons import REASONS, reason_against
from ..models.registry import FAMILIES, family_of
from .probe import COLUMNS, Outcome, probe
from .recipes import recipes

__all__ = [
    "MATRIX_FILE",
    "architectures",
    "load_matrix",
    "markdown",
    "probe_all",
    "probe_architecture",
    "save_matrix",
    "summary",
]

MATRIX_FILE = Path(__file__).with_name("matrix.json")
"""The matrix that is shipped."""

_HEADINGS = {
    "eager": "eager",
    "sdpa": "sdpa",
    "flex": "flex",
    "generate": "generate",
    "batch": "padded batch",
    "images": "several images",
    "video": "video",
}


def architectures() -> list[str]:
    """The keys of transformers' image-text-to-text mapping, sorted."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def probe_architecture(model_type: str) -> Outcome:
    """Probe one architecture, or find out why it cannot be pruned.

    Raises:
        ValueError: when transformers knows no image-text-to-text architecture of that name.
    """
    known = architectures()
    if model_type not in known:
        raise ValueError(unknown_name("architecture", model_type, known))
    recipe = recipes().get(model_type)
    if recipe is None:
        return Outcome(model_type, reason=_reason_without_recipe(model_type))
    try:
        return probe(recipe)
    except ImportError:
        if recipe.needs is None:
            raise
        return Outcome(model_type, reason=f"missing package: {REASONS['missing package']} ({recipe.needs})")


def _reason_without_recipe(model_type: str) -> str:
    """Why an architecture has nothing to prune, found out on the class and on a model without storage."""
    import torch
    import transformers
    from transformers import GenerationMixin
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    names = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type]
    kind: Any = getattr(transformers, names if isinstance(names, str) else names[0])
    if not issubclass(kind, GenerationMixin):
        return _explained("not generative")
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = kind(kind.config_class())
    reason = reason_against(model)
    if reason is None:
        try:
            family_of(model)
        except UnsupportedError:
            reason = "no visual tokens"
    return "not probed: no recipe builds it yet" if reason is None else _explained(reason)


def _explained(reason: str) -> str:
    return f"{reason}: {REASONS[reason]}"


def probe_all(names: Iterable[str], progress: Callable[[Outcome], None] | None = None) -> list[Outcome]:
    """Probe architectures one after the other; `progress` is told of each."""
    outcomes = []
    for name in names:
        outcomes.append(probe_architecture(name))
        if progress is not None:
            progress(outcomes[-1])
    return outcomes


def save_matrix(outcomes: Sequence[Outcome], file: Path, versions: dict[str, str]) -> None:
    """Write outcomes as JSON."""
    rows = [
        {"model_type": o.model_type, "family": o.family, "cells": o.cells, "notes": o.notes, "reason": o.reason}
        for o in sorted(outcomes, key=lambda o: o.model_type)
    ]
    file.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")


def load_matrix(file: Path = MATRIX_FILE) -> tuple[list[Outcome], dict[str, str]]:
    """The outcomes in a file, and the versions they were found with."""
    held = json.loads(file.read_text())
    return [Outcome(**row) for row in held["rows"]], held["versions"]


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many architectures are exact, of how many that have visual tokens in a causal decoder."""

    def because(*reasons: str) -> list[Outcome]:
        return [o for o in outcomes if o.reason is not None and o.reason.startswith(reasons)]

    missing, failing = because("missing package"), because("fails unpruned")
    concerned = [o for o in outcomes if o.reason is None] + because("window", "hidden prefix", "not probed")
    exact = [o for o in concerned if o.exact]
    others = len(outcomes) - len(concerned) - len(missing) - len(failing)
    failed = f" {', '.join(o.model_type for o in failing)} cannot run at all in this transformers." if failing else ""
    return (
        f"{len(exact)} of the {len(concerned)} architectures that can be built here and whose visual tokens enter a "
        f"causal decoder are exact in forward and generation ({len(exact) / max(1, len(concerned)):.0%}). "
        f"{len(missing)} more need a package that is not installed, {others} have nothing to prune there.{failed}"
    )


def markdown(outcomes: Sequence[Outcome], versions: dict[str, str], command: str) -> str:
    """The matrix as a page."""
    lines = [
        "# Supported models",
        "",
        f"Made by `{command}` with {', '.join(f'{name} {version}' for name, version in versions.items())}: a tiny",
        "random model of every image-text-to-text architecture of transformers, pruned and compared with the unpruned",
        "model that hides the same tokens (error at most 1e-5, in float32; a padded batch and its samples alone 1e-4).",
        "",
        summary(outcomes),
        "",
        "`-`: does not apply, or transformers does not offer it. *generic*: no code of its own was needed; its image",
        "tokens are then pruned without knowledge of their places, so methods that use places refuse.",
        "",
        "| architecture | family | " + " | ".join(_HEADINGS[c] for c in COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    served = [o for o in outcomes if o.reason is None]
    for o in sorted(served, key=lambda o: (o.model_type not in FAMILIES, o.model_type)):
        name = f"**{o.model_type}**" if o.model_type in FAMILIES else o.model_type
        lines.append(f"| {name} | {o.family} | " + " | ".join(o.cells.get(c, "") for c in COLUMNS) + " |")
    failing = [(o, c) for o in served for c in COLUMNS if o.cells.get(c) == "no"]
    if failing:
        lines += ["", "## What is not exact", ""]
        lines += [f"- {o.model_type}, {_HEADINGS[c]}: {o.notes[c]}" for o, c in failing]
    lines += ["", "## What cannot be pruned, and why", ""]
    lines += [f"- {o.model_type}: {o.reason}" for o in outcomes if o.reason is not None]
    return "\n".join(lines) + "\n"
