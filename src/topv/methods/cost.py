"""The settings that methods built on the transport cost matrix share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from ..budget import recovered_count
from .base import TARGETS, Evidence, Method

__all__ = ["STAGES", "CostMethod"]

Stage = Literal["decoder", "encoder", "projector"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""Where the transport problem can be posed."""

_POST_NORM = "post_norm"


@dataclass(frozen=True, kw_only=True)
class CostMethod(Method):
    """A method that poses the cost C = alpha F + beta S + gamma E between source and target tokens.

    Args:
        stage: where the problem is posed: in the "decoder" layer `layer - 1`; in the "encoder", in the block of the
            vision tower whose output becomes visual tokens; or at the "projector", among the visual tokens that it
            hands to the decoder, which are sources and targets both. Behind the last two no decoder layer need see
            every token.
        layer: number of decoder layers that see every token; None means 2 with stage="decoder", else 0.
        target: where target tokens are read in that layer or block: "pre_norm" (what enters attention), "attention"
            (what leaves it), "post_norm" (what enters the MLP; the paper's choice) or "mlp" (what leaves it).
        alpha: weight of the feature distance F.
        beta: weight of the spatial distance S.
        gamma: weight of the distance E from the grid's centre.
        sigma: width of the spatial Gaussian, in grid cells.
        normalize: whether source and target features are scaled to unit length before F is taken; with stage="encoder"
            the mean over the grid is taken off them first.
        scale: whether F is divided by its "max" or its "mean" within each grid.
        recovery: share in [0, 1) of the kept tokens that is a uniform sample of the tokens ranked lower.
    """

    layer: int | None = None
    stage: Stage = "decoder"
    target: str = _POST_NORM
    alpha: float = 1.0
    beta: float = 0.0
    gamma: float = 0.0
    sigma: float = 3.0
    normalize: bool = True
    scale: Literal["max", "mean"] = "max"
    recovery: float = 0.0

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"stage={self.stage!r} is not one of {', '.join(STAGES)}: where the evidence is read.")
        if self.target not in TARGETS:
            raise ValueError(f"target={self.target!r} is not one of {', '.join(TARGETS)}.")
        if self.stage == "projector" and (self.layer or self.target != _POST_NORM):
            raise ValueError(
                f"layer={self.layer!r} and target={self.target!r} name a place in a layer, but with stage='projector' "
                "the tokens that the projector made are sources and targets, before any layer. Leave both out."
            )
        if self.layer is None:
            object.__setattr__(self, "layer", 2 if self.stage == "decoder" else 0)
        super().__post_init__()
        if self.scale not in ("max", "mean"):
            raise ValueError(f"scale={self.scale!r} must be 'max' or 'mean'.")
        for name in ("alpha", "beta", "gamma"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name}={value!r} must be a finite number of at least 0.")
        if not math.isfinite(self.sigma) or self.sigma <= 0:
            raise ValueError(f"sigma={self.sigma!r} must be a finite number above 0, in grid cells.")
        if not 0 <= self.recovery < 1:
            raise ValueError(f"recovery={self.recovery!r} must be in [0, 1): a share of the kept tokens.")

    @property
    def needs(self) -> frozenset[str]:
        names = {"source", self.target}
        if self.stage == "encoder":
            names = {f"encoder_{name}" for name in names}
        elif self.stage == "projector":
            names = {"source"}
        return frozenset(names)

    def problem(self, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
        """Source and target tokens (G, N, D) of the stage.

        In the vision tower all tokens of a picture lie in nearly the same direction, so that only what sticks out of it
        would be told apart: there they are float32, and the mean over their grid is taken off.

        Raises:
            ValueError: when they were not read.
        """
        pair = evidence.source, evidence.target
        if self.stage == "encoder":
            pair = evidence.encoder_source, evidence.encoder_target
        elif self.stage == "projector":
            pair = evidence.source, evidence.source
        source, target = pair
        if source is None or target is None:
            raise ValueError(f"{type(self).__name__} needs source and target tokens of the {self.stage}, and got None.")
        if self.stage == "encoder" and self.normalize:
            return _centred(source), _centred(target)
        return source, target

    @property
    def cost_settings(self) -> dict[str, Any]:
        """What the functions of `topv.transport` take to make the cost."""
        names = ("alpha", "beta", "gamma", "sigma", "normalize", "scale")
        return {name: getattr(self, name) for name in names}

    @property
    def uses_places(self) -> bool:
        return self.beta > 0 or self.gamma > 0

    def recovered(self, count: int, tokens: int) -> int:
        return recovered_count(count, tokens, self.recovery)


@torch.no_grad()
def _centred(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens (G, N, D) less their grid's mean, float32."""
    return tokens.float() - tokens.float().mean(1, keepdim=True)
