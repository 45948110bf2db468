"""What one prefill really kept, in tokens, KV bytes and FLOPs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """The outcome of a prefill, taken from the shapes that ran.

    Attributes:
        method: the method, with its settings.
        layer: number of decoder layers that saw every token.
        depth: number of decoder layers.
        batch: number of samples.
        prompt_tokens: prompt tokens over the batch, padding not counted.
        visual_tokens: visual tokens over the batch.
        kept_tokens: visual tokens that stayed to the last layer.
        kv_bytes: bytes of keys and values after the prefill: over layers, the sum of
            2 * batch * padded length * KV heads * head dimension * bytes per number.
        kv_bytes_unpruned: the same for the unpruned prefill.
        visual_flops_reduction: share of the decoder's FLOPs on visual tokens that was not spent, in [0, 1], over the
            batch: 1 - sum_l F_l(n_l) / sum_l F_l(n), with F_l(n) the FLOPs of layer l on n visual tokens and nothing
            else. NaN for a model with a layer that topv cannot count.
        target: the target that the method set instead of a budget, such as "visual_flops=0.5"; None for a budget.
        reached: for each sample, the share of its visual FLOPs that was saved, or of its KV bytes that was left, that
            is nearest the target; None where the sample has no visual tokens. Empty for a budget.
        stages: each pruning layer with the visual tokens that stayed from it on.
    """

    method: str
    layer: int
    depth: int
    batch: int
    prompt_tokens: int
    visual_tokens: int
    kept_tokens: int
    kv_bytes: int
    kv_bytes_unpruned: int
    visual_flops_reduction: float
    target: str | None = None
    reached: tuple[float | None, ...] = ()
    stages: tuple[tuple[int, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain numbers, strings and lists; None for what is not a number."""
        values = {**asdict(self), "reached": list(self.reached), "stages": [list(stage) for stage in self.stages]}
        return {name: None if value != value else value for name, value in values.items()}

    def __str__(self) -> str:
        saved = 1 - self.kv_bytes / self.kv_bytes_unpruned if self.kv_bytes_unpruned else 0.0
        stages = self.stages or ((self.layer, self.kept_tokens),)
        rows = [
            ("method", self.method),
            ("pruned from layer", f"{', '.join(str(layer) for layer, _ in stages)} of {self.depth}"),
            (
                "prompt tokens",
                f"{self.prompt_tokens:,}" + (f" in {self.batch} samples" if self.batch > 1 else ""),
            ),
            ("visual tokens", " -> ".join(f"{tokens:,}" for tokens in (self.visual_tokens, *(n for _, n in stages)))),
            ("KV cache", f"{_bytes(self.kv_bytes_unpruned)} -> {_bytes(self.kv_bytes)} ({saved:.1%} less)"),
            (
                "visual FLOPs",
                "not counted" if math.isnan(self.visual_flops_reduction) else f"{self.visual_flops_reduction:.1%} less",
            ),
        ]
        if self.target is not None:
            rows.append(("target", f"{self.target}, reached {_range(self.reached)}"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _range(shares: tuple[float | None, ...]) -> str:
    """What the samples reached, from the least to the most.

    >>> _range((0.4998, None, 0.5002))
    '0.4998 to 0.5002'
    """
    shown = sorted({f"{share:.4f}" for share in shares if share is not None})
    return f"{shown[0]} to {shown[-1]}" if len(shown) > 1 else "".join(shown) or "by no visual token"


def _bytes(count: int) -> str:
    """`count` bytes with a binary unit.

    >>> _bytes(1536)
    '1.5 KiB'
    """
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"
