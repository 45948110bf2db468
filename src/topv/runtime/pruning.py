"""Attaching a method to a model, and detaching it without a trace."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import StaticCache

from ..errors import InputError, UnsupportedError
from ..methods import Method
from ..models import Family, family_of
from .arguments import MASK
from .compiled import CompiledPrefill, pruned_static_cache
from .early_layers import refuse_early_compaction
from .hooks import Hooks
from .masks import prompt_mask
from .opening import plan_prompt
from .refusals import forget_compiled, refuse_borrowing, refuse_compiled, refuse_stages
from .report import Report
from .results import Results
from .session import Session
from .upstream import refuse_unseen, warn_if_untested

__all__ = ["Pruning", "attach", "prune"]

_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_attached_lock = threading.Lock()


class Pruning:
    """A method at work on a model, from `attach` until `detach`.

    What it reports is about the latest prefill of the calling thread.
    """

    def __init__(self, family: Family, method: Method) -> None:
        self.method = method
        self._family = family
        self._session = Session(family, method)
        self.layers = self._session.layers
        self.layer = self.layers[0]
        warn_if_untested()
        refuse_compiled(family)
        refuse_unseen(family)
        forget_compiled(family)
        for layer in self.layers:
            refuse_borrowing(family, layer)
        if len(self.layers) > 1:
            refuse_stages(family, method)
        if method.compact_early_layers:
            refuse_early_compaction(family, self.layer)
        with _attached_lock:
            if family.language_model in _attached:
                raise UnsupportedError(
                    f"this {type(family.model).__name__} already has a pruning attached. Detach it first: "
                    "`pruning.detach()`, or leave its `with topv.prune(...)` block."
                )
            _attached.add(family.language_model)
        try:
            self._hooks = Hooks(self._session)
        except BaseException:
            self._forget()
            raise

    # ---- what users read ------------------------------------------------------------------------------------

    @property
    def results(self) -> Results:
        """The latest prefill of the calling thread.

        Raises:
            RuntimeError: when this thread has run none since the method was attached.
        """
        results = self._session.results
        if results is None:
            raise RuntimeError(
                "no prefill has run in this thread since the method was attached. Call the model or its `generate` "
                "first, in the same thread."
            )
        return results

    def report(self) -> Report:
        """What the latest prefill kept, in tokens, KV bytes and FLOPs.

        Raises:
            RuntimeError: when this thread has run no prefill yet.
        """
        return self.results.report()

    @property
    def kept_positions(self) -> list[torch.Tensor]:
        """For each sample a LongTensor on the CPU: the columns of kept visual tokens, ascending. Columns count from
        the start of the sequence, those already in the KV cache included."""
        return self.results.kept_positions()

    @property
    def kept_by_layer(self) -> dict[int, list[torch.Tensor]]:
        """By pruning layer, the columns of the visual tokens that stayed from it on, as in `kept_positions`, which
        speaks of the last of them."""
        return {layer: self.results.kept_positions(stage) for stage, layer in enumerate(self.layers)}

    @property
    def recovered_positions(self) -> list[torch.Tensor]:
        """For each sample a LongTensor on the CPU: the kept columns that were recovered rather than ranked."""
        return self.results.recovered_positions()

    @property
    def importance(self) -> list[torch.Tensor | None]:
        """For each sample float32 on the CPU, the importance of its visual tokens in prompt order; None when the
        method has none or nothing of the sample was judged."""
        return self.results.importance()

    # ---- compiling ------------------------------------------------------------------------------------------

    def compile_prefill(self, **options: Any) -> None:
        """Compile the decoder's prefill, selection included, as one graph for each shape of prompt.

        Call it after attaching and before the first prefill. Prompts that differ in length, batch or the places of
        their images each have a graph of their own. Decoding steps are not part of it: compile those as without topv
        (`generate` with a preallocated cache does it on a GPU).

        Args:
            **options: what `torch.compile` takes besides `fullgraph` and `dynamic`, such as `mode="reduce-overhead"`
                for CUDA graphs, which need `static_cache`.

        Raises:
            UnsupportedError: when the decoder or the method cannot be traced, or was compiled before.
        """
        if self._session.compiled is not None:
            raise UnsupportedError("the prefill is compiled already. Detach and attach anew for other options.")
        if not self._session.can_trace or len(self.layers) > 1:
            raise UnsupportedError(
                f"the decoder of {type(self._family.model).__name__} under {self.method!r} needs more than shorter "
                "tensors (layers of several kinds, places read off the cache, several pruning layers), so it cannot be "
                "one graph. Leave the prefill uncompiled."
            )
        compiled = CompiledPrefill(self._family, self.method, self._session.current, options)
        self._hooks.add(compiled.wrapper())
        self._session.compiled = compiled

    def static_cache(self, inputs: Mapping[str, Any], *, max_new_tokens: int) -> StaticCache:
        """A preallocated KV cache for one prompt and what is generated from it, in which the short layers are short.

        Pass it to `generate` or to the model as `cache` (`past_key_values` before transformers 5.24). It serves any
        prompt of this shape after `reset()`.

        Args:
            inputs: the model's inputs for the prompt, as the processor returned them.
            max_new_tokens: tokens to generate at most.

        Raises:
            UnsupportedError: when the decoder has layers that are not plain attention over every column.
            InputError: when max_new_tokens is below 1 or input_ids are missing.
        """
        ids = inputs.get("input_ids")
        if not isinstance(ids, torch.Tensor) or max_new_tokens < 1:
            raise InputError(
                f"static_cache needs inputs with input_ids and max_new_tokens of at least 1, got "
                f"{sorted(inputs)} and {max_new_tokens}."
            )
        mask = prompt_mask(inputs.get(MASK))
        plan = plan_prompt(self._family, self.method, self.layers, inputs, mask=mask, past=0)
        weight = next(self._family.language_model.parameters())
        return pruned_static_cache(
            self._family,
            lengths={layer: plan.length(stage) for stage, layer in enumerate(self.layers)},
            whole=ids.shape[1],
            max_new_tokens=max_new_tokens,
            batch=ids.shape[0],
            dtype=weight.dtype,
            device=weight.device,
        )

    # ---- detaching ------------------------------------------------------------------------------------------

    def detach(self) -> None:
        """Remove every hook. Calling it again does nothing."""
        self._session.interrupt()
        self._hooks.remove()
        self._forget()

    def _forget(self) -> None:
        """Let the model be attached to again, and be compiled anew."""
        with _attached_lock:
            was_attached = self._family.language_model in _attached
            _attached.discard(self._family.language_model)
        if was_attached:
            forget_compiled(self._family)


def attach(model: nn.Module, method: Method) -> Pruning:
    """Prune `model`'s visual tokens with `method` until `detach` is called on the result.

    Args:
        model: a vision-language model of transformers, unchanged and on any device.
        method: how to choose the tokens that stay, for example `topv.TopV(keep=0.5)`.

    Returns:
        The handle to report on and detach.

    A KV cache that was filled under pruning must be continued under pruning, and its rows must not be reordered
    between samples. Attach to the model with its head, not its base model, if labels are given.

    Raises:
        UnsupportedError: when the model cannot be pruned, or already is.
        ValueError: when the method does not fit the model, such as a layer beyond its depth.
        TypeError: when `method` is not a method.
    """
    if not isinstance(method, Method):
        raise TypeError(f"method={method!r} is not a pruning method. Pass an instance, such as topv.TopV(keep=0.5).")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, expected a vision-language model of transformers.")
    return Pruning(family_of(model), method)


@contextmanager
def prune(model: nn.Module, method: Method) -> Iterator[Pruning]:
    """Prune `model`'s visual tokens with `method` inside a `with` block.

    The arguments and errors are those of `attach`; the model is as before once the block is left.
    """
    pruning = attach(model, method)
    try:
        yield pruning
    finally:
        pruning.detach()
