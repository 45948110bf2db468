"""A comparison's cases with what they were made with."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from ..measure import describe_environment
from ..models import family_of
from ..report import Case, Comparison
from ..statistics import median_interval
from .case import TimingPlan

__all__ = ["comparison_of"]


def comparison_of(model: Any, name: str, command: str, cases: Sequence[Case], plan: TimingPlan | None) -> Comparison:
    """The comparison that a report shows.

    Args:
        model: the vision-language model.
        name: what the user calls it.
        command: what made the comparison, as the user gave it.
        cases: what was found.
        plan: how times were measured, or None when they were not.
    """
    environment = describe_environment()
    device = next(model.parameters()).device
    timing = None
    if plan is not None:
        _, coverage = median_interval(plan.repetitions)
        timing = {**vars(plan), "coverage": coverage}
    return Comparison(
        model={
            "name": name,
            "class": type(model).__name__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": model.config._attn_implementation,
            "layers": len(family_of(model).layers),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        environment=environment.to_dict(),
        device=environment.device_name(device),
        command=command,
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        timing=timing,
        cases=tuple(cases),
    )
