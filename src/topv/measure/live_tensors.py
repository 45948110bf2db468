"""Counting the bytes of live tensors exactly, whatever allocator is beneath."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

__all__ = ["LiveTensor", "LiveTensors"]


@dataclass(frozen=True)
class LiveTensor:
    """A storage that was alive, as the first tensor seen on it described it.

    Attributes:
        made_by: the operator that made it, or "given" for one that was there before.
        shape: shape of that tensor.
        dtype: its dtype.
        bytes: size of the whole storage.
    """

    made_by: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.bytes:,} B {dtype} {list(self.shape)} made by {self.made_by}"


class LiveTensors:
    """Inside its `with` block, the bytes of every tensor storage that is alive, now and at most.

    Each operator that runs hands its tensors over; a storage counts once, however many tensors view it, from the
    operator that made it until it is freed. This is exact and the same on every machine. What a kernel allocates and
    frees inside one operator is not seen.

    Args:
        static: tensors that do not count, such as a model's weights; views of them do not either.
        watch: tensors made before the block that count from its start, such as a model's inputs. Others count from
            their first use.
        device: count tensors on devices of this type only; on all devices by default.

    >>> with LiveTensors() as live:
    ...     a = torch.zeros(256)
    ...     b = a[:3]
    ...     c = a + 1
    ...     del a, c
    >>> live.bytes, live.peak
    (1024, 2048)
    """

    source = "live tensors"

    def __init__(
        self,
        *,
        static: Iterable[torch.Tensor] = (),
        watch: Iterable[torch.Tensor] = (),
        device: str | None = None,
    ) -> None:
        self._device = device
        self._mode = _Watcher(self._ran)
        # Held, so that no later storage can take the place of one of them.
        self._static = {storage._cdata: storage for tensor in static for storage in _storages(tensor)}
        self._watched = list(watch)
        self._live: dict[int, tuple[Any, LiveTensor]] = {}
        self._at_peak: list[LiveTensor] = []
        self._highest = 0
        self.bytes = 0
        self.peak = 0

    def __enter__(self) -> LiveTensors:
        for tensor in self._watched:
            self._count(tensor, "given")
        self._watched = []
        self._mode.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._mode.__exit__(*exception)
        # What is freed from now on is no longer followed.
        self._live.clear()

    def restart(self) -> None:
        """Look for the highest count from now on."""
        self.peak = self.bytes

    def read(self) -> tuple[int, int]:
        """Bytes now, and at most since the last restart."""
        return self.bytes, self.peak

    def largest_at_peak(self, count: int | None = None) -> list[LiveTensor]:
        """What was alive when most bytes of the whole block were, the largest first.

        Args:
            count: how many to name; all by default.
        """
        return sorted(self._at_peak, key=lambda tensor: -tensor.bytes)[:count]

    def _ran(self, func: Any, given: Any, result: Any) -> None:
        for tensor in _tensors(given):
            self._count(tensor, "given")
        for tensor in _tensors(result):
            self._count(tensor, str(func))

    def _count(self, tensor: torch.Tensor, made_by: str) -> None:
        if self._device is not None and tensor.device.type != self._device:
            return
        for storage in _storages(tensor):
            key, size = storage._cdata, storage.nbytes()
            if key in self._static:
                continue
            known = self._live.get(key)
            if known is not None and known[1].bytes == size:
                continue
            self.bytes += size - (known[1].bytes if known is not None else 0)
            described = LiveTensor(made_by, tuple(tensor.shape), tensor.dtype, size)
            reference = weakref.ref(storage, functools.partial(self._freed, key))
            self._live[key] = (reference, described)
            self.peak = max(self.peak, self.bytes)
            if self.bytes > self._highest:
                self._highest = self.bytes
                self._at_peak = [tensor for _, tensor in self._live.values()]

    def _freed(self, key: int, reference: Any) -> None:
        known = self._live.get(key)
        if known is not None and known[0] is reference:
            del self._live[key]
            self.bytes -= known[1].bytes


class _Watcher(TorchDispatchMode):
    """Tells of every operator that runs, with its arguments and its result."""

    def __init__(self, ran: Callable[[Any, Any, Any], None]) -> None:
        super().__init__()
        self._ran = ran

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # In inference mode composite operators arrive whole; their parts are what allocates.
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = func(*args, **kwargs)
        self._ran(func, (args, kwargs), result)
        return result


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _storages(tensor: torch.Tensor) -> Iterator[Any]:
    """The storages of a tensor: several for one that wraps others, none for one without memory."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from _storages(getattr(tensor, name))
    elif tensor.layout is torch.sparse_coo:
        yield from _storages(tensor._indices())
        yield from _storages(tensor._values())
    elif tensor.device.type != "meta":
        yield tensor.untyped_storage()
