"""Optimal transport between visual tokens: cost, Sinkhorn, the readings of importance, and the choice of a set.

Pure functions on tensors: nothing here knows of models. They run in float32 (``solve`` keeps float64)
whatever the autocast state, are not differentiated, do not make the host wait for the device, and treat each
grid of a batch as if it were alone. Values are not looked at; :func:`check_finite` does that where waiting is
acceptable."""

from ._checks import check_finite
from .cost import Scale, central_distance, cost_matrix, feature_distance, mean_cost, spatial_distance
from .coverage import coverage
from .importance import (
    Reading,
    importance,
    relaxed_row_sum,
    row_sum,
    source_potential,
    standardise,
    subtract_central,
)
from .sinkhorn import TransportPlan, solve

__all__ = [
    "Reading",
    "Scale",
    "TransportPlan",
    "central_distance",
    "check_finite",
    "cost_matrix",
    "coverage",
    "feature_distance",
    "importance",
    "mean_cost",
    "relaxed_row_sum",
    "row_sum",
    "solve",
    "source_potential",
    "spatial_distance",
    "standardise",
    "subtract_central",
]
