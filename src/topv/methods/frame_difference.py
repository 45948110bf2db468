"""FrameDifference: of a video's frames, drop first what did not change since the frame before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from .. import transport
from .base import Evidence
from .topv import TopV

__all__ = ["FrameDifference"]


@dataclass(frozen=True, kw_only=True)
class FrameDifference(TopV):
    r"""Drop the tokens that did not change since the frame before, then rank the rest as `TopV` does.

    With s_ti the source token in cell i of frame t and z_ti its importance by `TopV`, standardised within the frame,
    the score of a token is

        z_ti                    where t is the first frame, or 1 - cos(s_ti, s_{t-1,i}) > threshold
        z_ti - 2 sqrt(N)        elsewhere

    |z_ti| is below sqrt(N), so every token that changed goes before every one that did not, and within both `TopV`
    decides. Frames are the frames of a video, or images that follow one another in a prompt, each compared with the one
    before it, cell by cell. A prompt with one picture is ranked as `TopV` ranks it.

    The budget is the whole sample's by default: a frame in which much changed keeps more than one in which little did.

    This method is topv's own. Videos' static tokens are set apart by others too, to be merged: PruneVid (Huang et al.,
    arXiv 2412.16117) and DyCoke (Tao et al., CVPR 2025, arXiv 2411.15024).

    Args:
        threshold: the cosine distance in [0, 2] that a token must exceed to have changed.
    """

    budget: Literal["grid", "image", "sample"] = "sample"
    threshold: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.threshold, bool) or not 0 <= self.threshold <= 2:
            raise ValueError(f"threshold={self.threshold!r} must be in [0, 2]: a cosine distance.")

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        importance = transport.standardise(super().score(evidence, count).float())
        static = ~self.changed(evidence)
        return importance - 2 * math.sqrt(importance.shape[1]) * static

    @torch.no_grad()
    def changed(self, evidence: Evidence) -> torch.Tensor:
        """Which tokens changed since the frame before: BoolTensor (G, N), true throughout a first frame.

        Raises:
            ValueError: when source tokens were not read.
        """
        source = evidence.encoder_source if self.stage == "encoder" else evidence.source
        if source is None:
            raise ValueError(f"FrameDifference needs source tokens of the {self.stage}, and got None.")
        grids, tokens = source.shape[:2]
        previous = (-1,) * grids if evidence.previous is None else evidence.previous
        if max(previous) < 0:
            return torch.ones(grids, tokens, dtype=torch.bool, device=source.device)
        unit = functional.normalize(source.float(), dim=2)
        number = torch.tensor(previous, device="cpu").to(source.device, non_blocking=True)
        distance = 1 - (unit * unit[number.clamp(min=0)]).sum(2)
        return (number < 0).unsqueeze(1) | (distance > self.threshold)
