"""Checkpoints of a training: safetensors for numbers, JSON for the rest, nothing that can run code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["load_checkpoint", "read_state", "save_checkpoint"]


def _unique(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A state dict under a prefix, with tied tensors kept once."""
    seen: set[int] = set()
    kept = {}
    for name, value in state.items():
        if value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            kept[f"{prefix}.{name}"] = value.detach().contiguous().cpu()
    return kept


def save_checkpoint(
    folder: Path,
    modules: dict[str, torch.nn.Module],
    average: dict[str, Tensor],
    optimizers: list[Any],
    state: dict[str, Any],
) -> None:
    """Write everything needed to go on: weights, their average, optimizer moments, counters."""
    tensors = {f"average.{name}": value for name, value in average.items()}
    for prefix, module in modules.items():
        tensors |= _unique(module.state_dict(), prefix)
    for number, optimizer in enumerate(optimizers):
        for index, moments in optimizer.state_dict()["state"].items():
            for name, value in moments.items():
                tensors[f"optimizer.{number}.{index}.{name}"] = value
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / "last.safetensors.part"
    save_file(tensors, draft)
    draft.replace(folder / "last.safetensors")
    note = folder / "last.json.part"
    note.write_text(json.dumps(state, indent=1) + "\n")
    note.replace(folder / "last.json")


def read_state(folder: Path) -> dict[str, Any] | None:
    """The counters of a training, or None when it has no checkpoint yet."""
    if not all((folder / name).is_file() for name in ("last.safetensors", "last.json")):
        return None
    state: dict[str, Any] = json.loads((folder / "last.json").read_text())
    return state


def load_checkpoint(
    folder: Path, modules: dict[str, torch.nn.Module], average: dict[str, Tensor], optimizers: list[Any]
) -> dict[str, Any] | None:
    """Restore what ``save_checkpoint`` wrote, in place; None when there is nothing to restore.

    Raises:
        ValueError: the checkpoint holds other weights than the modules, or moments of another shape.
    """
    state, numbers = read_state(folder), folder / "last.safetensors"
    if state is None:
        return None
    tensors = load_file(numbers)
    for prefix, module in modules.items():
        own = {n: v for n, v in tensors.items() if n.startswith(f"{prefix}.")}
        wanted = _unique(module.state_dict(), prefix)
        other = sorted({n for n in own.keys() | wanted.keys() if n not in own or n not in wanted
                        or own[n].shape != wanted[n].shape})  # fmt: skip
        if other:
            raise ValueError(
                f"Checkpoint {numbers} was made by another version: {', '.join(other[:3])} differ; use an empty --out"
                " folder, with --start to begin from its exported weights."
            )
        module.load_state_dict({n.removeprefix(f"{prefix}."): v for n, v in own.items()}, strict=False)
    for name in average:
        average[name].copy_(tensors[f"average.{name}"])
    for number, optimizer in enumerate(optimizers):
        moments: dict[int, dict[str, Tensor]] = {}
        start = f"optimizer.{number}."
        for name, value in tensors.items():
            if name.startswith(start):
                index, key = name.removeprefix(start).split(".")
                moments.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return state
