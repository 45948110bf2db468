"""One eager forward of a pruned model, from the first look at the prompt to the scattered output."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedError
from .arguments import CACHE, HIDDEN_STATES, MASK
from .call import Call
from .early_layers import compact_early_layers
from .evidence import EvidenceReader
from .outputs import scatter_output
from .phases import SELECTION, phase
from .raters import weighed_text
from .record import CacheRecord, entry_bytes, held, own_sizes, read_records, record_at, write_records
from .refusals import refuse_other_layers, refuse_packed, refuse_windows
from .results import PrefillFacts, Results
from .short_masks import LentKeys
from .stage import Stage

__all__ = ["EagerForward", "current_forward", "set_forward"]

_current: ContextVar[EagerForward | None] = ContextVar("topv_forward", default=None)


def current_forward() -> EagerForward | None:
    """The forward that is running in this context, or None."""
    return _current.get()


def set_forward(forward: EagerForward | None) -> None:
    """Make `forward` the one that is running in this context."""
    _current.set(forward)


class EagerForward:
    """A forward that no compiler traces. It lives in a context variable and dies with the forward.

    Args:
        call: what is known of it.
        owner: the session that it belongs to.
        opened_by: the module whose hook began it, and whose hook will end it.
        check: called with this forward, the decoder, its inputs and its output, before topv changes the output.
        report: called with the results of a prefill.

    Attributes:
        thread: the thread that it runs in.
        outer: the forward that goes on when this one ends, or None.
        joined: modules whose calls are part of it.
        in_decoder: whether the decoder has been entered.
        facts: what was chosen, and what the cache holds.
        held_before: what the cache held, by layer, where `check` wants to know.
        stages: the layers that are, or will be, short, by where they begin.
    """

    def __init__(
        self,
        call: Call,
        *,
        owner: object,
        opened_by: nn.Module,
        check: Callable[[EagerForward, nn.Module, dict[str, Any], Any], None],
        report: Callable[[Results], None],
    ) -> None:
        self.call = call
        self.owner = owner
        self.opened_by = opened_by
        self.thread = threading.get_ident()
        self.outer: EagerForward | None = None
        self.joined: set[nn.Module] = set()
        self.in_decoder = False
        self.facts = PrefillFacts()
        self.held_before: dict[int, int] = {}
        self.stages: list[Stage] = []
        self._check = check
        self._report = report
        self._lent: dict[int, LentKeys] = {}
        self._own_sizes: AbstractContextManager[None] | None = None
        for layer in call.layers if call.prunes else ():
            self._add_stage(layer, before=self.stages[-1] if self.stages else None)

    def _add_stage(self, layer: int, before: Stage | None = None) -> None:
        self.stages.append(Stage(self.call, len(self.stages), layer, lent=self._lent, before=before))

    @property
    def evidence(self) -> EvidenceReader:
        """What is read of this forward's visual tokens before any are dropped.

        Raises:
            RuntimeError: when it prunes nothing.
        """
        if not self.stages:
            raise RuntimeError("this forward prunes nothing, so it reads no evidence.")
        return self.stages[0].evidence

    def stage(self, layer: int) -> Stage | None:
        """The stage that decoder layer `layer` is in, or None while every column is there."""
        return next((stage for stage in reversed(self.stages) if stage.layer <= layer), None)

    def short(self, layer: int) -> Stage | None:
        """The stage that decoder layer `layer` is in, if the layer sees a shortened sequence."""
        stage = self.stage(layer)
        return stage if stage is not None and stage.is_short else None

    # ---- the decoder's hooks --------------------------------------------------------------------------------

    def enter(self, module: nn.Module, inputs: dict[str, Any]) -> None:
        """Take what the decoder is called with.

        Raises:
            UnsupportedError: when the decoder recomputes its layers, or the call is one that cannot be pruned.
            CacheError: when the cache no longer agrees with what was recorded on it.
        """
        call = self.call
        if module.training and getattr(module, "gradient_checkpointing", False):
            raise UnsupportedError(
                "gradient checkpointing recomputes layers outside of the forward that pruned them. Call "
                "`model.gradient_checkpointing_disable()` or `model.eval()`, or detach."
            )
        self.in_decoder = True
        mask = inputs.get(MASK)
        # Some models make their masks before they call their decoder.
        mask = mask if isinstance(mask, torch.Tensor) else call.mask
        if call.prunes:
            refuse_packed(inputs)
            refuse_windows(call)
        call.rejoined = call.family.rejoined(inputs)
        call.mask = mask if mask is None or mask.ndim == 4 else mask[:, : call.past + call.length]
        call.cache = inputs.get(CACHE)
        records = read_records(call.cache, length=call.past, batch=call.batch)
        if call.prunes:
            refuse_other_layers(records, call.layers)
        self._resume(records)

    def _resume(self, records: tuple[CacheRecord, ...]) -> None:
        """Go on from what the cache holds in its short layers."""
        if not self.call.prunes:
            for record in records:
                self._add_stage(record.layer)
        for stage in self.stages:
            stage.slots.record = record_at(records, stage.layer)

    def concerns(self, index: int) -> bool:
        """Whether it is a prefill, or the layer is short."""
        return self.call.is_prefill or self.short(index) is not None

    def before_layer(self, index: int, arguments: dict[str, Any]) -> dict[str, Any]:
        """Choose tokens where they leave, and shorten the arguments of a short layer."""
        call, stage = self.call, self.stage(index)
        if call.cache is None:
            call.cache = arguments.get(CACHE)
        hidden = arguments[HIDDEN_STATES]
        if call.prunes:
            self._select(index, hidden)
        changed = stage.shorten(arguments, index) if stage is not None and stage.is_short else {}
        if call.is_prefill and call.family.keeps_keys(index):
            entries = changed.get(HIDDEN_STATES, hidden).shape[1]
            self.facts.lengths[index] = entries + held(call.cache, index)
            self.facts.element_size = hidden.element_size()
        return changed

    def _select(self, index: int, hidden_states: torch.Tensor) -> None:
        """Read what the method needs of the states that enter decoder layer `index`, and choose tokens if they leave
        there."""
        if index == self.stages[0].layer - 1:
            self.evidence.read_source(hidden_states)
        if index == 0 and "attention_raters" in self.call.method.needs:
            raters = weighed_text(self.call.require_plan, self.call.method, hidden_states)
            for stage in self.stages:
                stage.evidence.raters = raters
        for stage in self.stages:
            if stage.layer == index:
                with phase(SELECTION):
                    self.facts.choices.append(stage.choose(hidden_states))

    def after_layer(self, index: int, output: Any) -> Any:
        """A short layer's output put back at its prompt positions, where the decoder adds something to it there."""
        stage = self.stage(index) if index in self.call.rejoined else None
        return None if stage is None else stage.rejoin(output)

    def reader(self, stage: int) -> EvidenceReader | None:
        """What reads for a stage, if tokens leave there."""
        drops = self.call.prunes and self.stages[stage].drops
        return self.stages[stage].evidence if drops else None

    def count_slots(self, index: int) -> None:
        """Let the cache answer a short layer with its own lengths, until `count_columns`."""
        if self.short(index) is not None:
            self._own_sizes = own_sizes()
            self._own_sizes.__enter__()

    def count_columns(self) -> None:
        """Let the cache answer with lengths in prompt columns again."""
        if self._own_sizes is not None:
            self._own_sizes.__exit__(None, None, None)
            self._own_sizes = None

    def leave(self, module: nn.Module, inputs: dict[str, Any], output: Any) -> Any:
        """Report, write on the cache what its short layers hold, and scatter the output to prompt positions.

        Raises:
            UnsupportedError: when the decoder ended before the last pruning layer.
        """
        call, facts = self.call, self.facts
        self._check(self, module, inputs, output)
        if call.prunes and len(facts.choices) < len(self.stages):
            raise UnsupportedError(
                f"{type(module).__name__} ended before its layer {call.layers[-1]}, where pruning was to begin."
            )
        for stage in self.stages:
            stage.finite.finish()
        facts.entry_bytes = {layer: size for layer in facts.lengths if (size := entry_bytes(call.cache, layer))}
        if call.is_prefill and call.plan is not None:
            self._report(Results(call.family, call.method, call.layers, call.past, call.plan, facts))
        if all(stage.compaction is None for stage in self.stages):
            return None
        records = tuple(record for stage in self.stages if (record := stage.slots.after()) is not None)
        if call.cache is not None:
            if call.method.compact_early_layers:
                first = self.stages[0].layer
                records = (compact_early_layers(call.cache, records[0]),)
                facts.lengths.update(dict.fromkeys(range(first), records[0].slots.shape[1]))
            write_records(call.cache, records, logical=call.family.mixed or records[0].layer == 0)
        compactions = [None if stage is None else stage.compaction for stage in map(self.stage, self._depth)]
        return scatter_output(output, call, compactions)

    @property
    def _depth(self) -> range:
        return range(len(self.call.family.layers))
