"""Random: the control that any method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .base import Evidence, Method

__all__ = ["Random"]


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Keep visual tokens chosen uniformly at random.

    The choice depends on `seed`, on the grid's size and on its place in the prompt, never on the batch around it,
    so beams of one prompt agree and a run can be repeated. All pictures of a size keep the same cells: as a control,
    average over several seeds.

    Args:
        seed: seed of the choice.
    """

    seed: int = 0
    has_importance: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed!r} must be an integer in [0, 2**32).")

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        tokens = evidence.coordinates.shape[0]
        scores = {}
        for image in set(evidence.images):
            generator = torch.Generator("cpu").manual_seed((self.seed * 100_003 + image) % 2**32)
            scores[image] = torch.rand(tokens, generator=generator, device="cpu")
        return torch.stack([scores[image] for image in evidence.images]).to(
            evidence.coordinates.device, non_blocking=True
        )
