"""Budgets for a wanted saving: how many tokens of each sample to keep to save a share of FLOPs or of KV bytes.

Everything here is integer arithmetic on the host, over one sample at a time and without its padding, so that what a
sample keeps does not depend on the batch it is in.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from ..budget import keep_count
from ..errors import InputError
from ..methods import Method
from ..models import Family
from ..models.flops import LayerFlops

__all__ = ["Cost", "budget_counts", "cached", "kept_counts", "layer_for_reduction", "prefill_cost"]

_STEPS = 2**30
"""Of how many ratios one is chosen where several pruning layers follow from it: so many that few lie between two
ratios at which some layer gets a token more."""


@dataclass(frozen=True)
class Cost:
    """What the prefill of one sample costs, by how many of its visual tokens stay.

    Attributes:
        tokens: its visual tokens N.
        stages: how many pruning layers there are.
        spent: FLOPs or KV numbers when so many of them stay from each pruning layer on, from 0 to N; it never falls
            as more do.
    """

    tokens: int
    stages: int
    spent: Callable[[Sequence[int]], int]

    @property
    def whole(self) -> int:
        """What the unpruned prefill spends."""
        return self.spent((self.tokens,) * self.stages)

    def share(self, kept: Sequence[int]) -> Fraction:
        """What is spent when `kept` tokens stay from each pruning layer on, over what the unpruned prefill spends."""
        whole = self.whole
        return Fraction(self.spent(kept), whole) if whole else Fraction(1)


def prefill_cost(
    family: Family, goal: str, layers: Sequence[int], *, tokens: int, columns: int, compact_early_layers: bool = False
) -> Cost:
    """The cost that a target speaks of.

    Args:
        family: the model's parts.
        goal: "visual_flops" (what the decoder's layers spend on visual tokens) or "kv_share" (numbers in the KV cache
            after the prefill, of visual and text tokens, in every layer that keeps keys, as far as its window goes).
        layers: the pruning layers, ascending.
        tokens: visual tokens of the sample.
        columns: all its tokens in this forward, padding not counted.
        compact_early_layers: whether the layers before the first of them forget the pruned tokens' keys too.

    Raises:
        UnsupportedError: when a decoder layer has FLOPs, or keys, that topv cannot count.
    """

    def stage(index: int) -> int:
        """0 for a layer that sees every token, then 1, 2, ... from each pruning layer on."""
        return bisect_right(layers, index)

    if goal == "kv_share":
        caches: Counter[tuple[int, int | None, int]] = Counter(
            (width, limit, stage(max(index, layers[0])) if compact_early_layers else stage(index))
            for index, (width, limit) in enumerate(zip(family.kv_widths, family.cache_limits, strict=True))
        )

        def kv_numbers(kept: Sequence[int]) -> int:
            here = (tokens, *kept)
            return sum(
                times * width * cached(columns - tokens + here[at], limit)
                for (width, limit, at), times in caches.items()
            )

        return Cost(tokens, len(layers), kv_numbers)

    # Most layers are alike, and each kind is counted once.
    kinds: Counter[tuple[LayerFlops, int, int]] = Counter(
        (flops, stage(index), stage(lender))
        for index, (flops, lender) in enumerate(zip(family.layer_flops, family.key_layers, strict=True))
    )

    def visual_flops(kept: Sequence[int]) -> int:
        here = (tokens, *kept)
        return sum(times * flops.count(here[at], keys=here[of]).total for (flops, at, of), times in kinds.items())

    return Cost(tokens, len(layers), visual_flops)


def cached(columns: int, limit: int | None) -> int:
    """Entries in a layer's KV cache after a prompt of `columns` columns."""
    return columns if limit is None else min(columns, limit)


def budget_counts(method: Method, layers: tuple[int, ...], depth: int, size: int) -> tuple[int, ...]:
    """How many of the `size` tokens that share a budget stay from each pruning layer on, under the method's `keep`.

    With several pruning layers `keep` is a mean over the layers from the first of them on; the ratio is chosen whose
    mean is nearest; of two as near, the one that keeps more.

    Args:
        method: a method without a goal.
        layers: the pruning layers, ascending.
        depth: number of decoder layers.
        size: tokens that share the budget.

    Raises:
        ValueError: when `keep` is a count above `size`.
    """
    keep = method.keep
    if len(layers) == 1 or keep is None:
        return (method.count(size),)
    deep = [end - start for start, end in zip(layers, (*layers[1:], depth), strict=True)]
    mean = Fraction(keep_count(size, keep)) if isinstance(keep, int) else Fraction(repr(keep)) * size

    def counts(step: int) -> tuple[int, ...]:
        return _staged(method, Fraction(step + 1, _STEPS), len(layers), size)

    def held(step: int) -> int:
        return sum(count * times for count, times in zip(counts(step), deep, strict=True))

    return counts(_nearest_step(_STEPS, held, mean * sum(deep)))


def _staged(method: Method, ratio: Fraction, stages: int, size: int) -> tuple[int, ...]:
    """K = max(1, floor(share n + 1/2)) of `size` tokens n from each pruning layer on, for the method's shares."""
    return tuple(_rounded(share.numerator, share.denominator, size) for share in method.shares(ratio, stages))


def _rounded(numerator: int, denominator: int, size: int) -> int:
    return max(1, (2 * numerator * size + denominator) // (2 * denominator))


def kept_counts(
    family: Family, method: Method, layers: Sequence[int], sizes: Sequence[int], columns: int
) -> list[tuple[int, ...]]:
    """How many tokens each budget of one sample keeps from each pruning layer on, for the method's target.

    All budgets get the same ratio r, from which the method's shares follow: K = max(1, floor(share n + 1/2)), as for a
    `keep` of that share. r is the one whose cost is nearest the target; of two as near, the one that keeps more.

    Args:
        family: the model's parts.
        method: a method with a goal.
        layers: the pruning layers, ascending.
        sizes: visual tokens n in each budget.
        columns: tokens of the sample in this forward, padding not counted.

    Raises:
        InputError: when even one token for each budget leaves more than wanted.
        UnsupportedError: when the target cannot be counted for the model.
    """
    if method.goal is None:
        raise ValueError(f"{method!r} has no target to resolve.")
    goal, share = method.goal
    compact = method.compact_early_layers
    cost = prefill_cost(family, goal, layers, tokens=sum(sizes), columns=columns, compact_early_layers=compact)
    # At its decimal value, which is what was typed.
    wanted = Fraction(repr(share))
    left = 1 - wanted if goal == "visual_flops" else wanted
    ratios, denominator = _ratios(sizes) if len(layers) == 1 else (range(1, _STEPS + 1), _STEPS)

    def counts(step: int) -> list[tuple[int, ...]]:
        if len(layers) == 1:
            return [(_rounded(ratios[step], denominator, size),) for size in sizes]
        ratio = Fraction(ratios[step], denominator)
        of_size = {size: _staged(method, ratio, len(layers), size) for size in set(sizes)}
        return [of_size[size] for size in sizes]

    def spent(step: int) -> int:
        return cost.spent([sum(own) for own in zip(*counts(step), strict=True)])

    whole = cost.whole
    if left * whole < spent(0):
        saved = 1 - Fraction(spent(0), whole)
        raise _out_of_reach(method, goal, layers[0], saved, tokens=cost.tokens, budgets=len(sizes))
    return counts(_nearest_step(len(ratios), spent, left * whole))


def _ratios(sizes: Sequence[int]) -> tuple[Sequence[int], int]:
    """Every ratio at which one of the budgets gets a token more, ascending, as numerators over a denominator."""
    distinct = set(sizes)
    if len(distinct) == 1:
        size = distinct.pop()
        return range(1, 2 * size, 2), 2 * size
    common = math.lcm(*distinct)
    steps = {(2 * count - 1) * (common // size) for size in distinct for count in range(1, size + 1)}
    return sorted(steps), 2 * common


def _nearest_step(steps: int, spent: Callable[[int], int], wanted: Fraction) -> int:
    """The step of 0 .. `steps` - 1 whose cost, which never falls, is nearest; of steps as near, the last."""
    step = _first(steps, lambda i: spent(i) >= wanted)
    if step == steps or (step > 0 and wanted - spent(step - 1) < spent(step) - wanted):
        step -= 1
    reached = spent(step)
    return _first(steps, lambda i: spent(i) > reached) - 1


def _first(steps: int, holds: Callable[[int], bool]) -> int:
    """The first of 0 .. `steps` - 1 for which a condition holds that, once it does, goes on holding; else `steps`."""
    low, high = 0, steps
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _out_of_reach(method: Method, goal: str, layer: int, saved: Fraction, *, tokens: int, budgets: int) -> InputError:
    least = f"keeping {budgets} of {tokens} visual tokens" + (", one for each budget," if budgets > 1 else "")
    limit = (
        f"saves {float(saved):.4%} of the visual FLOPs, the maximum"
        if goal == "visual_flops"
        else f"leaves {float(1 - saved):.4%} of the KV bytes, the minimum"
    )
    return InputError(
        f"{goal}={getattr(method, goal)!r} is out of reach: {least} from layer {layer} on {limit}. Ask for less, or "
        "prune from an earlier layer."
    )


def layer_for_reduction(family: Family, visual_tokens: int, reduction: float) -> int:
    """At which layer all visual tokens of a sample must leave, so that a share of its visual FLOPs is saved as near
    `reduction` as layers allow; of two as near, the later.

    Args:
        family: the model's parts.
        visual_tokens: visual tokens of the sample.
        reduction: the wanted share in [0, 1).

    Returns:
        The number of layers that see the visual tokens, at least 1.

    Raises:
        InputError: when leaving after the first layer saves less, or an argument is out of range.
        UnsupportedError: when a decoder layer does something whose FLOPs are not known.
    """
    depth = len(family.layers)
    if visual_tokens < 1:
        raise InputError(f"visual_tokens={visual_tokens}: expected at least 1.")
    if not 0 <= reduction < 1:
        raise InputError(f"reduction={reduction!r}: expected a share of visual FLOPs in [0, 1), such as 0.5.")
    if depth < 2:
        raise InputError(f"a decoder of {depth} layer has none after which visual tokens could leave.")

    def spent(step: int) -> int:
        cost = prefill_cost(family, "visual_flops", (step + 1,), tokens=visual_tokens, columns=visual_tokens)
        return cost.spent((0,))

    whole = sum(family.visual_flops(index, visual_tokens) for index in range(depth))
    left = (1 - Fraction(repr(reduction))) * whole
    if left < spent(0):
        raise InputError(
            f"a reduction of visual FLOPs by {reduction:.4%} is out of reach: withdrawing every token after the first "
            f"layer saves {float(1 - Fraction(spent(0), whole)):.4%}, the maximum."
        )
    return _nearest_step(depth - 1, spent, left) + 1
