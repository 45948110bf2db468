"""Budgets that a picture's own importance decides: how many tokens hold a share of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..selection import mass_counts
from .plan import Bucket, PrefillPlan

__all__ = ["decide"]


def decide(plan: PrefillPlan, scores: Sequence[torch.Tensor], mass: float) -> tuple[PrefillPlan, list[torch.Tensor]]:
    """Close an open plan, given the importance of its tokens. The host waits for the device, once.

    Args:
        plan: an open plan.
        scores: for each of its buckets float32 (G, N).
        mass: the share of each group's importance to keep.

    Returns:
        The plan with buckets of groups alike in how many stay (none if nothing leaves), and the scores for each.
    """
    found = []
    for bucket, own in zip(plan.buckets, scores, strict=True):
        protected = None if bucket.protected is None else bucket.protected.to(own.device, non_blocking=True)
        found.append(mass_counts(own, mass, protected))
    counts = iter(torch.cat([own.to(found[0].device) for own in found]).tolist())
    buckets: list[Bucket] = []
    judged: list[torch.Tensor] = []
    lengths = plan.fixed.sum(1)
    for bucket, own in zip(plan.buckets, scores, strict=True):
        alike: dict[int, list[int]] = defaultdict(list)
        for number, group in enumerate(bucket.groups):
            count = next(counts)
            alike[count].append(number)
            lengths[group[0].sample] += count
        for count, numbers in alike.items():
            index = torch.tensor(numbers, device="cpu")
            protected = None if bucket.protected is None else bucket.protected[index]
            groups = tuple(bucket.groups[number] for number in numbers)
            buckets.append(Bucket(groups, (count,), bucket.flat[index], protected))
            judged.append(own.index_select(0, index.to(own.device, non_blocking=True)))
    if not any(bucket.drops(0) for bucket in buckets):
        return replace(plan, buckets=(), row_lengths=(tuple(plan.real.sum(1).tolist()),), is_open=False), []
    return replace(plan, buckets=tuple(buckets), row_lengths=(tuple(lengths.tolist()),), is_open=False), judged
