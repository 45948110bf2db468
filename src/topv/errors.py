"""The exceptions topv raises, so that callers can tell its refusals from other failures."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["CacheError", "EvidenceError", "InputError", "LayoutError", "TopVError", "UnsupportedError", "unknown_name"]


class TopVError(Exception):
    """Base class of every error that topv raises on purpose."""


class UnsupportedError(TopVError, ValueError):
    """Pruning cannot apply to this model, option or call; the message says why and what to do."""


class LayoutError(TopVError, ValueError):
    """The prompt's visual tokens do not form the grids that the model's images should fill."""


class CacheError(TopVError, ValueError):
    """A KV cache no longer matches the pruning that was recorded on it."""


class EvidenceError(TopVError, ValueError):
    """The hidden states that a method should judge are not finite numbers."""


class InputError(TopVError, ValueError):
    """Something the user named or passed (a file, an image, a model, a setting) cannot be used."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """A `ValueError` for an unknown `name` that offers the nearest names and lists all `known` ones.

    >>> print(unknown_name("method", "topw", ["topv", "fastv"]))
    unknown method 'topw'. Did you mean 'topv'? Known methods: fastv, topv.
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name).lower(), names, n=2, cutoff=0.5)
    hint = f" Did you mean {', '.join(repr(n) for n in near)}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}.{hint} Known {kind}s: {', '.join(names)}.")
