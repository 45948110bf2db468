"""PyramidDrop: at the end of each stage of the decoder a share of the visual tokens leaves."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch

from .base import Evidence
from .staged import StagedMethod

__all__ = ["PyramidDrop"]


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(StagedMethod):
    r"""Cut the decoder into stages, and at the end of each keep the share of the visual tokens attended to most.

    Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
    CVPR 2025 (arXiv 2410.17247). With S stages of L / S layers and N visual tokens, stage s = 0 .. S - 1 sees

        N_s = lambda^s N

    of them, those that get most attention from the last instruction token in the last layer of the stage before,
    averaged over heads. The paper takes S = 4 and lambda = 0.5.

    Where this differs from the paper: lambda follows from the budget (see `StagedMethod` for `keep`), and is the same
    at every stage. The paper's lambda of 0.5 is `PyramidDrop.paper()`. Attention is that of the stage's last layer, as
    the paper's text has it; its code takes the projections of the layer behind.

    Args:
        stages: how many stages S the decoder is cut into, at least 2.
        layer: where the first stage ends; None cuts stages of one length. Those behind always share the rest evenly.
    """

    stages: int = 4
    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.stages, bool) or not isinstance(self.stages, int) or self.stages < 2:
            raise ValueError(f"stages={self.stages!r} must be an integer of at least 2.")

    @classmethod
    def paper(cls) -> PyramidDrop:
        """The published setting: four stages, of which each keeps half of what the one before has. Behind the first
        stage that is a mean share of (1/2 + 1/4 + 1/8) / 3 in a decoder whose depth divides by 4."""
        return cls(keep=7 / 24)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"attention_row"})

    def default_layer(self, depth: int) -> int:
        return max(1, depth // self.stages)

    def places(self, depth: int) -> tuple[Fraction, ...]:
        return tuple(Fraction(stage, self.stages - 1) for stage in range(self.stages - 1))

    def shares(self, ratio: Fraction, stages: int) -> tuple[Fraction, ...]:
        return tuple(ratio ** (stage + 1) for stage in range(stages))

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        if evidence.attention is None:
            raise ValueError("PyramidDrop needs evidence.attention (G, N), and got None.")
        return evidence.attention
