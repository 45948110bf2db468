"""A whole prefill while a compiler traces it: pure functions of tensors whose shapes the plan has fixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..layout import coordinates
from ..methods import Evidence
from ..selection import select
from .arguments import CACHE, HIDDEN_STATES, MASK
from .compaction import Compaction, gather_arguments, stay_index
from .forward import Forward
from .masks import KeySlots, shorten_mask
from .record import CacheRecord

__all__ = ["TracedPrefill"]


@dataclass
class TracedSection:
    """The grids of one shape in a bucket, with all that scoring them needs besides the states.

    Attributes:
        starts: where each grid of a group begins among the group's tokens.
        tokens: visual tokens of a grid.
        rows_and_columns: the grids' shape.
        places: float32 (N, 2), each token's (row, column), on the states' device.
        images: for each grid its number among its sample's grids.
        previous: for each grid the number of the one in its place a frame earlier, or -1.
    """

    starts: tuple[int, ...]
    tokens: int
    rows_and_columns: tuple[int, int]
    places: torch.Tensor
    images: tuple[int, ...]
    previous: tuple[int, ...]


@dataclass
class TracedBucket:
    """A bucket of the plan, with its tensors on the states' device.

    Attributes:
        flat: LongTensor (G, N).
        protected: BoolTensor (G, N) or None.
        count: how many tokens of each group stay.
        recovered: how many of them are recovered.
        sections: the grids, by shape.
        scores: float32 (G, N) of a method that needs no evidence, or None.
    """

    flat: torch.Tensor
    protected: torch.Tensor | None
    count: int
    recovered: int
    sections: tuple[TracedSection, ...]
    scores: torch.Tensor | None = None


class TracedPrefill:
    """The state of one prefill that is traced, or run as it was traced.

    A compiler may look at everything here: numbers are compared from call to call, tensors are inputs of the graph.

    Args:
        forward: the forward that it is a part of.
        device: where the decoder runs.
    """

    def __init__(self, forward: Forward, device: torch.device) -> None:
        plan = forward.plan
        if plan is None:
            raise RuntimeError("this forward prunes nothing.")
        self.method = forward.method
        self.layer = forward.stages[0].layer
        self.batch = forward.batch
        self.length = forward.length
        self.short = plan.length()
        self.rejoined = forward.rejoined
        self.stays = plan.fixed.to(device)
        self.real = plan.real.to(device)
        self.valid: torch.Tensor | None = None
        if plan.ragged():
            lengths = torch.tensor(plan.row_lengths[0]).unsqueeze(1)
            self.valid = (torch.arange(self.short) >= self.short - lengths).to(device)
        self.buckets: list[TracedBucket] = []
        for bucket in plan.buckets:
            recovered, (count,) = 0, bucket.counts
            if count:
                recovered = min(self.method.recovered(count, bucket.tokens), count - bucket.most_protected)
            sections = tuple(
                TracedSection(
                    section.starts,
                    section.tokens,
                    section.grids[0].rows_and_columns,
                    coordinates(section.grids[0].rows_and_columns).to(device),
                    tuple(grid.ordinal for grid in section.grids),
                    section.previous,
                )
                for section in bucket.sections
            )
            protected = None if bucket.protected is None else bucket.protected.to(device)
            self.buckets.append(TracedBucket(bucket.flat.to(device), protected, count, recovered, sections))
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

    @property
    def evidence(self) -> TracedPrefill:
        """Where taps put what they read: here."""
        return self

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
            if bucket.protected is not None:
                scores = scores.masked_fill(bucket.protected, float("inf"))
            selection = select(scores, bucket.count, bucket.recovered)
            self.kept.append(selection.indices)
            self.recovered.append(selection.recovered)
            flat = flat.index_fill(0, bucket.flat.gather(1, selection.indices).flatten(), True)
        self.index = stay_index(flat.view(self.batch, self.length), self.short)
        self.source = self.target = None

    def _scores(self, number: int, bucket: TracedBucket) -> torch.Tensor:
        pieces: dict[int, torch.Tensor] = {}
        for section in bucket.sections:
            source = None if self.source is None else _cut(self.source[number], section)
            target = None if self.target is None else _cut(self.target[number], section)
            if source is not None and target is not None and source.shape[-1] > target.shape[-1]:
                source = source.unflatten(-1, (-1, target.shape[-1])).mean(-2)
            evidence = Evidence(
                section.rows_and_columns, section.places, section.images, source, target, previous=section.previous
            )
            scores = self.method.score(evidence, min(bucket.count, section.tokens))
            pieces.update(zip(section.starts, scores.chunk(len(section.starts)), strict=True))
        return torch.cat([pieces[start] for start in sorted(pieces)], dim=1)

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


def _cut(states: torch.Tensor, section: TracedSection) -> torch.Tensor:
    """The tokens (P * G, n, D) of a section's grids, out of their groups' (G, N, D)."""
    return torch.cat([states[:, start : start + section.tokens] for start in section.starts])
