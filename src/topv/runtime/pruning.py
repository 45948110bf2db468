"""Attaching a method to a model, and detaching it without a trace."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import StaticCache

from ..errors import InputError, LayoutError, UnsupportedError
from ..layout import VisualLayout
from ..methods import Method
from ..models import Family, family_of
from ..models.encoded import recall, refuse_lost
from .arguments import CACHE, HIDDEN_STATES, MASK, Signature
from .compiled import CompiledPrefill, pruned_static_cache
from .early_layers import compact_early_layers, refuse_early_compaction
from .encoder_taps import EncoderTaps, encoder_states
from .forward import Forward, current_forward, set_forward
from .masks import prompt_mask, real_columns
from .outputs import scatter_output
from .plan import PrefillPlan, build_plan
from .record import entry_bytes, held, own_sizes, read_records, write_records
from .refusals import (
    forget_compiled,
    refuse_borrowing,
    refuse_compiled,
    refuse_other_layers,
    refuse_packed,
    refuse_stages,
    refuse_windows,
)
from .report import Report
from .results import Results
from .stage import Stage
from .taps import tap_layer
from .traced import can_trace, is_traced_step, short_step
from .traced_prefill import TracedPrefill
from .upstream import FirstGeneration, refuse_lone_token, refuse_unseen, warn_if_untested
from .wrappers import PromptNote, mark_features

__all__ = ["Pruning", "attach", "prune"]

_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_attached_lock = threading.Lock()


_BREAK = (
    "topv reads on the host, from the prompt, how many tokens of a prefill stay, so a prefill cannot be one graph. "
    "Compile without fullgraph=True, or compile the decoding steps alone: they are."
)


class Pruning:
    """A method at work on a model, from `attach` until `detach`.

    What it reports is about the latest prefill of the calling thread.
    """

    def __init__(self, family: Family, method: Method) -> None:
        self.method = method
        self.layers = method.pruning_layers(len(family.layers))
        self.layer = self.layers[0]
        self._family = family
        self._handles: list[Any] = []
        self._results = threading.local()
        self._can_trace = can_trace(family) and self.layer > 0 and not method.compact_early_layers
        self._prompts = PromptNote()
        self._compiled: CompiledPrefill | None = None
        self._first = FirstGeneration(family)
        parts = (family.model, family.multimodal, family.generator)
        self._callable = [module for module in dict.fromkeys(parts) if module is not None]
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
        self._register()

    # ---- what users read ------------------------------------------------------------------------------------

    @property
    def results(self) -> Results:
        """The latest prefill of the calling thread.

        Raises:
            RuntimeError: when this thread has run none since the method was attached.
        """
        results: Results | None = getattr(self._results, "latest", None)
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
        if self._compiled is not None:
            raise UnsupportedError("the prefill is compiled already. Detach and attach anew for other options.")
        if not self._can_trace or len(self.layers) > 1:
            raise UnsupportedError(
                f"the decoder of {type(self._family.model).__name__} under {self.method!r} needs more than shorter "
                "tensors (layers of several kinds, places read off the cache, several pruning layers), so it cannot be "
                "one graph. Leave the prefill uncompiled."
            )
        compiled = CompiledPrefill(self._family, self.method, self._mine, options)
        self._handles.append(compiled.wrapper())
        self._compiled = compiled

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
        plan = self._plan(ids, dict(inputs), mask=prompt_mask(inputs.get(MASK)), past=0)
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

    # ---- hooks ----------------------------------------------------------------------------------------------

    def detach(self) -> None:
        """Remove every hook. Calling it again does nothing."""
        if self._mine() is not None:
            set_forward(None)
        while self._handles:
            self._handles.pop().remove()
        with _attached_lock:
            was_attached = self._family.language_model in _attached
            _attached.discard(self._family.language_model)
        if was_attached:
            forget_compiled(self._family)

    def _register(self) -> None:
        family = self._family
        try:
            for module in self._callable:
                self._hook_before(module, self._open)
                close = functools.partial(self._close, Signature(module))
                self._handles.append(module.register_forward_hook(close, with_kwargs=True, always_call=True))
            self._hook_before(family.language_model, self._enter_decoder)
            leave = functools.partial(self._leave_decoder, Signature(family.language_model))
            self._handles.append(family.language_model.register_forward_hook(leave, with_kwargs=True))
            for index, layer in enumerate(family.layers):
                self._hook_before(layer, functools.partial(self._before_layer, index), takes_states=True)
                if family.asks_for_slots:
                    self._hook_before(layer, functools.partial(self._count_slots, index))
                    self._handles.append(layer.register_forward_hook(self._count_columns, always_call=True))
                if index >= self.layer and family.rejoins:
                    self._handles.append(layer.register_forward_hook(functools.partial(self._after_layer, index)))
            for stage, start in enumerate(self.layers):
                tapped = functools.partial(self._tapped, stage)
                self._handles += tap_layer(family, start - 1, self.method.needs, tapped)
            encoder = EncoderTaps(family, self.method.needs)
            self._handles += encoder.handles
            self._handles += mark_features(family, encoder, self._mine)
            self._handles += family.corrections(self._short_layer)
            if family.generator is not None:
                self._handles += self._prompts.follow(family.generator)
        except BaseException:
            self.detach()
            raise

    def _tapped(self, stage: int, states: Any) -> Stage | TracedPrefill | None:
        """What is to read for: a stage of the running forward if tokens leave there, or the prefill that is traced."""
        traced = self._traced
        if traced is not None:
            return traced
        if self._can_trace and is_traced_step(states):
            return None
        forward = self._mine()
        prunes = forward is not None and forward.prunes and forward.stages[stage].drops
        return forward.stages[stage] if forward is not None and prunes else None

    @property
    def _traced(self) -> TracedPrefill | None:
        """The prefill that a compiler traces; a forward that runs beside it in another thread has none."""
        return self._compiled.traced if self._compiled is not None and torch.compiler.is_compiling() else None

    def _short_layer(self, index: int) -> Stage | None:
        """What decoder layer `index` works on in the running forward, if it sees a shortened sequence there."""
        forward = self._mine()
        return None if forward is None else forward.short(index)

    def _hook_before(self, module: nn.Module, hook: Any, *, takes_states: bool = False) -> None:
        hook = functools.partial(hook, Signature(module, takes_states=takes_states))
        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def __deepcopy__(self, memo: Any) -> Pruning:
        raise UnsupportedError(
            "a model with a pruning attached cannot be copied. Detach first, and attach to the copy."
        )

    def __reduce__(self) -> Any:
        raise UnsupportedError("a model with a pruning attached cannot be pickled. Detach it before saving.")

    def _mine(self) -> Forward | None:
        forward = current_forward()
        same_thread = forward is not None and forward.thread == threading.get_ident()
        return forward if same_thread and forward is not None and forward.owner is self else None

    def _open(self, signature: Signature, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._can_trace and is_traced_step(signature.bind(args, kwargs).get("input_ids")):
            return
        if torch.compiler.is_compiling():
            # A compiler told to accept no break shows this as its reason.
            torch._dynamo.graph_break(msg=_BREAK)
        running = self._mine()
        if running is not None and self._is_inside(module, running):
            running.joined.add(module)
            return
        # What is left of this pruning's own earlier forward was interrupted; another's goes on when this one ends.
        outer = current_forward() if running is None else running.outer
        set_forward(outer)
        inputs = signature.bind(args, kwargs)
        if inputs.get("output_attentions") or getattr(self._family.text_config, "output_attentions", False):
            raise UnsupportedError(
                "output_attentions=True cannot be honoured while a pruning is attached: the layers beyond the pruning "
                "layer attend over fewer tokens, so their maps have no common shape. Detach to read attention maps."
            )
        forward = self._begin(module, inputs)
        forward.outer = outer
        set_forward(forward)

    def _is_inside(self, module: nn.Module, running: Forward) -> bool:
        """Whether a call of `module` is a part of the running forward, rather than a new one."""
        order = self._callable.index
        return order(module) > order(running.opened_by) and module not in running.joined

    def _begin(self, module: nn.Module, inputs: dict[str, Any]) -> Forward:
        input_ids = inputs.get("input_ids")
        if input_ids is None and module is self._family.generator:
            input_ids = self._prompts.read(inputs.get("inputs_embeds"))
            inputs = inputs | {"input_ids": input_ids}
        if input_ids is None:
            raise UnsupportedError(
                f"{type(module).__name__} was called without input_ids, so topv cannot see which positions hold visual "
                "tokens. Pass input_ids instead of inputs_embeds, or detach."
            )
        batch, length = input_ids.shape
        cache = inputs.get(CACHE)
        past = 0 if cache is None else int(cache.get_seq_length())
        refuse_lone_token(module, inputs, length=length, past=past)
        mask = prompt_mask(inputs.get(MASK))
        plan = None
        if length > 1 or past == 0:
            plan = self._plan(input_ids, inputs, mask=mask, past=past)
        forward = Forward(
            owner=self,
            opened_by=module,
            family=self._family,
            method=self.method,
            layers=self.layers,
            batch=batch,
            length=length,
            past=past,
            plan=plan,
            is_prefill=plan is not None and (past == 0 or plan.layout.visual_tokens > 0),
        )
        if forward.prunes and any(name.startswith("encoder_") for name in self.method.needs):
            marks = self._family.placeholders(input_ids, inputs).cpu()
            forward.evidence.note_placeholders(self._family.kinds(marks, input_ids.cpu()), recall(inputs).copies)
            forward.evidence.encoder.update(encoder_states(inputs))
        forward.mask = mask
        return forward

    def _plan(self, input_ids: torch.Tensor, inputs: dict[str, Any], *, mask: Any, past: int) -> PrefillPlan:
        batch, length = input_ids.shape
        placeholders = self._family.placeholders(input_ids, inputs).cpu()
        has_images = self._family.has_images(inputs)
        if has_images:
            try:
                layout = self._family.layout(placeholders, inputs)
            except LayoutError as error:
                if recall(inputs).lost:
                    raise refuse_lost(self._family.model_name) from error
                raise
        elif bool(placeholders.any()):
            raise LayoutError(
                f"the prompt holds {int(placeholders.sum())} image placeholder tokens, but no images came with it. "
                "Pass the pixel_values that the processor returned."
            )
        else:
            layout = VisualLayout(batch, length, ())
        labels = inputs.get("labels")
        return build_plan(
            layout,
            self.method,
            family=self._family,
            layers=self.layers,
            real=real_columns(mask, batch=batch, past=past, length=length),
            labels=None if labels is None else labels.cpu(),
        )

    def _close(
        self, signature: Signature, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self._can_trace and is_traced_step(signature.bind(args, kwargs).get("input_ids")):
            return
        forward = self._mine()
        if forward is not None and forward.opened_by is module:
            set_forward(forward.outer)
            forward.release()

    def _enter_decoder(
        self, signature: Signature, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self._can_trace and is_traced_step(signature.bind(args, kwargs).get("inputs_embeds")):
            return
        forward = self._mine()
        if forward is None or forward.in_decoder:
            raise UnsupportedError(
                f"{type(module).__name__} was called by itself, so topv cannot see which positions hold visual tokens. "
                f"Call {type(self._family.model).__name__}, or detach."
            )
        if module.training and getattr(module, "gradient_checkpointing", False):
            raise UnsupportedError(
                "gradient checkpointing recomputes layers outside of the forward that pruned them. Call "
                "`model.gradient_checkpointing_disable()` or `model.eval()`, or detach."
            )
        forward.in_decoder = True
        inputs = signature.bind(args, kwargs)
        mask = inputs.get(MASK)
        # Some models make their masks before they call their decoder.
        mask = mask if isinstance(mask, torch.Tensor) else forward.mask
        if forward.prunes:
            refuse_packed(inputs)
        refuse_windows(self._family, forward)
        forward.rejoined = self._family.rejoined(inputs)
        forward.mask = mask if mask is None or mask.ndim == 4 else mask[:, : forward.past + forward.length]
        forward.cache = inputs.get(CACHE)
        records = read_records(forward.cache, length=forward.past, batch=forward.batch)
        if forward.prunes:
            refuse_other_layers(records, self.layers)
        forward.resume(records)
        if self._first.is_due(forward):
            self._first.note(forward)

    def _before_layer(
        self, index: int, signature: Signature, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        traced = self._traced
        if traced is not None:
            changed = traced.before_layer(index, signature.bind(args, kwargs))
            return signature.rebuild(args, kwargs, changed) if changed else None
        if self._can_trace and is_traced_step(signature.bind(args, kwargs).get(HIDDEN_STATES)):
            changed = short_step(signature.bind(args, kwargs), index)
            return signature.rebuild(args, kwargs, changed) if changed else None
        forward = self._mine()
        if forward is None:
            return None
        stage = forward.stage(index)
        if not (forward.is_prefill or (stage is not None and stage.is_short)):
            return None
        arguments = signature.bind(args, kwargs)
        if forward.cache is None:
            forward.cache = arguments.get(CACHE)
        if forward.prunes:
            forward.select(index, arguments[HIDDEN_STATES])
        changed = stage.shorten(arguments, index) if stage is not None and stage.is_short else {}
        if forward.is_prefill and self._family.keeps_keys(index):
            entries = changed.get(HIDDEN_STATES, arguments[HIDDEN_STATES]).shape[1]
            forward.outcome.lengths[index] = entries + held(forward.cache, index)
            forward.outcome.element_size = arguments[HIDDEN_STATES].element_size()
        return signature.rebuild(args, kwargs, changed) if changed else None

    def _count_slots(
        self, index: int, signature: Signature, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        forward = self._mine()
        if forward is not None and forward.short(index) is not None:
            forward.own_sizes = own_sizes()
            forward.own_sizes.__enter__()

    def _count_columns(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        forward = self._mine()
        if forward is not None and forward.own_sizes is not None:
            forward.own_sizes.__exit__(None, None, None)
            forward.own_sizes = None

    def _after_layer(self, index: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        traced = self._traced
        if traced is not None:
            return traced.after_layer(index, output)
        if self._can_trace and is_traced_step(output[0] if isinstance(output, tuple) else output):
            return None
        forward = self._mine()
        stage = None if forward is None or index not in forward.rejoined else forward.stage(index)
        return None if stage is None else stage.rejoin(output)

    def _leave_decoder(
        self, signature: Signature, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if self._can_trace and is_traced_step(signature.bind(args, kwargs).get("inputs_embeds")):
            return None
        forward = self._mine()
        if forward is None:
            return None
        self._first.check(forward, module, signature.bind(args, kwargs), output)
        if len(forward.outcome.choices) < len(forward.stages) and forward.prunes:
            raise UnsupportedError(
                f"{type(module).__name__} ended before its layer {self.layers[-1]}, where pruning was to begin."
            )
        for stage in forward.stages:
            stage.finite.finish()
        forward.outcome.entry_bytes = {
            layer: size for layer in forward.outcome.lengths if (size := entry_bytes(forward.cache, layer))
        }
        if forward.is_prefill and forward.plan is not None:
            self._results.latest = Results(
                self._family, self.method, self.layers, forward.past, forward.plan, forward.outcome
            )
        if all(stage.compaction is None for stage in forward.stages):
            return None
        records = forward.records()
        if forward.cache is not None:
            if self.method.compact_early_layers:
                records = (compact_early_layers(forward.cache, records[0]),)
                early = dict.fromkeys(range(self.layer), records[0].slots.shape[1])
                forward.outcome.lengths.update(early)
            write_records(forward.cache, records, logical=self._family.mixed or records[0].layer == 0)
        return scatter_output(output, forward)


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
