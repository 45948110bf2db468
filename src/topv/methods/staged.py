"""What methods share that prune at several decoder layers."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from .base import Method

__all__ = ["StagedMethod"]


@dataclass(frozen=True, kw_only=True)
class StagedMethod(Method):
    """A method that prunes at several layers, so that the sequence gets shorter and shorter.

    How many tokens stay from each pruning layer on follows from one ratio, by `shares`. `visual_flops` and `kv_share`
    decide it as they do for other methods. `keep` is a mean over the layers from the first pruning layer on: the mean
    share of the tokens that they see, or with an int the mean number. So equal `keep` from equal first layers is equal
    KV bytes, whatever the number of pruning layers; with one pruning layer it is what it is elsewhere.

    Args:
        layer: number of decoder layers that see every token; the other pruning layers lie behind, by `pruning_layers`.

    Raises:
        ValueError: when `compact_early_layers` is set, besides the errors of `Method`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compact_early_layers:
            raise ValueError(
                f"compact_early_layers=True is not offered by {type(self).__name__}, whose layers hold different "
                "tokens. Leave it out."
            )

    def places(self, depth: int) -> tuple[Fraction, ...]:
        """Where the pruning layers lie between the first (0) and the decoder's end (1), ascending from 0."""
        raise NotImplementedError(f"{type(self).__name__} does not define places().")

    def pruning_layers(self, depth: int) -> tuple[int, ...]:
        first = self.pruning_layer(depth)
        layers: list[int] = []
        for place in self.places(depth):
            # Rounded half up; in a shallow decoder layers that would coincide move on, and those past its end go.
            layer = first + (2 * (depth - first) * place.numerator + place.denominator) // (2 * place.denominator)
            layers.append(max(layer, layers[-1] + 1) if layers else layer)
        return tuple(layer for layer in layers if layer < depth)

    def shares(self, ratio: Fraction, stages: int) -> tuple[Fraction, ...]:
        raise NotImplementedError(f"{type(self).__name__} does not define shares().")
