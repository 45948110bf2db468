"""The pruning methods, each a dataclass in a file of its own."""

from __future__ import annotations

from .base import TARGETS, Evidence, Method
from .cdpruner import CDPruner
from .divprune import DivPrune
from .facility_location import FacilityLocation
from .fastv import FastV
from .frame_difference import FrameDifference
from .mean_cost import MeanCost
from .pyramiddrop import PyramidDrop
from .random import Random
from .sparsevlm import SparseVLM
from .topv import TopV
from .uniform import Uniform
from .visionzip import VisionZip
from .vtw import VTW

__all__ = [
    "METHODS",
    "TARGETS",
    "VTW",
    "CDPruner",
    "DivPrune",
    "Evidence",
    "FacilityLocation",
    "FastV",
    "FrameDifference",
    "MeanCost",
    "Method",
    "PyramidDrop",
    "Random",
    "SparseVLM",
    "TopV",
    "Uniform",
    "VisionZip",
]

METHODS: dict[str, type[Method]] = {
    "topv": TopV,
    "fastv": FastV,
    "vtw": VTW,
    "random": Random,
    "uniform": Uniform,
    "meancost": MeanCost,
    "facilitylocation": FacilityLocation,
    "framedifference": FrameDifference,
    "divprune": DivPrune,
    "visionzip": VisionZip,
    "cdpruner": CDPruner,
    "pyramiddrop": PyramidDrop,
    "sparsevlm": SparseVLM,
}
"""Every method by the name that the command line and tables use."""
