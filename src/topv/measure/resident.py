"""The resident memory of this process, as the operating system counts it: the second witness on a CPU."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["ALLOCATOR_SETTINGS", "ResidentMeter", "settle", "touch_weights"]

ALLOCATOR_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""Environment variables with which glibc gives memory back as soon as a tensor is freed. They count from a process's
start, so resident memory is measured in a process that was started with them."""

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class ResidentMeter:
    """Resident memory of this process over what it was when the meter was made.

    Linux counts it by pages and lets a process restart the count of its peak. Where it does not, or on another
    system, the peak is the highest since the process began: `source` then says so, and peaks of single tokens mean
    nothing, only the highest does.

    Resident memory is coarse. It holds what the C allocator has not given back, and the code of libraries, read in
    when first used. Measure each arm in a fresh process, after `touch_weights`, a small forward and `settle`.
    """

    def __init__(self) -> None:
        self.restarts = _restart_peak()
        self.source = "resident memory" if self.restarts else "resident memory (peak since the process began)"
        self.base = _read()[0]

    def __enter__(self) -> ResidentMeter:
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def restart(self) -> None:
        """Look for the peak from now on, where the system can."""
        if self.restarts:
            _restart_peak()

    def read(self) -> tuple[int, int]:
        """Bytes over the base now, and at most since the last restart."""
        now, peak = _read()
        return now - self.base, max(peak, now) - self.base


def touch_weights(model: nn.Module) -> None:
    """Read every weight and buffer once, so that those mapped from a file are in memory from now on."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.sum()


def settle() -> None:
    """Collect garbage, and give the memory that the C allocator holds free back to the system, where it can."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _read() -> tuple[int, int]:
    """Resident bytes now, and at most."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        peak = _peak_of_process()
        return peak, peak
    found = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return tuple(1024 * int(found[name].split()[0]) for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def _peak_of_process() -> int:
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _restart_peak() -> bool:
    """Start the peak anew; whether the system allowed it."""
    try:
        _CLEAR.write_text("5\n")
    except OSError:
        return False
    return True
