"""The model that the page asks: not there while it loads."""

from __future__ import annotations

import threading
import time

from ..errors import InputError
from .comparing import Comparer

__all__ = ["ModelSlot"]


class ModelSlot:
    """A place for one model, which may still be loading.

    Args:
        name: what the user calls the model.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._since = time.monotonic()
        self._settled = threading.Event()
        self._comparer: Comparer | None = None

    def fill(self, comparer: Comparer) -> None:
        """The model is there."""
        self._comparer = comparer
        self._settled.set()

    def give_up(self) -> None:
        """The model will not come."""
        self._settled.set()

    def wait(self, seconds: float) -> bool:
        """Wait until the model is there or will not come, but no longer than this; whether that is so."""
        return self._settled.wait(seconds)

    @property
    def comparer(self) -> Comparer:
        """What asks the model.

        Raises:
            InputError: when it is not there.
        """
        if self._comparer is None:
            raise InputError(f"the model {self.name} could not be loaded. The terminal where topv ui runs says why.")
        return self._comparer

    def status(self) -> str:
        """How it stands with the model, in words."""
        if not self._settled.is_set():
            return f"Loading the model {self.name}: {time.monotonic() - self._since:.0f} s"
        return f"The model {self.name} is " + ("ready" if self._comparer is not None else "not there")
