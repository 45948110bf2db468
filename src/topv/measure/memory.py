"""Memory over one generation, token by token: weights, everything else, the KV cache, and the peaks between."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..errors import InputError
from ..methods import Method
from ..models import family_of
from ..runtime import Report, prune
from ..runtime.arguments import output_cache
from .kv_cache import kv_cache_bytes
from .live_tensors import LiveTensors

__all__ = [
    "AllocatorMeter",
    "GenerationMemory",
    "MemoryMeter",
    "MemorySample",
    "MemoryTimeline",
    "generate_text",
    "memory_history",
    "memory_timeline",
    "profile_generation",
    "static_bytes",
]


class MemoryMeter(Protocol):
    """Measures dynamic memory: all that is not a weight. It runs inside its `with` block."""

    source: str
    """Whose figures they are, in words."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *exception: Any) -> None: ...

    def restart(self) -> None:
        """Look for the peak from now on."""

    def read(self) -> tuple[int, int]:
        """Bytes now, and the peak since the last restart."""


class AllocatorMeter:
    """What PyTorch's CUDA allocator has handed out, on every device that holds a part of the model.

    Allocations are rounded up to 512 bytes, as they are on the device; blocks that the allocator only caches do not
    count. Over several devices the peaks add up, though they may fall on different moments.

    Args:
        model: its weights and buffers do not count.

    Raises:
        InputError: when no part of the model is on a CUDA device.
    """

    source = "CUDA allocator"

    def __init__(self, model: nn.Module) -> None:
        self._devices = sorted({t.device for t in _state(model) if t.device.type == "cuda"}, key=str)
        if not self._devices:
            raise InputError(
                "the CUDA allocator cannot be asked about a model that is on the CPU. Move it with `model.cuda()`, or "
                "count with `LiveTensors`."
            )
        self._static = static_bytes(model, "cuda")

    def __enter__(self) -> AllocatorMeter:
        gc.collect()
        torch.cuda.empty_cache()
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def restart(self) -> None:
        """Look for the peak from now on."""
        for device in self._devices:
            torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> tuple[int, int]:
        """Bytes handed out now beside the weights, and their peak since the last restart."""
        now = sum(torch.cuda.memory_allocated(device) for device in self._devices)
        peak = sum(torch.cuda.max_memory_allocated(device) for device in self._devices)
        return now - self._static, peak - self._static


@dataclass(frozen=True)
class MemorySample:
    """Memory at the end of one forward.

    Attributes:
        step: tokens generated with it: 1 for the prefill, which yields the first.
        dynamic: bytes held, weights and buffers not counted.
        kv: bytes of keys and values among them.
        peak: most dynamic bytes since the last sample.
    """

    step: int
    dynamic: int
    kv: int
    peak: int


@dataclass(frozen=True)
class MemoryTimeline:
    """Memory over one run, forward by forward.

    Attributes:
        static: bytes of the model's weights and buffers.
        samples: one for each forward, in order.
        source: whose figures the dynamic ones are.
    """

    static: int
    samples: tuple[MemorySample, ...]
    source: str

    @property
    def peak(self) -> int:
        """Most dynamic bytes in the whole run."""
        return max(sample.peak for sample in self.samples)

    @property
    def decode_peak(self) -> int:
        """Most dynamic bytes after the prefill; of the prefill where nothing came after."""
        return max(sample.peak for sample in self.samples[1:] or self.samples)

    @property
    def end(self) -> MemorySample:
        """The last sample."""
        return self.samples[-1]


@dataclass(frozen=True)
class GenerationMemory:
    """Memory over one generation under one method.

    Attributes:
        timeline: the memory.
        report: what the prefill kept; None for the unpruned model.
        largest: what held most memory at the highest peak, in words; empty where the meter cannot tell.
    """

    timeline: MemoryTimeline
    report: Report | None
    largest: tuple[str, ...] = ()


def static_bytes(model: nn.Module, device: str | None = None) -> int:
    """Bytes of a model's weights and buffers, tied ones once.

    Args:
        model: any module.
        device: count only what is on devices of this type.
    """
    storages = {
        storage._cdata: storage.nbytes()
        for tensor in _state(model)
        if device is None or tensor.device.type == device
        for storage in [tensor.untyped_storage()]
    }
    return sum(storages.values())


def memory_timeline(module: nn.Module, run: Callable[[], object], meter: MemoryMeter) -> MemoryTimeline:
    """Sample memory at the end of every forward of `module` while `run` runs.

    Args:
        module: the module of which every forward yields a token.
        run: calls it any number of times, such as `lambda: model.generate(**inputs)`.
        meter: measures dynamic memory.

    Returns:
        One sample for each forward. What the run does after the last forward counts towards the last peak.

    Raises:
        InputError: when `run` never calls `module`.
    """
    samples: list[MemorySample] = []

    def sample(module: nn.Module, args: Any, output: Any) -> None:
        now, peak = meter.read()
        cache = output_cache(output)
        samples.append(MemorySample(len(samples) + 1, now, 0 if cache is None else kv_cache_bytes(cache), peak))
        meter.restart()

    with meter:
        handle = module.register_forward_hook(sample)
        try:
            meter.restart()
            run()
        finally:
            handle.remove()
        rest = meter.read()[1]
    if not samples:
        raise InputError(f"the run never called the {type(module).__name__} whose forwards were to be sampled.")
    samples[-1] = replace(samples[-1], peak=max(samples[-1].peak, rest))
    return MemoryTimeline(static_bytes(module), tuple(samples), meter.source)


def generate_text(
    model: Any, inputs: Mapping[str, torch.Tensor], new_tokens: int, *, full_logits: bool = False
) -> torch.Tensor:
    """`generate` exactly `new_tokens` tokens greedily, past any end of the answer: ids (B, T + new_tokens).

    Args:
        model: a vision-language model of transformers.
        inputs: what its processor returned, on the model's device.
        new_tokens: how many, at least 1.
        full_logits: let the prefill compute logits at every position of the prompt, as a plain forward does, instead
            of at the last one, as `generate` does.

    Raises:
        InputError: when `new_tokens` is out of range.
    """
    if new_tokens < 1:
        raise InputError(f"new_tokens={new_tokens}: expected at least 1.")
    options: dict[str, Any] = {"logits_to_keep": 0} if full_logits else {}
    with torch.no_grad():
        ids: torch.Tensor = model.generate(
            **inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, **options
        )
    return ids


def profile_generation(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    method: Method | None,
    *,
    new_tokens: int = 16,
    full_logits: bool = False,
    meter: MemoryMeter | None = None,
) -> GenerationMemory:
    """Memory after each token of a stock `generate`, under a method or none.

    Args:
        model: a vision-language model of transformers with its language-modelling head.
        inputs: what its processor returned, on the model's device. They count as dynamic memory.
        method: how to prune; None for the unpruned model.
        new_tokens: tokens to generate, whether or not an answer ends before.
        full_logits: as `generate_text`.
        meter: measures dynamic memory. By default the allocator where the model is on a CUDA device, after one
            generation to warm up, and else a count of live tensors.

    Raises:
        InputError: when `new_tokens` is out of range.
    """
    module = family_of(model).generator or model
    if meter is None:
        meter = _meter(model, inputs)

    def generate() -> None:
        generate_text(model, inputs, new_tokens, full_logits=full_logits)

    with contextlib.nullcontext() if method is None else prune(model, method) as pruning:
        if isinstance(meter, AllocatorMeter):
            # Libraries keep the workspaces that they allocate on first use.
            generate()
        # Registered after the pruning's own hooks, which end a forward and let go of what it held.
        timeline = memory_timeline(module, generate, meter)
    timeline = replace(timeline, static=static_bytes(model))
    largest = tuple(map(str, meter.largest_at_peak(8))) if isinstance(meter, LiveTensors) else ()
    return GenerationMemory(timeline, None if pruning is None else pruning.report(), largest)


@contextlib.contextmanager
def memory_history(path: Path) -> Iterator[None]:
    """Record every allocation on CUDA devices in the block, and write a snapshot that pytorch.org/memory_viz draws.

    Args:
        path: the file to write, in torch's own format (a pickle; topv only writes it).

    Raises:
        InputError: without a CUDA device.
    """
    if not torch.cuda.is_available():
        raise InputError("a memory history is the CUDA allocator's, and this machine has no CUDA device.")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.cuda.memory._record_memory_history(max_entries=200_000)
    try:
        yield
        torch.cuda.memory._dump_snapshot(str(path))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)


def _meter(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> MemoryMeter:
    if any(tensor.device.type == "cuda" for tensor in _state(model)):
        return AllocatorMeter(model)
    return LiveTensors(static=_state(model), watch=[t for t in inputs.values() if isinstance(t, torch.Tensor)])


def _state(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
