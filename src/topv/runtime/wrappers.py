"""Functions of a model that are wrapped while a pruning is attached, because no hook reaches them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..models import Family
from .arguments import Signature
from .eager import EagerForward
from .encoder_taps import EncoderTaps, note_states

__all__ = ["PromptNote", "Wrapper", "mark_features"]


class Wrapper:
    """A function put on a module in the place of its method, until `remove`.

    Args:
        module: the module.
        name: the method's name.
        function: what to call instead.
    """

    def __init__(self, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        self._module, self._name = module, name
        setattr(module, name, function)

    def remove(self) -> None:
        """Let the module's own method be called again."""
        vars(self._module).pop(self._name, None)


def mark_features(family: Family, taps: EncoderTaps, running: Callable[[], EagerForward | None]) -> list[Wrapper]:
    """Let every encoded picture carry its layout, and what was read in the vision tower: `generate` encodes first, and
    hands on the features alone.

    Args:
        family: the model's parts.
        taps: the taps on its vision tower.
        running: gives the forward in which pictures are encoded, or None where it comes later.
    """
    holder = family.multimodal
    handles = []
    for kind in ("image", "video"):
        name = f"get_{kind}_features"
        encode = getattr(holder, name, None)
        if encode is not None and name not in vars(holder):
            handles.append(Wrapper(holder, name, _marking(family, kind, encode, taps, running)))
    return handles


def _marking(
    family: Family,
    kind: str,
    encode: Callable[..., Any],
    taps: EncoderTaps,
    running: Callable[[], EagerForward | None],
) -> Callable[..., Any]:
    @functools.wraps(encode)
    def marked(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return encode(*args, **kwargs)
        inputs = Signature(encode).bind(args, kwargs)
        if not taps.wanted:
            output = encode(*args, **kwargs)
        else:
            with taps.reading(kind, inputs) as states:
                output = encode(*args, **kwargs)
            note_states(output, states)
            forward = running()
            if forward is not None and forward.call.prunes:
                forward.evidence.encoder[kind] = states
        family.mark(kind, inputs, output)
        return output

    return marked


class PromptNote:
    """The prompt that `generate` of a part of the model was given: the part's forward sees it embedded alone."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def follow(self, generator: nn.Module) -> list[Wrapper]:
        """Note the prompts of `generator.generate`."""
        generate: Any = generator.generate
        if "generate" in vars(generator):
            return []

        @functools.wraps(generate)
        def noting(*args: Any, **kwargs: Any) -> Any:
            before = getattr(self._of_thread, "input_ids", None)
            self._of_thread.input_ids = kwargs.get("input_ids")
            try:
                return generate(*args, **kwargs)
            finally:
                self._of_thread.input_ids = before

        return [Wrapper(generator, "generate", noting)]

    def read(self, inputs_embeds: torch.Tensor | None) -> torch.Tensor | None:
        """The ids (B, T) of the prompt (B, T, D) that `generate` has embedded, or None."""
        noted: torch.Tensor | None = getattr(self._of_thread, "input_ids", None)
        if noted is None or inputs_embeds is None or noted.shape[1] != inputs_embeds.shape[1]:
            return None
        # Several sequences may be generated for each prompt.
        return noted.repeat_interleave(inputs_embeds.shape[0] // noted.shape[0], dim=0)
