"""What is known of one call of a pruned model: a record that its parts read, and that knows none of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..methods import Method
from ..models import Family
from .plan import PrefillPlan

__all__ = ["Call"]


@dataclass(eq=False)
class Call:
    """One forward of a model, as far as it is known before its first layer runs.

    Attributes:
        family: the model's parts.
        method: the method that prunes.
        layers: the pruning layers: from each of them on the sequence is shorter than before.
        batch: number of rows B.
        length: columns T of this forward.
        past: columns already in the cache's whole layers.
        plan: what to prune, or None when there is nothing to look at.
        is_prefill: whether the report should speak of this forward.
        mask: the attention mask that says which columns are padding: None, (B, past + T) or (B, 1, T, keys).
        cache: the KV cache, or None.
        rejoined: decoder layers behind which the decoder adds something at prompt positions.
    """

    family: Family
    method: Method
    layers: tuple[int, ...]
    batch: int
    length: int
    past: int
    plan: PrefillPlan | None
    is_prefill: bool
    mask: torch.Tensor | None = None
    cache: Any = None
    rejoined: frozenset[int] = frozenset()

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
    def is_flash(self) -> bool:
        """Whether the decoder runs on a flash-attention kernel, which takes no mask but padding."""
        return "flash" in str(self.family.text_config._attn_implementation)
