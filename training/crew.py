"""Several processes that train one model together, one thread each.

On a shared machine two threads of one process wait for each other thousands of times a step, and a neighbour
that takes one core now and then makes a step twenty times slower. Processes meet once a step, to average
gradients.
"""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["average_gradients", "launch", "rank", "world"]


_PATIENCE = datetime.timedelta(minutes=10)


def world() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 logs, validates and saves."""
    return dist.get_rank() if dist.is_initialized() else 0


def average_gradients(parameters: list[Tensor], seconds: float) -> float:
    """Average gradients over all processes, in place, and agree on the time.

    Args:
        parameters: the same parameters in the same order in every process; those without a gradient in any
            process keep none.
        seconds: this process's clock.

    Returns:
        The clock of process 0.
    """
    if world() == 1:
        return seconds
    holders = torch.tensor([float(p.grad is not None) for p in parameters] + [seconds * (rank() == 0)])
    dist.all_reduce(holders)
    shared = [p for p, holds in zip(parameters, holders.tolist(), strict=False) if holds]
    for parameter in shared:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.reshape(-1) for p in shared if p.grad is not None])
    dist.all_reduce(flat)
    flat /= world()
    for parameter, piece in zip(shared, flat.split([p.numel() for p in shared]), strict=True):
        parameter.grad = piece.view_as(parameter)
    return float(holders[-1])


def _member(number: int, count: int, meeting: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=count, timeout=_PATIENCE)
    try:
        work(*arguments)
    finally:
        dist.destroy_process_group()


def launch(work: Callable[..., None], processes: int, arguments: tuple[Any, ...]) -> None:
    """Run ``work(*arguments)`` in a number of processes that can average gradients."""
    if processes < 1:
        raise ValueError(f"Training in {processes} processes; expected a number from 1 up.")
    if processes == 1:
        work(*arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        torch.multiprocessing.spawn(_member, (processes, meeting, work, arguments), nprocs=processes)
