"""One forward of a pruned model: what its hooks share, from the first look at the prompt to the scattered output."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..methods import Method
from ..models import Family
from .compaction import Choice
from .evidence import EvidenceReader
from .phases import SELECTION, phase
from .plan import PrefillPlan
from .raters import weighed_text
from .record import CacheRecord, record_at
from .stage import Stage

__all__ = ["Forward", "Outcome", "current_forward", "set_forward"]

_current: ContextVar[Forward | None] = ContextVar("topv_forward", default=None)


def current_forward() -> Forward | None:
    """The forward that is running in this context, or None."""
    return _current.get()


def set_forward(forward: Forward | None) -> None:
    """Make `forward` the one that is running in this context."""
    _current.set(forward)


@dataclass
class Outcome:
    """What a prefill chose, for `Pruning` to report.

    Attributes:
        lengths: for each layer that keeps keys, by its index, the entries in its KV cache after the prefill (or that
            it would hold, without a cache).
        entry_bytes: for each of them, bytes of one entry over the batch.
        choices: what was chosen, stage by stage; empty when nothing was.
        element_size: bytes per number in the hidden states, and so in the KV cache.
    """

    lengths: dict[int, int] = field(default_factory=dict)
    entry_bytes: dict[int, int] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    element_size: int = 0


class Forward:
    """The state of one forward. It lives in a context variable and dies with the forward.

    Args:
        owner: the pruning whose hooks run it.
        opened_by: the module whose hook began it, and whose hook will end it.
        family: the model's parts.
        method: the method that prunes.
        layers: the pruning layers: from each of them on the sequence is shorter than before.
        batch: number of rows B.
        length: columns T of this forward.
        past: columns already in the cache's whole layers.
        plan: what to prune, or None when this forward prunes nothing.
        is_prefill: whether the report should speak of this forward.
    """

    def __init__(
        self,
        *,
        owner: object,
        opened_by: nn.Module,
        family: Family,
        method: Method,
        layers: tuple[int, ...],
        batch: int,
        length: int,
        past: int,
        plan: PrefillPlan | None,
        is_prefill: bool,
    ) -> None:
        self.owner = owner
        self.opened_by = opened_by
        self.family = family
        self.method = method
        self.batch = batch
        self.length = length
        self.past = past
        self.plan = plan
        self.is_prefill = is_prefill
        self.thread = threading.get_ident()
        self.outer: Forward | None = None
        self.joined: set[nn.Module] = set()
        self.in_decoder = False
        self.own_sizes: AbstractContextManager[None] | None = None
        self.outcome = Outcome()
        self.mask: torch.Tensor | None = None
        self.cache: Any = None
        self.held_before: dict[int, int] = {}
        self.rejoined: frozenset[int] = frozenset()
        self.stages: list[Stage] = []
        for number, layer in enumerate(layers if self.prunes else ()):
            self.stages.append(Stage(self, number, layer, before=self.stages[-1] if self.stages else None))

    @property
    def prunes(self) -> bool:
        """Whether this forward shortens the sequence."""
        return self.plan is not None and bool(self.plan.buckets)

    @property
    def require_plan(self) -> PrefillPlan:
        """The plan of a forward that prunes.

        Raises:
            RuntimeError: when it prunes nothing.
        """
        if self.plan is None:
            raise RuntimeError("this forward prunes nothing.")
        return self.plan

    @property
    def evidence(self) -> EvidenceReader:
        """What is read of this forward's visual tokens before any are dropped.

        Raises:
            RuntimeError: when it prunes nothing.
        """
        if not self.stages:
            raise RuntimeError("this forward prunes nothing, so it reads no evidence.")
        return self.stages[0].evidence

    @property
    def is_flash(self) -> bool:
        """Whether the decoder runs on a flash-attention kernel, which takes no mask but padding."""
        return "flash" in str(self.family.text_config._attn_implementation)

    def resume(self, records: tuple[CacheRecord, ...]) -> None:
        """Go on from what the cache holds in its short layers."""
        if not self.prunes:
            self.stages = [Stage(self, number, record.layer) for number, record in enumerate(records)]
        for stage in self.stages:
            stage.record = record_at(records, stage.layer)

    def select(self, index: int, hidden_states: torch.Tensor) -> None:
        """Read what the method needs of the states that enter decoder layer `index`, and choose tokens if they leave
        there. For forwards that prune."""
        if index == self.stages[0].layer - 1:
            self.evidence.read_source(hidden_states)
        if index == 0 and "attention_raters" in self.method.needs:
            raters = weighed_text(self.require_plan, self.method, hidden_states)
            for stage in self.stages:
                stage.evidence.raters = raters
        for stage in self.stages:
            if stage.layer == index:
                with phase(SELECTION):
                    self.outcome.choices.append(stage.choose(hidden_states))

    def stage(self, layer: int) -> Stage | None:
        """The stage that decoder layer `layer` is in, or None while every column is there."""
        return next((stage for stage in reversed(self.stages) if stage.layer <= layer), None)

    def short(self, layer: int) -> Stage | None:
        """The stage that decoder layer `layer` is in, if the layer sees a shortened sequence."""
        stage = self.stage(layer)
        return stage if stage is not None and stage.is_short else None

    def records(self) -> tuple[CacheRecord, ...]:
        """What the cache should carry of its short layers once this forward is over."""
        return tuple(record for stage in self.stages if (record := stage.after()) is not None)

    def release(self) -> None:
        """Let go of what holds this forward: it ends now, not when garbage is next collected."""
        for stage in self.stages:
            stage.masks.release()
        self.stages = []
