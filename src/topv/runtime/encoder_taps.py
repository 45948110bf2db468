"""Reading evidence in the vision tower, while the model makes its image features."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedError
from ..methods import TARGETS
from ..models import Family
from .arguments import HIDDEN_STATES, Signature
from .attention_row import call_eagerly

__all__ = ["EncoderTaps", "encoder_states"]

_NOTE = "_topv_encoder"
PREFIX = "encoder_"


class EncoderTaps:
    """Taps on the block of the vision tower whose output becomes visual tokens.

    What they read is noted on the encoder's output, since generation runs the tower before the decoder.

    Args:
        family: the model's parts.
        needs: the evidence that the method asks for; names that begin with "encoder_" are read here.

    Raises:
        ValueError: when some evidence is of no known kind.
        UnsupportedError: when the model has no such block.
    """

    def __init__(self, family: Family, needs: frozenset[str]) -> None:
        self._family = family
        self._needs = {name.removeprefix(PREFIX) for name in needs if name.startswith(PREFIX)}
        self._of_thread = threading.local()
        known = {"source", "weights", *TARGETS}
        if self._needs - known:
            raise ValueError(f"unknown evidence of the vision tower {sorted(self._needs - known)}. Known: {known}.")

    @property
    def handles(self) -> list[Any]:
        """Put the taps on, and return what removes them."""
        if not self._needs:
            return []
        block = self._family.tower_block()
        attention, mlp = self._child(block, ("self_attn", "attention", "attn")), self._child(block, ("mlp",))
        places = {"pre_norm": (attention, True), "attention": (attention, False), "post_norm": (mlp, True)}
        places |= {"mlp": (mlp, False), "source": (block, True)}
        handles: list[Any] = []
        for name in sorted(self._needs - {"weights"}):
            module, enters = places[name]
            if enters:
                hook: Any = functools.partial(self._entering, name, Signature(module, takes_states=True))
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(functools.partial(self._leaving, name)))
        if "weights" in self._needs:
            weigh = functools.partial(self._weigh, Signature(attention, takes_states=True))
            handles.append(attention.register_forward_pre_hook(weigh, with_kwargs=True))
        return handles

    def _child(self, block: nn.Module, names: tuple[str, ...]) -> nn.Module:
        for name in names:
            if isinstance(child := getattr(block, name, None), nn.Module):
                return child
        raise UnsupportedError(f"{type(block).__name__} has none of {', '.join(names)}, where evidence is read.")

    @contextmanager
    def reading(self, kind: str, inputs: Mapping[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
        """Read while pictures are encoded in the block; what was read is there once it is left.

        Args:
            kind: "image" or "video".
            inputs: the arguments that they are encoded from, by name.
        """
        read: dict[str, torch.Tensor] = {}
        self._of_thread.read = read
        try:
            yield read
        finally:
            self._of_thread.read = None
        for name, states in read.items():
            read[name] = self._family.pool_tower(kind, states, inputs)

    @property
    def wanted(self) -> bool:
        """Whether there is anything to read."""
        return bool(self._needs)

    def _put(self, name: str, states: torch.Tensor) -> None:
        read = getattr(self._of_thread, "read", None)
        if read is not None:
            read[name] = states.detach()

    def _entering(
        self, name: str, signature: Signature, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._put(name, signature.bind(args, kwargs)[HIDDEN_STATES])

    def _leaving(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._put(name, output[0] if isinstance(output, tuple) else output)

    @torch.no_grad()
    def _weigh(self, signature: Signature, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if getattr(self._of_thread, "read", None) is None:
            return
        _, weights = call_eagerly(module, signature.bind(args, kwargs))
        self._put("weights", attention_received(weights, self._family))


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
