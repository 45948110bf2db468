"""What the runtime must know of a model: its decoder, what it costs, its pictures and its vision tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedError
from .costs import Costs
from .pictures import Pictures
from .tower import feeding_block

__all__ = ["Family"]


class Family(Pictures, Costs):
    """The generic rule for a decoder-only vision-language model of transformers.

    A family file subclasses this and overrides what its models do differently, of whatever subject; `layout` it always
    provides. Where pictures are laid out without a model, too, their rules are a subclass of `Pictures` that the
    family inherits from first.

    Args:
        model: the model with its language-modelling head, or its base model.

    Raises:
        UnsupportedError: when a part that the rule relies on is missing.
    """

    def __init__(self, model: nn.Module) -> None:
        Costs.__init__(self, model)
        Pictures.__init__(self, self.multimodal.config, type(model).__name__)

    def tower_block(self) -> nn.Module:
        """The block of the vision tower whose output becomes visual tokens.

        Raises:
            UnsupportedError: when there is no one such block.
        """
        return feeding_block(self.multimodal, self.config)

    def pool_tower(self, kind: str, states: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The tower's states, grouped as the model groups them into visual tokens: (tokens, D), in prompt order.

        Args:
            kind: "image" or "video".
            states: what enters or leaves a part of `tower_block`, class token included.
            inputs: the arguments that the pictures were encoded from, by name.

        Raises:
            UnsupportedError: when it is not known how this model pools.
        """
        raise UnsupportedError(
            f"topv does not know how {self.model_name} pools the {kind}s of its vision tower into tokens, so "
            "no evidence can be read there. Use a method that reads the decoder, such as TopV(stage='decoder')."
        )
