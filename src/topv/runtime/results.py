"""Reading a finished prefill: its report, and per sample what was kept and why."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from ..errors import UnsupportedError
from ..layout import Grid
from ..methods import Method
from ..models import Family
from .compaction import Choice
from .plan import PrefillPlan
from .report import Report
from .targets import Cost, cached, prefill_cost

__all__ = ["PrefillFacts", "Results"]


@dataclass
class PrefillFacts:
    """What a prefill chose, and what it left in the cache.

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


class Results:
    """What one prefill kept, and why. Reading it copies from the device; running the model never waits for it.

    Args:
        family: the model's parts.
        method: the method that pruned.
        layers: the pruning layers.
        past: columns that were in the KV cache before.
        plan: what was to be pruned.
        facts: what was.
    """

    def __init__(
        self, family: Family, method: Method, layers: tuple[int, ...], past: int, plan: PrefillPlan, facts: PrefillFacts
    ) -> None:
        self._family = family
        self._method = method
        self._layers = layers
        self._past = past
        self.plan = plan
        self._facts = facts

    def report(self) -> Report:
        """The counts, bytes and FLOPs of the prefill."""
        plan, facts, family = self.plan, self._facts, self._family
        visual = plan.layout.visual_tokens
        stays = [sum(counts) for counts in zip(*(after for _, after in self.visual_tokens()), strict=True)]
        entries = {index: facts.entry_bytes.get(index) or self._entry_bytes(index) for index in facts.lengths}
        whole = self._past + plan.layout.length
        limits = family.cache_limits
        goal = self._method.goal

        return Report(
            method=repr(self._method),
            layer=self._layers[0],
            depth=len(family.layers),
            batch=plan.layout.batch,
            prompt_tokens=int(plan.real.sum()),
            visual_tokens=visual,
            kept_tokens=stays[-1],
            stages=tuple(zip(self._layers, stays, strict=True)),
            kv_bytes=sum(entries[i] * cached(n, limits[i]) for i, n in facts.lengths.items()),
            kv_bytes_unpruned=sum(entries[i] * cached(whole, limits[i]) for i in facts.lengths),
            visual_flops_reduction=self._flops_reduction(),
            target=None if goal is None else "{}={:g}".format(*goal),
            reached=() if goal is None else self._reached(goal[0]),
        )

    def _entry_bytes(self, layer: int) -> int:
        """Bytes of one entry in a layer's KV cache over the batch, where no cache was there to be read."""
        return self._family.kv_widths[layer] * self.plan.layout.batch * self._facts.element_size

    def visual_tokens(self) -> list[tuple[int, tuple[int, ...]]]:
        """For each sample, its visual tokens at first and from each pruning layer on."""
        batch, stages = self.plan.layout.batch, len(self._layers)
        whole, short = [0] * batch, [[0] * stages for _ in range(batch)]
        for grid in self.plan.layout.grids:
            whole[grid.sample] += grid.tokens
        for stage in range(stages):
            for sample, tokens in enumerate(whole):
                short[sample][stage] = tokens
        for stage, choice in enumerate(self._facts.choices):
            for bucket, indices in zip(self.plan.buckets, choice.kept, strict=True):
                for group in bucket.groups:
                    short[group[0].sample][stage] -= bucket.tokens - indices.shape[1]
        return [(tokens, tuple(after)) for tokens, after in zip(whole, short, strict=True)]

    def columns(self) -> tuple[int, tuple[int, ...]]:
        """Padded length of this forward before and from each pruning layer on."""
        whole = self.plan.layout.length
        stages = range(len(self._layers))
        return whole, tuple(self.plan.length(stage) if self.plan.buckets else whole for stage in stages)

    def _flops_reduction(self) -> float:
        try:
            costs = [(self._cost("visual_flops", n), n, kept) for n, kept in self.visual_tokens() if n]
        except UnsupportedError:
            return math.nan
        spent = sum(cost.spent(kept) for cost, _, kept in costs)
        unpruned = sum(cost.whole for cost, _, _ in costs)
        return 1 - spent / unpruned if unpruned else 0.0

    def _reached(self, goal: str) -> tuple[float | None, ...]:
        """What each sample saves of its visual FLOPs, or leaves of its KV bytes; None where it has no visual tokens."""
        reached: list[float | None] = []
        for (tokens, kept), columns in zip(self.visual_tokens(), self.plan.real.sum(1).tolist(), strict=True):
            share = self._cost(goal, tokens, columns).share(kept)
            reached.append(float(1 - share if goal == "visual_flops" else share) if tokens else None)
        return tuple(reached)

    def _cost(self, goal: str, tokens: int, columns: int = 0) -> Cost:
        return prefill_cost(
            self._family,
            goal,
            self._layers,
            tokens=tokens,
            columns=columns,
            compact_early_layers=self._method.compact_early_layers,
        )

    def kept_positions(self, stage: int = -1) -> list[torch.Tensor]:
        """For each sample, the columns of its visual tokens kept from the last pruning layer on, or from that behind
        `stage` others, ascending: LongTensor on the CPU."""
        columns = self._columns_left_alone()
        kept = self._facts.choices[stage].kept if self._facts.choices else []
        for bucket, indices in zip(self.plan.buckets, kept, strict=True):
            for group, kept in zip(bucket.groups, indices.cpu(), strict=True):
                columns[group[0].sample].append(_columns(group)[kept] + self._past)
        return [_ascending(parts) for parts in columns]

    def recovered_positions(self) -> list[torch.Tensor]:
        """For each sample, the kept columns that were recovered, ascending: LongTensor on the CPU."""
        columns: list[list[torch.Tensor]] = [[] for _ in range(self.plan.layout.batch)]
        for group, number, index in self._judged():
            choice = self._facts.choices[-1]
            kept, recovered = choice.kept[number][index].cpu(), choice.recovered[number][index].cpu()
            columns[group[0].sample].append(_columns(group)[kept[recovered]] + self._past)
        return [_ascending(parts) for parts in columns]

    def importance(self) -> list[torch.Tensor | None]:
        """For each sample, float32 importance of its visual tokens in prompt order, or None. Tokens of a grid that
        lost nothing, in a sample where another did, are not judged and hold NaN. Of several pruning layers the first
        that judged counts, since it judged all of them."""
        scored: dict[int, dict[int, torch.Tensor]] = {}
        for group, number, index in self._judged():
            scores = next((c.importance[number] for c in self._facts.choices if c.importance[number] is not None), None)
            if scores is not None:
                pieces = scores[index].float().cpu().split([grid.tokens for grid in group])
                for grid, piece in zip(group, pieces, strict=True):
                    scored.setdefault(grid.sample, {})[grid.ordinal] = piece
        result: list[torch.Tensor | None] = []
        for sample in range(self.plan.layout.batch):
            if sample not in scored:
                result.append(None)
                continue
            grids = [grid for grid in self.plan.layout.grids if grid.sample == sample]
            unknown = float("nan")
            parts = [
                scored[sample].get(grid.ordinal, torch.full((grid.tokens,), unknown, device="cpu")) for grid in grids
            ]
            result.append(torch.cat(parts))
        return result

    def _judged(self) -> Iterator[tuple[tuple[Grid, ...], int, int]]:
        for number, bucket in enumerate(self.plan.buckets):
            for index, group in enumerate(bucket.groups):
                yield group, number, index

    def _columns_left_alone(self) -> list[list[torch.Tensor]]:
        judged = {(grid.sample, grid.ordinal) for group, _, _ in self._judged() for grid in group}
        columns: list[list[torch.Tensor]] = [[] for _ in range(self.plan.layout.batch)]
        for grid in self.plan.layout.grids:
            if (grid.sample, grid.ordinal) not in judged:
                columns[grid.sample].append(grid.columns + self._past)
        return columns


def _columns(group: tuple[Grid, ...]) -> torch.Tensor:
    return torch.cat([grid.columns for grid in group])


def _ascending(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(parts).sort().values if parts else torch.empty(0, dtype=torch.long, device="cpu")
