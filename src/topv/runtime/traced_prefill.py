"""A whole prefill while a compiler traces it: pure functions of tensors whose shapes the plan has fixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import ranking
from .arguments import CACHE, HIDDEN_STATES, MASK
from .call import Call
from .compaction import Compaction, gather_arguments, stay_index
from .masks import KeySlots, shorten_mask
from .record import CacheRecord

__all__ = ["TracedPrefill"]


@dataclass
class TracedBucket:
    """A bucket of the plan, with its tensors on the states' device.

    Attributes:
        flat: LongTensor (G, N).
        protected: BoolTensor (G, N) or None.
        count: how many tokens of each group stay.
        most_protected: the largest number of protected tokens in a group.
        sections: the grids, by shape.
        scores: float32 (G, N) of a method that needs no evidence, or None.
    """

    flat: torch.Tensor
    protected: torch.Tensor | None
    count: int
    most_protected: int
    sections: tuple[ranking.Section, ...]
    scores: torch.Tensor | None = None


class TracedPrefill:
    """The state of one prefill that is traced, or run as it was traced.

    A compiler may look at everything here: numbers are compared from call to call, tensors are inputs of the graph.

    Args:
        call: the forward that it is a part of.
        device: where the decoder runs.
    """

    def __init__(self, call: Call, device: torch.device) -> None:
        plan = call.require_plan
        self.method = call.method
        self.layer = call.layers[0]
        self.batch = call.batch
        self.length = call.length
        self.short = plan.length()
        self.rejoined = call.rejoined
        self.stays = plan.fixed.to(device)
        self.real = plan.real.to(device)
        self.valid: torch.Tensor | None = None
        if plan.ragged():
            lengths = torch.tensor(plan.row_lengths[0]).unsqueeze(1)
            self.valid = (torch.arange(self.short) >= self.short - lengths).to(device)
        self.buckets: list[TracedBucket] = []
        for bucket in plan.buckets:
            (count,) = bucket.counts
            sections = tuple(section.on(device) for section in bucket.sections)
            protected = None if bucket.protected is None else bucket.protected.to(device)
            self.buckets.append(TracedBucket(bucket.flat.to(device), protected, count, bucket.most_protected, sections))
        self.source: list[torch.Tensor] | None = None
        self.target: list[torch.Tensor] | None = None
        if not self.method.needs:
            # Nothing of the states goes into the scores, so they need not be traceable.
            for number, traced in enumerate(self.buckets):
                traced.scores = self._scores(number, traced) if traced.count else None
        self.index: torch.Tensor | None = None
        self.finite: torch.Tensor | None = None
        self.kept: list[torch.Tensor] = []
        self.recovered: list[torch.Tensor] = []
        self.importance: list[torch.Tensor | None] = []

    # ---- what hooks call while a compiler traces -----------------------------------------------------------------

    def reader(self, stage: int) -> TracedPrefill:
        """Where taps put what they read: here."""
        return self

    def concerns(self, index: int) -> bool:
        """Whether it is the layer before the pruning layer, or behind it."""
        return index >= self.layer - 1

    def read_target(self, states: torch.Tensor, *, copy: bool) -> None:
        """Take the visual tokens at the method's target position, from (B, T, D)."""
        self.target = self._visual(states)

    def before_layer(self, index: int, arguments: dict[str, Any]) -> dict[str, Any]:
        """What changes in the arguments of decoder layer `index`."""
        hidden = arguments[HIDDEN_STATES]
        if index == self.layer - 1 and "source" in self.method.needs:
            self.source = self._visual(hidden)
        if index < self.layer:
            return {}
        if index == self.layer:
            self._choose(hidden)
        return self._shorten(index, arguments)

    def leave(self, module: nn.Module, inputs: dict[str, Any], output: Any) -> Any:
        """Nothing: what was chosen is handed over when the graph has run."""

    def after_layer(self, index: int, output: Any) -> Any:
        """A short layer's output put back at its prompt positions, for a decoder that adds to it there."""
        if index not in self.rejoined or index < self.layer:
            return None
        states = output[0] if isinstance(output, tuple) else output
        full = self._compaction().scatter(states, self.real, unknown=0.0)
        return (full, *output[1:]) if isinstance(output, tuple) else full

    # ---- the steps ------------------------------------------------------------------------------------------

    def _visual(self, states: torch.Tensor) -> list[torch.Tensor]:
        tokens = states.reshape(self.batch * self.length, -1)
        return [tokens.index_select(0, b.flat.flatten()).view(*b.flat.shape, -1) for b in self.buckets]

    def _choose(self, hidden_states: torch.Tensor) -> None:
        self.finite = torch.stack([tokens.isfinite().all() for tokens in self._visual(hidden_states)]).all()
        flat = self.stays.flatten().clone()
        for number, bucket in enumerate(self.buckets):
            groups = bucket.flat.shape[0]
            if bucket.count == 0:
                self.importance.append(None)
                self.kept.append(bucket.flat.new_empty(groups, 0))
                self.recovered.append(bucket.flat.new_empty(groups, 0, dtype=torch.bool))
                continue
            scores = self._scores(number, bucket) if bucket.scores is None else bucket.scores
            self.importance.append(scores if self.method.has_importance else None)
            selection = ranking.choose(
                self.method, scores, bucket.count, protected=bucket.protected, most_protected=bucket.most_protected
            )
            self.kept.append(selection.indices)
            self.recovered.append(selection.recovered)
            flat = flat.index_fill(0, bucket.flat.gather(1, selection.indices).flatten(), True)
        self.index = stay_index(flat.view(self.batch, self.length), self.short)
        self.source = self.target = None

    def _scores(self, number: int, bucket: TracedBucket) -> torch.Tensor:
        def read(which: int) -> dict[str, torch.Tensor | None]:
            cut = bucket.sections[which].cut
            states = {name: self.source if name == "source" else self.target for name in self.method.needs}
            return {name: None if whole is None else cut(whole[number]) for name, whole in states.items()}

        return ranking.score(self.method, bucket.sections, read, bucket.count)

    def _compaction(self) -> Compaction:
        if self.index is None:
            raise RuntimeError("no tokens were selected yet.")
        return Compaction(self.index, self.valid, self.length)

    def _shorten(self, index: int, arguments: dict[str, Any]) -> dict[str, Any]:
        compaction = self._compaction()
        changed: dict[str, Any] = {}
        for name, value in arguments.items():
            whole = value.shape[1] == self.length if name == HIDDEN_STATES else True
            if name not in (MASK, CACHE) and whole:
                changed[name] = gather_arguments(value, compaction, self.batch)
        mask, valid = arguments.get(MASK), self.valid
        if mask is not None or valid is not None:
            width = self._width(arguments.get(CACHE), index)
            columns, filled = self.record().columns(width)
            if mask is None:
                causal = torch.arange(width, device=columns.device) <= torch.arange(
                    self.short, device=columns.device
                ).unsqueeze(1)
                changed[MASK] = (causal & filled[:, None, :])[:, None]
            else:
                keys = KeySlots(columns, filled, 0)
                changed[MASK] = shorten_mask(mask, keys, compaction.index)
        return changed

    def _width(self, cache: Any, index: int) -> int:
        """Keys that layer `index` of a cache returns: all its slots where it is preallocated."""
        layer: Any = None if cache is None or index >= len(cache.layers) else cache.layers[index]
        return int(layer.max_cache_len) if getattr(layer, "is_compileable", False) else self.short

    def record(self) -> CacheRecord:
        """What the short layers of the cache hold."""
        slots = self._compaction().index
        if self.valid is not None:
            slots = slots.masked_fill(~self.valid, -1)
        return CacheRecord(self.layer, self.length, slots, self.valid is not None, 0)
