"""Compiling the whole prefill of a pruned decoder, and caches whose layers are as long as they need to be."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

from ..errors import UnsupportedError
from ..methods import TARGETS, Method
from ..models import Family
from .arguments import CACHE, Signature, output_cache
from .compaction import Choice, Compaction
from .eager import EagerForward
from .traced_prefill import TracedPrefill
from .wrappers import Wrapper

__all__ = ["CompiledPrefill", "pruned_static_cache"]

_CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")


class CompiledPrefill:
    """The decoder's forward, compiled as one graph from its first layer to its last, selection included.

    A graph is made for each combination of prompt length, batch, places of images and budget; prompts alike in these
    share it, whatever they show. Prefills that cannot be one graph run as before: those that prune nothing, and those
    that continue a cache.

    Args:
        family: the model's parts.
        method: the method that prunes.
        running: gives the forward that is running in this context, or None.
        options: what `torch.compile` takes besides `fullgraph` and `dynamic`.

    Attributes:
        traced: the prefill that the graph is made for or run on at the moment, or None.

    Raises:
        UnsupportedError: when the decoder or the method cannot be traced.
    """

    def __init__(
        self, family: Family, method: Method, running: Callable[[], EagerForward | None], options: dict[str, Any]
    ) -> None:
        decoder = family.language_model
        implementation = str(family.text_config._attn_implementation)
        reason = None
        if method.needs & {"attention_row", "attention_map"}:
            reason = f"{type(method).__name__} reads attention weights"
        elif unread := method.needs - {"source", *TARGETS}:
            reason = (
                f"{type(method).__name__} reads {', '.join(sorted(unread))}, which is read outside the decoder's layers"
            )
        elif "forward" in vars(decoder):
            reason = f"the forward of {type(decoder).__name__} is already wrapped"
        elif implementation not in ("eager", "sdpa"):
            reason = f"its masks are those of {implementation}"
        if reason is not None:
            raise UnsupportedError(
                f"the prefill of {type(family.model).__name__} cannot be compiled as one graph: {reason}. Use TopV or "
                "another method that needs no more than its tokens, with attn_implementation='sdpa' or 'eager', on a "
                "model that is not dispatched; or leave the prefill uncompiled."
            )
        self.traced: TracedPrefill | None = None
        self._family = family
        self._running = running
        self._usual = decoder.forward
        self._signature = Signature(decoder)
        self._graphs = options.get("mode") in _CUDA_GRAPH_MODES
        self._compiled = torch.compile(decoder.forward, fullgraph=True, dynamic=False, **options)
        # What a graph reads is put in one place, so threads take turns.
        self._turn = threading.RLock()

    def wrapper(self) -> Wrapper:
        """Put the compiled forward in the place of the decoder's, until the handle is removed."""

        @functools.wraps(self._usual)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._forward(*args, **kwargs)

        return Wrapper(self._family.language_model, "forward", forward)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        # A compiler around the whole model, or around a decoding step, traces the decoder's own forward.
        running = None if torch.compiler.is_compiling() else self._running()
        if running is None or not running.call.prunes or running.call.past:
            return self._usual(*args, **kwargs)
        states = kwargs.get("inputs_embeds")
        if not isinstance(states, torch.Tensor):
            return self._usual(*args, **kwargs)
        self._refuse_lost_graphs(states.device, kwargs)
        with self._turn:
            self.traced = traced = TracedPrefill(running.call, states.device)
            try:
                output = self._compiled(*args, **kwargs)
            finally:
                self.traced = None
            self._hand_over(traced, running, output, states)
        return output

    def _refuse_lost_graphs(self, device: torch.device, kwargs: dict[str, Any]) -> None:
        cache = self._signature.bind((), kwargs).get(CACHE)
        kept = cache is not None or kwargs.get("use_cache")
        if self._graphs and device.type == "cuda" and kept and not getattr(cache, "is_compileable", False):
            raise UnsupportedError(
                "a CUDA graph overwrites its outputs when it runs again, and with them the keys and values of a cache "
                "that grows. Pass the cache of pruning.static_cache(inputs, max_new_tokens=...), or compile with "
                "another mode."
            )

    def _hand_over(self, traced: TracedPrefill, running: EagerForward, output: Any, states: torch.Tensor) -> None:
        """Give the running forward what its own hooks would have left there."""
        index, finite = traced.index, traced.finite
        if index is None or finite is None:
            raise UnsupportedError(f"the decoder ended before its layer {traced.layer}, where pruning was to begin.")
        (stage,) = running.stages
        stage.finite.expect(finite)
        # What a graph has returned it may overwrite when it runs again.
        stage.slots.compaction = Compaction(index.clone(), traced.valid, traced.length)
        choice = Choice()
        for kept, recovered, importance in zip(traced.kept, traced.recovered, traced.importance, strict=True):
            choice.add(kept.clone(), recovered.clone(), None if importance is None else importance.clone())
        running.facts.choices = [choice]
        running.facts.element_size = states.element_size()
        for layer in range(len(self._family.layers)):
            if self._family.keeps_keys(layer):
                running.facts.lengths[layer] = traced.length if layer < traced.layer else traced.short
        if running.call.cache is None:
            running.call.cache = output_cache(output)


def pruned_static_cache(
    family: Family,
    *,
    lengths: Mapping[int, int],
    whole: int,
    max_new_tokens: int,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
) -> StaticCache:
    """A preallocated cache in which each layer has room for what it will hold, and no more.

    Args:
        family: the model's parts.
        lengths: by pruning layer, ascending, columns of the prompt as it is shortened from there on.
        whole: columns of the prompt.
        max_new_tokens: tokens to generate.
        batch: rows.
        dtype: of keys and values.
        device: where the decoder runs.

    Raises:
        UnsupportedError: when the decoder's layers do not all keep the keys of every column.
    """
    cache = StaticCache(config=family.text_config, max_cache_len=whole + max_new_tokens)
    if family.mixed or family.lends_keys or any(type(held) is not StaticLayer for held in cache.layers):
        raise UnsupportedError(
            f"the decoder of {type(family.model).__name__} has layers with windows, states or shared keys, whose "
            "preallocated lengths are not topv's to choose. Use cache_implementation='static'."
        )
    for layer, short in lengths.items():
        for index in range(layer, len(cache.layers)):
            cache.layers[index] = StaticLayer(max_cache_len=short + max_new_tokens)
    for held in cache.layers:
        # Before any graph is made: what a graph allocates has no fixed address.
        empty = torch.empty(batch, family.kv_heads, 0, family.head_dim, dtype=dtype, device=device)
        held.lazy_initialization(empty, empty)
    return cache
