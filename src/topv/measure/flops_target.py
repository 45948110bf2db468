"""Budgets for a wanted saving: how many tokens to keep, or where to withdraw them, to save a share of FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from ..errors import InputError
from ..models import family_of

__all__ = ["keep_for_reduction", "layer_for_reduction"]

_ROUNDING = 1e-12


def keep_for_reduction(model: nn.Module, visual_tokens: int, reduction: float, layer: int) -> tuple[int, float]:
    """How many tokens K of each grid to keep, so that visual FLOPs fall by a share as near `reduction` as K allows.

    Visual FLOPs are what the decoder's layers spend on visual tokens, by `Family.visual_flops`.

    Args:
        model: the vision-language model.
        visual_tokens: tokens N in the grid.
        reduction: the wanted share of visual FLOPs to save, in [0, 1).
        layer: number of decoder layers that see every token, 0 for a method that prunes before the decoder.

    Returns:
        K, and the share that keeping K really saves.

    Raises:
        InputError: when even one token kept saves less, or an argument is out of range.
    """
    _check(visual_tokens, reduction)
    family = family_of(model)
    depth = len(family.layers)
    if not 0 <= layer < depth:
        raise InputError(f"layer={layer} leaves nothing to prune: expected 0 to {depth - 1} of {depth} layers.")
    whole = [family.visual_flops(index, visual_tokens) for index in range(depth)]

    def saved(kept: int) -> float:
        return sum(whole[i] - family.visual_flops(i, kept) for i in range(layer, depth)) / sum(whole)

    # More tokens kept save less, so the range from N down to 1 ascends.
    kept = _nearest(range(visual_tokens, 0, -1), saved, reduction, f"keeping one token from layer {layer} on")
    return kept, saved(kept)


def layer_for_reduction(model: nn.Module, visual_tokens: int, reduction: float) -> tuple[int, float]:
    """At which layer all visual tokens must leave, so that visual FLOPs fall by a share as near `reduction` as it goes.

    Args:
        model: the vision-language model.
        visual_tokens: tokens N in the grid.
        reduction: the wanted share of visual FLOPs to save, in [0, 1).

    Returns:
        The number of layers that see the visual tokens, at least 1, and the share that is really saved.

    Raises:
        InputError: when leaving after the first layer saves less, or an argument is out of range.
    """
    _check(visual_tokens, reduction)
    family = family_of(model)
    depth = len(family.layers)
    if depth < 2:
        raise InputError(f"a decoder of {depth} layer has none after which visual tokens could leave.")
    whole = [family.visual_flops(index, visual_tokens) for index in range(depth)]

    def saved(layer: int) -> float:
        return sum(whole[layer:]) / sum(whole)

    layer = _nearest(range(depth - 1, 0, -1), saved, reduction, "withdrawing every token after the first layer")
    return layer, saved(layer)


def _check(visual_tokens: int, reduction: float) -> None:
    if visual_tokens < 1:
        raise InputError(f"visual_tokens={visual_tokens}: expected at least 1.")
    if not 0 <= reduction < 1:
        raise InputError(f"reduction={reduction!r}: expected a share of visual FLOPs in [0, 1), such as 0.5.")


def _nearest(choices: Sequence[int], saved: Callable[[int], float], reduction: float, most: str) -> int:
    """The choice whose saving is nearest; savings ascend along `choices`, and a tie goes to the smaller saving.

    Raises:
        InputError: when the last choice, described by `most`, saves less than wanted.
    """
    maximum = saved(choices[-1])
    if reduction > maximum + _ROUNDING:
        raise InputError(
            f"a reduction of visual FLOPs by {reduction:.1%} is out of reach: {most} saves {maximum:.1%}, the maximum."
        )
    low, high = 0, len(choices) - 1
    while low < high:
        middle = (low + high) // 2
        if saved(choices[middle]) >= reduction:
            high = middle
        else:
            low = middle + 1
    if low > 0 and reduction - saved(choices[low - 1]) <= saved(choices[low]) - reduction:
        low -= 1
    return choices[low]
