"""Reading evidence in the vision tower, while the model makes its image features."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..models import Family
from ..models.tower_taps import TowerTaps
from .arguments import Signature
from .attention_row import call_eagerly

__all__ = ["EncoderTaps", "encoder_states"]

_NOTE = "_topv_encoder"


class EncoderTaps:
    """Taps on the block of the vision tower whose output becomes visual tokens, pooled as the tokens are.

    What they read is noted on the encoder's output, since generation runs the tower before the decoder.

    Args:
        family: the model's parts.
        needs: the evidence that the method asks for; names that begin with "encoder_" are read here.

    Raises:
        ValueError: when some evidence is of no known kind.
    """

    def __init__(self, family: Family, needs: frozenset[str]) -> None:
        self._family = family
        self._taps = TowerTaps(needs, weigh=functools.partial(_weigh, family))

    @property
    def handles(self) -> list[Any]:
        """Put the taps on, and return what removes them.

        Raises:
            UnsupportedError: when the model has no such block, or the block lacks a module that is read.
        """
        return list(self._taps.attach(self._family.tower_block())) if self.wanted else []

    @contextmanager
    def reading(self, kind: str, inputs: Mapping[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
        """Read while pictures are encoded in the block; what was read is there once it is left.

        Args:
            kind: "image" or "video".
            inputs: the arguments that they are encoded from, by name.

        Yields:
            By name without "encoder_", states (tokens, D) in prompt order.
        """
        with self._taps.reading() as read:
            yield read
        for name, states in read.items():
            read[name] = self._family.pool_tower(kind, states, inputs)

    @property
    def wanted(self) -> bool:
        """Whether there is anything to read."""
        return self._taps.wanted


def _weigh(family: Family, attention: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    _, weights = call_eagerly(attention, Signature(attention, takes_states=True).bind(args, kwargs))
    return attention_received(weights, family)


def attention_received(weights: torch.Tensor, family: Family) -> torch.Tensor:
    """How much attention each patch of a tower gets: (B, P, 1), mean over heads.

    It is what the class token pays, where the tower has one, and the mean over all patches where it has none.

    Args:
        weights: (B, heads, P, P), rows are queries.
        family: the model's parts.
    """
    mean = weights.float().mean(1)
    default = getattr(family.config, "vision_feature_select_strategy", None) == "default"
    return (mean[:, 0] if default else mean.mean(1)).unsqueeze(-1)


def note_states(output: Any, states: Mapping[str, torch.Tensor]) -> None:
    """Let what an encoder returned carry what was read while it ran."""
    if hasattr(output, "__dict__"):
        vars(output)[_NOTE] = dict(states)


def encoder_states(inputs: Mapping[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """What the encoded pictures among a call's arguments carry: by kind ("image", "video"), then by name."""
    encoded = inputs.get("mm_encoder_outputs") or {}
    return {kind: states for kind, output in encoded.items() if (states := getattr(output, _NOTE, None))}
