"""The pruning methods, each a dataclass in a file of its own."""

from __future__ import annotations

from .base import TARGETS, Evidence, Method
from .fastv import FastV
from .mean_cost import MeanCost
from .random import Random
from .topv import TopV
from .uniform import Uniform
from .vtw import VTW

__all__ = [
    "METHODS",
    "TARGETS",
    "VTW",
    "Evidence",
    "FastV",
    "MeanCost",
    "Method",
    "Random",
    "TopV",
    "Uniform",
]

METHODS: dict[str, type[Method]] = {
    "topv": TopV,
    "fastv": FastV,
    "vtw": VTW,
    "random": Random,
    "uniform": Uniform,
    "meancost": MeanCost,
}
"""Every method by the name that the command line and tables use."""
