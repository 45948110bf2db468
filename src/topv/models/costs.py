"""What a decoder costs: FLOPs and KV cache, layer by layer."""

from __future__ import annotations

from functools import cached_property

from .decoder import Decoder
from .flops import LayerFlops, layer_flops
from .kv_width import kv_width

__all__ = ["Costs"]


class Costs(Decoder):
    """A decoder whose costs are read off its modules, when first asked for."""

    @cached_property
    def layer_flops(self) -> tuple[LayerFlops, ...]:
        """What each decoder layer costs, by the length of its sequence.

        Raises:
            UnsupportedError: when a layer does something whose FLOPs are not known.
        """
        return tuple(layer_flops(self, index) for index in range(len(self.layers)))

    def visual_flops(self, layer: int, tokens: int, *, keys: int | None = None) -> int:
        """FLOPs that decoder layer `layer` spends on `tokens` visual tokens of one sample, as if they were alone.

        2 n W + 2 n m H (d_k + d_v), with W the weights of the linear maps that run on a token (of a mixture of experts
        those of the top-k) and H query heads of d_k and d_v dimensions: the count of FastV (arXiv 2403.06764, section
        4.1) with the layer's own matrices in place of its 4 d^2 + 2 d m. Where a layer is recurrent its scan stands
        for the attention's products.

        Args:
            layer: index of the decoder layer.
            tokens: visual tokens n in it.
            keys: the keys m that each attends to; n where it is None.

        Raises:
            UnsupportedError: when a decoder layer does something whose FLOPs are not known.
        """
        return self.layer_flops[layer].count(tokens, keys=keys).total

    @cached_property
    def kv_widths(self) -> tuple[int, ...]:
        """Numbers that each decoder layer keeps of one token in the KV cache: 0 for a layer that keeps none.

        Raises:
            UnsupportedError: when a layer's maps to keys and values are not found.
        """
        return tuple(kv_width(self, index) for index in range(len(self.layers)))
