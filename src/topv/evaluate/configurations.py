"""Methods at equal savings: each method's setting that removes a wanted share of visual FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from ..methods import VTW, Method, TopV
from ..models import family_of
from ..runtime.targets import kept_counts, layer_for_reduction
from ..transport import Reading

__all__ = ["Configuration", "at_equal_reductions", "readings"]


@dataclass(frozen=True)
class Configuration:
    """A method, set to remove a share of visual FLOPs.

    Attributes:
        label: the method's name in tables.
        target: the wanted share, or None for the unpruned model.
        method: the method with its setting, or None for the unpruned model.
    """

    label: str
    target: float | None
    method: Method | None

    @property
    def key(self) -> str:
        """A name that tells configurations apart."""
        return self.label if self.target is None else f"{self.label}@{self.target:g}"


def at_equal_reductions(
    model: Any, methods: Sequence[tuple[str, Method]], reductions: Sequence[float], *, grids: Sequence[int]
) -> list[Configuration]:
    """The unpruned model, and every method at every reduction of visual FLOPs.

    Args:
        model: the vision-language model.
        methods: labels and methods; their own budget (for VTW, `layer`) is replaced.
        reductions: shares in (0, 1).
        grids: visual tokens in each grid of one prompt.

    Raises:
        InputError: when a reduction cannot be reached.
        UnsupportedError: when the model's FLOPs cannot be counted.
    """
    family = family_of(model)
    configurations = [Configuration("unpruned", None, None)]
    for reduction in reductions:
        for label, method in methods:
            if isinstance(method, VTW):
                set_to: Method = replace(method, layer=layer_for_reduction(family, sum(grids), reduction))
            else:
                set_to = method.with_budget(visual_flops=reduction)
                # Before the first question rather than at it. How grids make up images is not known here.
                sizes = grids if method.budget == "grid" else [sum(grids)]
                kept_counts(family, set_to, set_to.pruning_layers(len(family.layers)), sizes, sum(grids))
            configurations.append(Configuration(label, reduction, set_to))
    return configurations


def readings(methods: Sequence[tuple[str, Method]]) -> list[tuple[str, Method]]:
    """`methods`, with TopV's other readings of importance beside each TopV."""
    expanded: list[tuple[str, Method]] = []
    for label, method in methods:
        expanded.append((label, method))
        if isinstance(method, TopV):
            for reading in get_args(Reading):
                if reading != method.importance:
                    expanded.append((f"{label} ({reading})", replace(method, importance=reading)))
    return expanded
