"""The methods, budgets and backends that every exactness test runs through."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

import topv

KEEPS: list[float | int] = [1.0, 0.5, 0.25, 0.1, 1]
BACKENDS = ["eager", "sdpa", "flex_attention"]


def methods(keep: float | int) -> list[topv.Method]:
    return [
        topv.TopV(keep=keep),
        topv.TopV(keep=keep, importance="potential", target="pre_norm", gamma=0.1, beta=0.5, recovery=0.3),
        topv.TopV(keep=keep, importance="relaxed", target="attention"),
        topv.FastV(keep=keep),
        topv.FastV(keep=keep, attention="full", layer=3),
        topv.Random(keep=keep, layer=1),
        topv.Uniform(keep=keep, layer=4),
        topv.MeanCost(keep=keep, target="mlp"),
        topv.FacilityLocation(keep=keep),
        topv.FrameDifference(keep=keep, budget="grid"),
    ]


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """flex_attention without its compiled kernels, which cost a minute of compilation for each shape on a CPU."""
    with torch.compiler.set_stance("force_eager"):
        yield
