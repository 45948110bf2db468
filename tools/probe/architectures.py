"""Probing the architectures of transformers by name: how well topv prunes each, or why it cannot."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from topv.errors import UnsupportedError, unknown_name
from topv.models.matrix import Outcome
from topv.models.reasons import REASONS, reason_against
from topv.models.registry import family_of

from .probe import probe
from .recipes import recipes

__all__ = ["architectures", "probe_all", "probe_architecture"]


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
