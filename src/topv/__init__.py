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
    # For type checkers, which do not run this module: of a method that is not named here they know nothing.
    from . import budget as budget
    from . import transport as transport
    from .errors import CacheError as CacheError
    from .errors import EvidenceError as EvidenceError
    from .errors import LayoutError as LayoutError
    from .errors import TopVError as TopVError
    from .errors import UnsupportedError as UnsupportedError
    from .methods import VTW as VTW
    from .methods import CDPruner as CDPruner
    from .methods import DivPrune as DivPrune
    from .methods import FacilityLocation as FacilityLocation
    from .methods import FastV as FastV
    from .methods import FrameDifference as FrameDifference
    from .methods import MeanCost as MeanCost
    from .methods import Method as Method
    from .methods import PyramidDrop as PyramidDrop
    from .methods import Random as Random
    from .methods import SparseVLM as SparseVLM
    from .methods import TopV as TopV
    from .methods import Uniform as Uniform
    from .methods import VisionZip as VisionZip
    from .mini import load_mini as load_mini
    from .runtime import Pruning as Pruning
    from .runtime import Report as Report
    from .runtime import attach as attach
    from .runtime import prune as prune

__version__ = "0.1.0"

_HOMES = {
    "CacheError": "errors",
    "EvidenceError": "errors",
    "LayoutError": "errors",
    "Method": "methods",
    "Pruning": "runtime",
    "Report": "runtime",
    "TopVError": "errors",
    "UnsupportedError": "errors",
    "attach": "runtime",
    "load_mini": "mini",
    "prune": "runtime",
}
"""Where the names are that are no methods."""

_MODULES = ("budget", "transport")


def __getattr__(name: str) -> Any:
    # Names load when first used, so that `import topv` and `topv --help` need neither torch nor transformers.
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    if name == "__all__":
        return sorted((*_HOMES, *_MODULES, *_methods()))
    # A method's name begins with a capital; for any other no file need be read.
    if name[:1].isupper() and name in _methods():
        return getattr(importlib.import_module(".methods", __name__), name)
    # To the message that is shown Python adds the nearest name of `dir`.
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})


def _methods() -> tuple[str, ...]:
    from .discovery import find_methods

    return tuple(find_methods())
