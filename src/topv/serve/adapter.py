"""What pruning must know of a family of vLLM's models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedError
from ..layout import Picture

__all__ = ["Adapter", "cut_rows", "last_block"]


class Adapter:
    """How a family lays its images out, and where its vision tower says what they show. It holds no state."""

    mrope = False
    """Whether visual tokens have two-dimensional positions that must follow them."""

    def check(self, config: Any) -> None:
        """Refuse variants of the family that cannot be pruned.

        Raises:
            UnsupportedError: naming the variant.
        """

    def image_token(self, config: Any) -> int | None:
        """The id of which every occurrence in a prompt stands for a visual token; None where that may not hold."""
        return None

    def pictures(self, config: Any, inputs: Mapping[str, Any]) -> list[Picture]:
        """The images among what a processor returned, or what the model was given, by the same names."""
        raise NotImplementedError

    def cut(self, inputs: Mapping[str, Any], images: slice) -> dict[str, Any]:
        """What the model is given of some of the images: of every argument the rows that are theirs."""
        return {
            name: value[images] if isinstance(value, (list, tuple)) or getattr(value, "ndim", None) else value
            for name, value in inputs.items()
        }

    def block(self, model: Any) -> nn.Module:
        """The block of the vision tower whose output becomes visual tokens."""
        raise NotImplementedError

    def parts(
        self, model: Any, inputs: Mapping[str, Any], pictures: Sequence[Picture], states: torch.Tensor
    ) -> list[list[torch.Tensor]]:
        """The tower's states, pooled as the model pools its patches: for each image and grid (n, D).

        Args:
            model: the model.
            inputs: what it was given, by name.
            pictures: the images among it.
            states: what was read in `block`.
        """
        raise NotImplementedError


def cut_rows(inputs: Mapping[str, Any], name: str, sizes: Sequence[int], images: slice) -> dict[str, Any]:
    """As `Adapter.cut` does, where the argument `name` has `sizes` rows for the images, one image after another.

    >>> cut_rows({"pixels": [1, 2, 2, 3], "grids": ["a", "b", "c"]}, "pixels", [1, 2, 1], slice(1, 3))
    {'pixels': [2, 2, 3], 'grids': ['b', 'c']}
    """
    before = sum(sizes[: images.start])
    rows = slice(before, before + sum(sizes[images]))
    return {**Adapter().cut(inputs, images), name: inputs[name][rows]}


def last_block(tower: nn.Module) -> nn.Module:
    """The last block of a tower, which vLLM builds no deeper than the layer whose output is used.

    Raises:
        UnsupportedError: when it has no list of blocks.
    """
    lists = [module for module in tower.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise UnsupportedError(f"{type(tower).__name__} has no list of blocks, so no evidence can be read there.")
    return max(lists, key=len)[-1]
