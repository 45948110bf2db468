"""topv: make vision-language models fast and small at inference by dropping the visual tokens they do not need.

import topv
with topv.prune(model, topv.TopV(keep=0.5)) as pruning:
    ids = model.generate(**inputs)
print(pruning.report())
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import budget, transport
    from .errors import CacheError, EvidenceError, LayoutError, TopVError, UnsupportedError
    from .methods import (
        VTW,
        CDPruner,
        DivPrune,
        FacilityLocation,
        FastV,
        FrameDifference,
        MeanCost,
        Method,
        PyramidDrop,
        Random,
        SparseVLM,
        TopV,
        Uniform,
        VisionZip,
    )
    from .mini import load_mini
    from .runtime import Pruning, Report, attach, prune

__version__ = "0.1.0"

_HOMES = {
    "CDPruner": "methods",
    "CacheError": "errors",
    "DivPrune": "methods",
    "EvidenceError": "errors",
    "FacilityLocation": "methods",
    "FastV": "methods",
    "FrameDifference": "methods",
    "LayoutError": "errors",
    "MeanCost": "methods",
    "Method": "methods",
    "Pruning": "runtime",
    "PyramidDrop": "methods",
    "Random": "methods",
    "Report": "runtime",
    "SparseVLM": "methods",
    "TopV": "methods",
    "TopVError": "errors",
    "Uniform": "methods",
    "UnsupportedError": "errors",
    "VTW": "methods",
    "VisionZip": "methods",
    "attach": "runtime",
    "load_mini": "mini",
    "prune": "runtime",
}
_MODULES = ("budget", "transport")

__all__ = [
    "VTW",
    "CDPruner",
    "CacheError",
    "DivPrune",
    "EvidenceError",
    "FacilityLocation",
    "FastV",
    "FrameDifference",
    "LayoutError",
    "MeanCost",
    "Method",
    "Pruning",
    "PyramidDrop",
    "Random",
    "Report",
    "SparseVLM",
    "TopV",
    "TopVError",
    "Uniform",
    "UnsupportedError",
    "VisionZip",
    "attach",
    "budget",
    "load_mini",
    "prune",
    "transport",
]


def __getattr__(name: str) -> Any:
    # Names load when first used, so that `import topv` and `topv --help` need neither torch nor transformers.
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
