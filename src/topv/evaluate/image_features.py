"""One run of the vision tower for all methods that do not look into it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch

from ..methods import Method

__all__ = ["SharedImageFeatures", "reads_tower"]


def reads_tower(method: Method | None) -> bool:
    """Whether a method has to see the vision tower run."""
    return method is not None and any(name.startswith("encoder_") for name in method.needs)


class SharedImageFeatures:
    """The last image features that a model made, given again when it is asked for the same ones.

    Methods that prune in the decoder differ in nothing before it, and the tower is half of a small model's prefill. The
    features are the very tensors that the tower returned, so answers do not change by a bit.

    Args:
        model: the vision-language model. One that makes its features in another way than a `get_image_features` of the
            model inside makes them anew each time.
    """

    def __init__(self, model: Any) -> None:
        inside = getattr(model, "model", None)
        self._model = inside if hasattr(inside, "get_image_features") else None
        self._asked: tuple[Any, ...] | None = None
        self._features: Any = None

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Share features inside the block."""
        if self._model is None:
            yield
            return
        make = self._model.get_image_features

        # `generate` reads the signature to know what to pass.
        @functools.wraps(make)
        def get_image_features(*args: Any, **kwargs: Any) -> Any:
            asked = (*args, *sorted(kwargs.items()))
            if self._asked is None or not _same(asked, self._asked):
                self._asked, self._features = asked, make(*args, **kwargs)
            return self._features

        self._model.get_image_features = get_image_features
        try:
            yield
        finally:
            del self._model.get_image_features


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
        return one is other or (alike and torch.equal(one, other))
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and not isinstance(one, torch.Tensor) and bool(one == other)
