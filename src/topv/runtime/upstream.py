"""Whether transformers hands its modules what topv reads: looked at when attaching, and during the first generation."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn

from ..errors import UnsupportedError
from ..models import Family
from .arguments import CACHE, HIDDEN_STATES, MASK, Signature, output_cache
from .eager import EagerForward
from .record import held

__all__ = ["NEWEST", "OLDEST", "FirstGeneration", "refuse_lone_token", "refuse_unseen", "warn_if_untested"]

OLDEST, NEWEST = "5.16", "5.24"
"""The releases of transformers, by their first two numbers, from and to which topv is tested."""

_warned: set[str] = set()
_warned_lock = threading.Lock()


def warn_if_untested() -> None:
    """Warn, once a process, of a transformers newer than any that topv was tested with."""
    version = transformers.__version__
    with _warned_lock:
        known = version in _warned
        _warned.add(version)
    if not known and _release(version) > _release(NEWEST):
        warnings.warn(
            f"transformers {version} is newer than any that this topv was tested with ({OLDEST} to {NEWEST}). topv "
            "refuses what it sees to be wrong; for a release that is tested, install "
            f"'transformers>={OLDEST},<{_after(NEWEST)}', or a newer topv.",
            stacklevel=4,
        )


def refuse_unseen(family: Family) -> None:
    """Raise unless the forwards of a model's parts take the arguments that topv reads and changes.

    Raises:
        UnsupportedError: when one is missing, under every name that topv knows.
    """
    outer = [module for module in (family.model, family.multimodal) if module is not family.language_model]
    for module in dict.fromkeys(outer):
        _require(Signature(module), module, "input_ids", "the prompt's tokens")
    _require(Signature(family.language_model), family.language_model, "inputs_embeds", "the embedded prompt")
    for index, layer in enumerate(family.layers):
        signature = Signature(layer, takes_states=True)
        _require(signature, layer, HIDDEN_STATES, "a decoder layer's hidden states")
        if family.keeps_keys(index):
            _require(signature, layer, MASK, "a decoder layer's attention mask")
            if family.key_layer(index) == index:
                _require(signature, layer, CACHE, "a decoder layer's KV cache")


def refuse_lone_token(module: nn.Module, inputs: Mapping[str, Any], *, length: int, past: int) -> None:
    """Raise if a call looks like a decoding step behind a KV cache that topv does not see.

    Args:
        module: what was called.
        inputs: its arguments, by topv's words.
        length: columns of the call.
        past: columns that topv sees in the KV cache.

    Raises:
        UnsupportedError: when a single token without a cache stands behind others.
    """
    if length > 1 or past or inputs.get(CACHE) is not None:
        return
    mask, positions = inputs.get(MASK), inputs.get("position_ids")
    behind = ""
    if isinstance(mask, torch.Tensor) and mask.ndim == 2 and mask.shape[1] > length:
        behind = f"its mask covers {mask.shape[1]} columns"
    elif isinstance(positions, torch.Tensor) and positions.numel() and int(positions.max()) > 0:
        behind = f"it stands at position {int(positions.max())}"
    if behind:
        raise _unseen("the KV cache", module, f"a single token was given without one, though {behind}")


class FirstGeneration:
    """Compares, during the first prefill and the first step behind it, what topv saw with what the KV cache says.

    Args:
        family: the model's parts.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._unchecked = {True, False}

    def is_due(self, forward: EagerForward) -> bool:
        """Whether a forward is yet to be looked at: the first that begins a cache, and the first that goes on."""
        return (forward.call.past == 0) in self._unchecked

    def note(self, forward: EagerForward) -> None:
        """Remember what the cache holds before `forward`."""
        forward.held_before = (
            {} if forward.call.cache is None else {i: held(forward.call.cache, i) for i in self._layers}
        )

    def check(self, forward: EagerForward, module: nn.Module, inputs: Mapping[str, Any], output: Any) -> None:
        """Compare what the decoder returned, before topv changes anything in it, with what its layers were given.

        Args:
            forward: the forward that ends.
            module: the decoder.
            inputs: its arguments, by topv's words.
            output: what it returned.

        Raises:
            UnsupportedError: when a cache was used that topv did not see, or it grew by something else.
        """
        if not self.is_due(forward):
            return
        cache = forward.call.cache
        if cache is None:
            made = output_cache(output) is not None
            if made or (inputs.get("use_cache") is True and self._layers):
                told = "one was returned" if made else "use_cache=True asked for one"
                raise _unseen("the KV cache", module, f"no layer was given any, though {told}")
            self._unchecked.discard(True)
            return
        grown = {}
        for layer in self._layers:
            # Nothing was noted of a cache that the decoder made itself.
            before = forward.held_before.get(layer, 0)
            expected = forward.facts.lengths.get(layer, before + forward.call.length)
            if (now := held(cache, layer)) != expected:
                grown[layer] = (now, expected)
        if grown:
            layer, (now, expected) = next(iter(grown.items()))
            raise _unseen(
                f"what decoder layer {layer} keeps",
                module,
                f"its KV cache holds {now} entries where {expected} were expected, "
                f"{forward.held_before.get(layer, 0)} of them from before",
            )
        self._unchecked.discard(forward.call.past == 0)

    @property
    def _layers(self) -> list[int]:
        """The layers that put their own keys into the cache."""
        family = self._family
        return [i for i in range(len(family.layers)) if family.keeps_keys(i) and family.key_layer(i) == i]


def _require(signature: Signature, module: nn.Module, word: str, what: str) -> None:
    if not signature.accepts(word):
        taken = ", ".join(signature.names) or "no argument by name"
        raise _unseen(what, module, f"its forward takes {taken}, and nothing like {word}")


def _unseen(what: str, module: nn.Module, found: str) -> UnsupportedError:
    return UnsupportedError(
        f"topv does not see {what} in {type(module).__name__}: {found}. With transformers {transformers.__version__} "
        f"pruning would go wrong unnoticed, so it is refused. topv is tested with transformers {OLDEST} to {NEWEST}: "
        "install one of these, or a newer topv."
    )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _after(version: str) -> str:
    major, minor = _release(version)
    return f"{major}.{minor + 1}"
