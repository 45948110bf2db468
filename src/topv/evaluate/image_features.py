"""One run of the vision tower for all methods that are asked about the same pictures."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedError
from ..methods import Method
from ..models import family_of

__all__ = ["SharedImageFeatures", "reads_tower"]


def reads_tower(method: Method | None) -> bool:
    """Whether a method has to see the vision tower's last block run."""
    return method is not None and any(name.startswith("encoder_") for name in method.needs)


class SharedImageFeatures:
    """The last image features that a model made, given again when it is asked for the same ones.

    Methods differ in nothing before the place where they read, and the tower is half of a small model's prefill. All
    share its blocks before the one whose output becomes visual tokens; those that do not read that one share it too.
    What is given again are the very tensors that the tower made, so answers do not change by a bit.

    Args:
        model: the vision-language model. One that makes its features in another way than a `get_image_features` of the
            model inside, or whose tower has no one last block, makes them anew each time.
    """

    def __init__(self, model: Any) -> None:
        inside: Any = getattr(model, "model", None)
        self._features = []
        if hasattr(inside, "get_image_features"):
            self._features = [(inside, "get_image_features", _Remembered(inside.get_image_features))]
        self._blocks = [(block, "forward", _Remembered(block.forward)) for block in _early_blocks(model)]

    @contextlib.contextmanager
    def used(self, method: Method | None) -> Iterator[None]:
        """Share what `method` allows inside the block."""
        shared = self._blocks if reads_tower(method) else self._blocks + self._features
        for module, name, remembered in shared:
            setattr(module, name, remembered.function)
        try:
            yield
        finally:
            for module, name, _ in shared:
                delattr(module, name)


class _Remembered:
    """A function that gives its last result again for the same arguments."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._asked: tuple[Any, ...] | None = None
        self._made: Any = None

        # `generate` reads the signature to know what to pass.
        @functools.wraps(make)
        def function(*args: Any, **kwargs: Any) -> Any:
            asked = (*args, *sorted(kwargs.items()))
            if self._asked is None or not _same(asked, self._asked):
                self._asked, self._made = asked, make(*args, **kwargs)
            return self._made

        self.function = function


def _early_blocks(model: Any) -> list[nn.Module]:
    """The blocks of the vision tower before the one whose output becomes visual tokens."""
    try:
        last = family_of(model).tower_block()
    except UnsupportedError:
        return []
    stacks = (list(module) for module in model.modules() if isinstance(module, nn.ModuleList))
    return next((stack[: stack.index(last)] for stack in stacks if any(block is last for block in stack)), [])


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
        return one is other or (alike and torch.equal(one, other))
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and not isinstance(one, torch.Tensor) and bool(one == other)
