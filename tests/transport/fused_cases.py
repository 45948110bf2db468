"""The fused kernels in Triton's interpreter: ``python fused_cases.py OUT`` saves what they give for every case.

A process of its own, because a kernel is an interpreted one for good if TRITON_INTERPRET was set when it was defined.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch
from torch import Tensor

from topv.transport import importance

DEFAULTS: dict[str, Any] = {
    "alpha": 1.0,
    "beta": 0.0,
    "gamma": 0.0,
    "sigma": 3.0,
    "eps": 0.3,
    "rho": 0.1,
    "iterations": 3,
    "normalize": True,
    "scale": "max",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "all factors": {"beta": 0.5, "gamma": 0.2, "sigma": 2.0, "eps": 0.1},
    "mean, raw": {"scale": "mean", "normalize": False},
    "sharp": {"eps": 0.01, "beta": 0.3},
    "space alone": {"alpha": 0.0, "beta": 1.0, "iterations": 1},
    "raw, far off": {"normalize": False},
    "free sources": {"rho": 0.0},
}
SIZES = [(1, 1, 3), (3, 5, 64), (3, 123, 100)]
READINGS = ["demand", "potential", "relaxed"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

Case = tuple[tuple[int, int, int], str, str, torch.dtype]
CASES: list[Case] = [
    *itertools.product(SIZES[:1], ["all factors"], READINGS, [torch.bfloat16]),
    *itertools.product(SIZES[1:2], ["all factors"], READINGS, DTYPES[:2]),
    *itertools.product(SIZES[1:2], ["mean, raw"], READINGS[:1], DTYPES[:2]),
    *itertools.product(SIZES[2:], ["defaults"], ["demand"], DTYPES),
    ((1, 123, 100), "all factors", "relaxed", torch.bfloat16),
    ((1, 123, 100), "mean, raw", "potential", torch.bfloat16),
    ((1, 123, 100), "mean, raw", "relaxed", torch.float32),
    ((1, 123, 100), "sharp", "demand", torch.bfloat16),
    ((1, 123, 100), "space alone", "demand", torch.float32),
    ((1, 123, 100), "raw, far off", "demand", torch.float32),
    ((1, 123, 100), "free sources", "relaxed", torch.float32),
    ((1, 256, 64), "defaults", "demand", torch.bfloat16),
]


def problem(case: Case) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """Tokens in clusters of unequal size, cells (per grid where space matters), settings."""
    (batch, n, width), name, _, dtype = case
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(batch, 7, width, generator=generator)
    label = (7 * torch.rand(batch, n, generator=generator) ** 2).long()
    source = centres.gather(1, label[..., None].expand(-1, -1, width))
    source = source + torch.randn(batch, n, width, generator=generator)
    target = source + 0.4 * torch.randn(source.shape, generator=generator)
    if name == "raw, far off":
        source, target = source + 300, target + 300
    side = int(n**0.5) + 1
    cells = torch.cartesian_prod(torch.arange(side), torch.arange(side))[:n]
    if name == "all factors":
        cells = torch.stack([cells * (1 + grid) for grid in range(batch)])
    return source.to(dtype), target.to(dtype), cells, {**DEFAULTS, **SETTINGS[name]}


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, Tensor] = {}
    for number, case in enumerate(CASES):
        source, target, cells, settings = problem(case)
        found[str(number)] = importance(case[2], source, target, cells, **settings, backend="fused")  # type: ignore[arg-type]
    source, target, cells, settings = problem(CASES[-1])
    wide = torch.cat([torch.randn_like(source), source, torch.randn_like(source)], 2)
    inside = wide[:, :, source.shape[2] : 2 * source.shape[2]]
    found["strided"] = importance("demand", inside, target, cells, **settings, backend="fused")
    source, target, cells, settings = problem(((2, 40, 20), "all factors", "demand", torch.float32))
    found["together"] = importance("demand", source, target, cells, **settings, backend="fused")
    alone = [
        importance("demand", source[i : i + 1], target[i : i + 1], cells[i : i + 1], **settings, backend="fused")
        for i in range(2)
    ]
    found["alone"] = torch.cat(alone)
    torch.save(found, sys.argv[1])


if __name__ == "__main__":
    main()
