"""What the hooks on a decoder ask of the way in which it runs."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

__all__ = ["Driver", "Reader"]


class Reader(Protocol):
    """Takes what the taps on a layer see."""

    def read_target(self, states: torch.Tensor, *, copy: bool) -> None:
        """Take the visual tokens at the method's target position, from (B, T, D)."""


class Driver(Protocol):
    """One way of running a decoder: an eager forward, a decoding step or a whole prefill that a compiler traces."""

    def concerns(self, index: int) -> bool:
        """Whether `before_layer` has anything to do in decoder layer `index`."""

    def before_layer(self, index: int, arguments: dict[str, Any]) -> dict[str, Any]:
        """What changes in the arguments of decoder layer `index`, by topv's words for them."""

    def after_layer(self, index: int, output: Any) -> Any:
        """What decoder layer `index` returns instead of `output`, or None for `output` itself."""

    def reader(self, stage: int) -> Reader | None:
        """Who reads in the layer before the pruning layer that comes behind `stage` others; None for nobody."""

    def leave(self, module: nn.Module, inputs: dict[str, Any], output: Any) -> Any:
        """What the decoder, called with `inputs`, returns instead of `output`, or None for `output` itself."""
