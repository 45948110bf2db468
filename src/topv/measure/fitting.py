"""The largest batch that fits a given memory."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError, UnsupportedError

__all__ = ["largest_batch", "peak_bytes"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def largest_batch(fits: Callable[[int], bool], *, limit: int) -> int:
    """The largest batch in 1 .. `limit` that fits, by doubling and then bisection; 0 when not even one sample does.

    Args:
        fits: whether a batch fits. What fits, fits in part: no larger batch fits than one that does not.
        limit: largest batch to try, at least 1.

    Raises:
        InputError: when `limit` is below 1.

    >>> largest_batch(lambda batch: batch <= 37, limit=256)
    37
    """
    if limit < 1:
        raise InputError(f"limit={limit}: expected the largest batch to try, at least 1.")
    fitting, failing = 0, limit + 1
    while fitting < limit:
        step = min(max(1, 2 * fitting), limit)
        if not fits(step):
            failing = step
            break
        fitting = step
    while failing - fitting > 1:
        middle = (fitting + failing) // 2
        if fits(middle):
            fitting = middle
        else:
            failing = middle
    return fitting


def peak_bytes(run: Callable[[], object], model: nn.Module, device: torch.device) -> int | None:
    """Peak of the bytes that `model` and a run of it take together, or None where the device ran out of memory.

    On CUDA it is what the allocator handed out at most: weights and everything else that lives on the device. On a
    CPU it is the bytes of the weights and by how much the process grew beyond its size before the run at most, the KV
    cache included.

    Args:
        run: runs the model; what it returns is let go.
        model: the model, on `device`.
        device: CUDA, or a CPU under Linux.

    Raises:
        UnsupportedError: when memory cannot be measured there.
    """
    if device.type == "cuda":
        return _cuda_peak(run, device)
    if device.type != "cpu":
        raise UnsupportedError(f"memory cannot be measured on device {str(device)!r}. Expected cpu or cuda.")
    return _weight_bytes(model) + _host_growth(run)


def _cuda_peak(run: Callable[[], object], device: torch.device) -> int | None:
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    exhausted = False
    try:
        run()
        torch.cuda.synchronize(device)
    except torch.cuda.OutOfMemoryError:
        exhausted = True
    # Once the exception is gone, nothing holds the frames in which tensors live.
    peak = torch.cuda.max_memory_allocated(device)
    gc.collect()
    torch.cuda.empty_cache()
    return None if exhausted else peak


def _weight_bytes(model: nn.Module) -> int:
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *model.buffers())
    }
    return sum(storages.values())


def _host_growth(run: Callable[[], object]) -> int:
    """By how many bytes the process grows at most while `run` runs."""
    gc.collect()
    _return_freed_memory()
    try:
        # The kernel then starts its high-water mark anew.
        _CLEAR.write_text("5")
        before = _kibibytes("VmRSS")
    except OSError as error:
        raise UnsupportedError(
            f"the peak of a process's memory cannot be measured on {sys.platform} ({error.strerror}): that takes Linux "
            "with a writable /proc/self/clear_refs. Give batch sizes instead of a memory budget, or run on CUDA."
        ) from error
    run()
    return 1024 * max(0, _kibibytes("VmHWM") - before)


def _kibibytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])


def _return_freed_memory() -> None:
    """Let the C library give freed memory back, where it can, so that a run cannot hide in it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
