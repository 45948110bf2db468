"""What one prefill will keep, as far as it is known before any layer runs: counts, shapes, protected positions."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import torch

from .. import ranking
from ..errors import LayoutError, UnsupportedError
from ..layout import Grid, VisualLayout, coordinates
from ..methods import Method
from ..models import Family
from .targets import budget_counts, kept_counts

__all__ = ["Bucket", "PrefillPlan", "Section", "build_plan"]


@dataclass(frozen=True)
class Section:
    """The grids of one shape in a bucket's groups.

    Attributes:
        starts: where each of the P grids of a group begins among the group's tokens.
        grids: P * G grids, the first of every group, then the second of every group, and so on.
    """

    starts: tuple[int, ...]
    grids: tuple[Grid, ...]

    @property
    def tokens(self) -> int:
        """Visual tokens n in each grid."""
        return self.grids[0].tokens

    def on(self, device: torch.device) -> ranking.Section:
        """What ranking must know of these grids, with its tensors on `device`."""
        shape = self.grids[0].rows_and_columns
        return ranking.Section(
            starts=self.starts,
            tokens=self.tokens,
            rows_and_columns=shape,
            coordinates=coordinates(shape).to(device, non_blocking=True),
            images=tuple(grid.ordinal for grid in self.grids),
            previous=self.previous,
        )

    @property
    def previous(self) -> tuple[int, ...]:
        """For each grid the number, among these, of the grid in its place one frame earlier; -1 where there is none."""
        pictures: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number in sorted(range(len(self.grids)), key=lambda n: self.grids[n].ordinal):
            grid = self.grids[number]
            pictures[grid.sample, grid.image].append(number)
        found = [-1] * len(self.grids)
        for (sample, image), own in pictures.items():
            is_video = self.grids[own[0]].kind == "frame"
            before = [-1, *own[:-1]] if is_video else pictures.get((sample, image - 1), [])
            if len(before) == len(own):
                for number, earlier in zip(own, before, strict=True):
                    found[number] = earlier
        return tuple(found)


@dataclass(frozen=True)
class Bucket:
    """G groups of grids alike in shapes and budget. The grids of a group share their budget.

    Attributes:
        groups: the grids of each group, in prompt order; the groups in batch order.
        counts: how many tokens K of each group stay from each pruning layer on; they never rise.
        flat: LongTensor (G, N): `sample * T + column` of every token, grid after grid.
        protected: BoolTensor (G, N) of tokens that must stay, or None when there is none.
    """

    groups: tuple[tuple[Grid, ...], ...]
    counts: tuple[int, ...]
    flat: torch.Tensor
    protected: torch.Tensor | None

    @property
    def tokens(self) -> int:
        """Visual tokens N in each group."""
        return self.flat.shape[1]

    def drops(self, stage: int) -> bool:
        """Whether tokens of it leave at a pruning layer, behind `stage` earlier ones."""
        return self.counts[stage] < (self.counts[stage - 1] if stage else self.tokens)

    @cached_property
    def stride(self) -> tuple[int, int] | None:
        """Where the first token is and how far apart groups are, if every group is one run of tokens and the groups lie
        at even distances; else None."""
        first = int(self.flat[0, 0])
        step = int(self.flat[1, 0]) - first if len(self.groups) > 1 else 0
        even = first + step * torch.arange(len(self.groups), device="cpu").unsqueeze(1)
        return (first, step) if torch.equal(self.flat, even + torch.arange(self.tokens, device="cpu")) else None

    @property
    def most_protected(self) -> int:
        """The largest number of protected tokens in one group."""
        return 0 if self.protected is None else int(self.protected.sum(1).max())

    @property
    def sections(self) -> list[Section]:
        """The groups' grids, those of one shape together."""
        starts: dict[tuple[int, int], list[int]] = defaultdict(list)
        numbers: dict[tuple[int, int], list[int]] = defaultdict(list)
        at = 0
        for number, grid in enumerate(self.groups[0]):
            starts[grid.rows_and_columns].append(at)
            numbers[grid.rows_and_columns].append(number)
            at += grid.tokens
        return [
            Section(tuple(starts[shape]), tuple(group[number] for number in numbers[shape] for group in self.groups))
            for shape in starts
        ]


@dataclass(frozen=True)
class PrefillPlan:
    """A prefill's layout, with every size that pruning it will need. All tensors are on the CPU.

    Attributes:
        layout: where the visual tokens are.
        real: BoolTensor (B, T): columns that the attention mask does not hide.
        fixed: BoolTensor (B, T): columns that stay whatever the method says.
        buckets: the groups of grids that lose tokens; empty when nothing is pruned.
        row_lengths: for each pruning layer the number of columns that stay from it on in each sample.
    """

    layout: VisualLayout
    real: torch.Tensor
    fixed: torch.Tensor
    buckets: tuple[Bucket, ...]
    row_lengths: tuple[tuple[int, ...], ...]

    def length(self, stage: int = 0) -> int:
        """Padded length S of the compacted batch, from a pruning layer on that comes behind `stage` others."""
        return max(self.row_lengths[stage])

    def ragged(self, stage: int = 0) -> bool:
        """Whether rows compact to different lengths there."""
        return min(self.row_lengths[stage]) != self.length(stage)

    @property
    def tail(self) -> int:
        """Number of last columns that stay in every row, so that they can later be cropped from any cache layer."""
        return int(self.fixed.flip(1).long().cumprod(1).sum(1).min())


def build_plan(
    layout: VisualLayout,
    method: Method,
    *,
    family: Family,
    layers: tuple[int, ...],
    real: torch.Tensor,
    labels: torch.Tensor | None = None,
) -> PrefillPlan:
    """Decide every size of a prefill: K of each group of grids, and which columns no method may drop.

    Args:
        layout: the visual tokens of the batch.
        method: gives K, or the target that K is to meet, and says which grids share it.
        family: the model's parts, whose costs a target is about.
        layers: the pruning layers.
        real: BoolTensor (B, T) on the CPU, false at padding.
        labels: LongTensor (B, T) on the CPU or None; a position whose next label is not -100 stays.

    Raises:
        UnsupportedError: when the method uses places that the visual tokens do not have, or sets a target that cannot
            be counted for this model.
        InputError: when a sample cannot reach the method's target.
        LayoutError: when the mask hides visual tokens, or more tokens must stay than the budget allows.
        ValueError: when a count is larger than the grids that share it.
    """
    scored = torch.zeros_like(real)
    if labels is not None:
        scored[:, :-1] = labels[:, 1:] != -100
    positions = torch.arange(layout.length, device="cpu")
    last = torch.where(real, positions, -1).amax(1, keepdim=True)
    must_stay = scored | (positions == last)

    fixed = real | scored
    grouped: dict[tuple[tuple[tuple[int, int], ...], tuple[int, ...]], list[tuple[Grid, ...]]] = defaultdict(list)
    for grid in layout.grids:
        if not bool(real[grid.sample, grid.columns].all()):
            raise LayoutError(
                f"the attention mask hides visual tokens of grid {grid.ordinal} in sample {grid.sample}. Pass the "
                "attention mask that the processor returned for this prompt."
            )
    groups = _groups(layout, method.budget)
    for group, wanted in zip(groups, _wanted(groups, method, family, layers, real), strict=True):
        columns = torch.cat([grid.columns for grid in group])
        protected = int(must_stay[group[0].sample, columns].sum())
        counts = tuple(_count(group, method, count, protected) for count in wanted)
        if counts[-1] < columns.numel():
            _check_places(group, method)
            grouped[tuple(grid.rows_and_columns for grid in group), counts].append(group)
            fixed[group[0].sample, columns] = False

    row_lengths = fixed.sum(1).expand(len(layers), -1).clone()
    buckets = []
    for (_, counts), alike in grouped.items():
        flat = torch.stack([torch.cat([g.sample * layout.length + g.columns for g in group]) for group in alike])
        stays = must_stay.flatten()[flat]
        buckets.append(Bucket(tuple(alike), counts, flat, stays if bool(stays.any()) else None))
        for group in alike:
            row_lengths[:, group[0].sample] += torch.tensor(counts, device="cpu")
    return PrefillPlan(layout, real, fixed, tuple(buckets), tuple(map(tuple, row_lengths.tolist())))


def _groups(layout: VisualLayout, budget: str) -> list[tuple[Grid, ...]]:
    """The grids that share a budget, group by group in prompt order."""
    shared: dict[tuple[int, ...], list[Grid]] = defaultdict(list)
    for grid in layout.grids:
        own = {"grid": (grid.ordinal,), "image": (grid.image,), "sample": ()}[budget]
        shared[(grid.sample, *own)].append(grid)
    return [tuple(group) for group in shared.values()]


def _wanted(
    groups: list[tuple[Grid, ...]], method: Method, family: Family, layers: tuple[int, ...], real: torch.Tensor
) -> list[tuple[int, ...]]:
    """How many tokens of each group the method wants to keep from each pruning layer on."""
    sizes = [sum(grid.tokens for grid in group) for group in groups]
    if method.goal is None:
        return [budget_counts(method, layers, len(family.layers), size) for size in sizes]
    of_sample: dict[int, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        of_sample[group[0].sample].append(number)
    columns = real.sum(1).tolist()
    wanted: list[tuple[int, ...]] = [()] * len(groups)
    for sample, numbers in of_sample.items():
        own = [sizes[number] for number in numbers]
        for number, counts in zip(numbers, kept_counts(family, method, layers, own, columns[sample]), strict=True):
            wanted[number] = counts
    return wanted


def _check_places(group: tuple[Grid, ...], method: Method) -> None:
    for grid in group:
        if method.uses_places and not grid.spatial:
            raise UnsupportedError(
                f"{method!r} uses the places of visual tokens, and those of grid {grid.ordinal} in sample "
                f"{grid.sample} have none: either each gathers from the whole picture, or topv does not know how "
                "this architecture lays its pictures out (see `topv models`). Use a method that needs no places, "
                "such as TopV(beta=0, gamma=0)."
            )


def _count(group: tuple[Grid, ...], method: Method, count: int, protected: int) -> int:
    if count == 0:
        return protected
    if protected > count:
        raise LayoutError(
            f"{protected} visual tokens of grid {group[0].ordinal} in sample {group[0].sample} must stay (the last "
            f"position, or positions whose next label is scored), more than the {count} that {method!r} keeps. Set "
            "the labels of image tokens to -100, or keep more."
        )
    return count
