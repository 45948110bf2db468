"""Bytes that tensor operations hold at once, counted exactly from what each of them returns."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveStorage(TorchDispatchMode):
    """Inside: ``peak`` is the most bytes that tensors made inside have held at any moment, ``largest`` the biggest one.

    Storage that an operation takes and gives back within itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.largest = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}
        self._given: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                key = tensor.untyped_storage()._cdata
                if key not in self._held:
                    self._given.add(key)
        result = func(*args, **(kwargs or {}))
        self._held = {key: entry for key, entry in self._held.items() if not entry[0].expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._held and storage._cdata not in self._given:
                    self._held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                    self.largest = max(self.largest, storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._held.values()))
        return result
