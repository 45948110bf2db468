"""The pruning methods, each a dataclass in a file of its own.

A method is there because its file is: `METHODS` and this package's names are read from the files, and a file is
imported when its method is first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..discovery import MethodFile, find_methods
from .base import TARGETS as TARGETS
from .base import Evidence as Evidence
from .base import Method as Method

if TYPE_CHECKING:
    # For type checkers, which do not run this module: of a method that is not named here they know nothing.
    from .cdpruner import CDPruner as CDPruner
    from .divprune import DivPrune as DivPrune
    from .facility_location import FacilityLocation as FacilityLocation
    from .fastv import FastV as FastV
    from .frame_difference import FrameDifference as FrameDifference
    from .mean_cost import MeanCost as MeanCost
    from .pyramiddrop import PyramidDrop as PyramidDrop
    from .random import Random as Random
    from .sparsevlm import SparseVLM as SparseVLM
    from .topv import TopV as TopV
    from .uniform import Uniform as Uniform
    from .visionzip import VisionZip as VisionZip
    from .vtw import VTW as VTW


class _Methods(Mapping[str, type[Method]]):
    """The methods' classes by the name that the command line and tables use; each is imported when it is read."""

    def __getitem__(self, name: str) -> type[Method]:
        return _load(_by_name()[name])

    def __contains__(self, name: object) -> bool:
        return name in _by_name()

    def __iter__(self) -> Iterator[str]:
        return iter(_by_name())

    def __len__(self) -> int:
        return len(_by_name())

    def __repr__(self) -> str:
        return f"METHODS({', '.join(self)})"


METHODS: Mapping[str, type[Method]] = _Methods()
"""Every method by the name that the command line and tables use."""


def _by_name() -> dict[str, MethodFile]:
    return {found.name: found for found in find_methods().values()}


def _load(found: MethodFile) -> type[Method]:
    """The class of a method.

    Raises:
        ImportError: when its file cannot be imported, naming it.
    """
    try:
        method: type[Method] = getattr(importlib.import_module(f".{found.file.stem}", __name__), found.title)
    except Exception as error:
        raise ImportError(
            f"the method {found.title} cannot be loaded: importing {found.file} failed with {type(error).__name__}: "
            f"{error}. Correct or remove that file.",
            name=found.title,
            path=str(found.file),
        ) from error
    return method


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted({"METHODS", "TARGETS", "Evidence", "Method", *find_methods()})
    # A method's name begins with a capital; for any other no file need be read.
    methods = find_methods() if name[:1].isupper() else {}
    if name in methods:
        return _load(methods[name])
    # To the message that is shown Python adds the nearest name of `dir`.
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *find_methods()})
