"""Which columns of a batch stay, and moving tensors between the full and the compacted sequence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from .plan import PrefillPlan

__all__ = ["Choice", "Compaction", "compact", "gather_arguments", "stay_index"]


@dataclass
class Choice:
    """The visual tokens that stay from one pruning layer on.

    Attributes:
        kept: for each bucket of the plan, LongTensor (G, K) of each group's kept tokens, ascending.
        recovered: for each bucket, BoolTensor (G, K): which of them were recovered.
        importance: for each bucket float32 (G, N), or None when the method has none or did not judge.
    """

    kept: list[torch.Tensor] = field(default_factory=list)
    recovered: list[torch.Tensor] = field(default_factory=list)
    importance: list[torch.Tensor | None] = field(default_factory=list)

    def add(self, kept: torch.Tensor, recovered: torch.Tensor, importance: torch.Tensor | None) -> None:
        """Add what was chosen in the next bucket."""
        self.kept.append(kept)
        self.recovered.append(recovered)
        self.importance.append(importance)

    @staticmethod
    def everything(plan: PrefillPlan, device: torch.device) -> Choice:
        """All tokens of every bucket."""
        choice = Choice()
        for bucket in plan.buckets:
            kept = torch.arange(bucket.tokens, device=device).expand(len(bucket.groups), -1)
            choice.add(kept, torch.zeros_like(kept, dtype=torch.bool), None)
        return choice


@dataclass(frozen=True)
class Compaction:
    """A map from compacted slots to the columns of the full sequence.

    Attributes:
        index: LongTensor (B, S), the column that each slot holds; ascending in each row's real slots.
        valid: BoolTensor (B, S), false at slots that only pad a shorter row on the left; None when there is none.
        length: length T of the full sequence.
    """

    index: torch.Tensor
    valid: torch.Tensor | None
    length: int

    def to(self, device: torch.device) -> Compaction:
        """The same map with its tensors on `device`."""
        if self.index.device == device:
            return self
        valid = None if self.valid is None else self.valid.to(device)
        return Compaction(self.index.to(device), valid, self.length)

    def gather(self, tensor: torch.Tensor, dim: int = 1, batch_dim: int | None = None) -> torch.Tensor:
        """Take the slots' columns along `dim` of a tensor whose `batch_dim` (the one before by default) is B or 1."""
        index = self.index.to(tensor.device)
        dim = dim % tensor.ndim
        batch_dim = dim - 1 if batch_dim is None else batch_dim
        shape = list(tensor.shape)
        shape[batch_dim] = index.shape[0]
        tensor = tensor.expand(shape)
        view = [1] * tensor.ndim
        view[batch_dim], view[dim] = index.shape
        shape[dim] = index.shape[1]
        return tensor.gather(dim, index.view(view).expand(shape))

    def fill_padding(self, tensor: torch.Tensor, filler: float) -> torch.Tensor:
        """A compacted (B, S) tensor with `filler` at the slots that hold no column."""
        valid = self.to(tensor.device).valid
        return tensor if valid is None else tensor.masked_fill(~valid, filler)

    def scatter(self, tensor: torch.Tensor, real: torch.Tensor, *, unknown: float | None = None) -> torch.Tensor:
        """Put compacted (B, S, D) states back at their columns of (B, T, D).

        Positions that were pruned hold NaN, so that reading one cannot pass for a result; padding holds zeros. While
        gradients are recorded pruned positions hold zeros too, since NaN would spoil the gradient of the head.

        Args:
            tensor: (B, S, D) floating point.
            real: BoolTensor (B, T), false at padding.
            unknown: what to put at pruned positions instead.
        """
        mover = self.to(tensor.device)
        if unknown is None:
            unknown = 0.0 if torch.is_grad_enabled() and tensor.requires_grad else float("nan")
        full = tensor.new_full((tensor.shape[0], self.length, tensor.shape[2]), unknown)
        full = full.masked_fill(~real.to(tensor.device, non_blocking=True).unsqueeze(2), 0.0)
        if mover.valid is not None:
            fillers = full.gather(1, mover.index.unsqueeze(2).expand_as(tensor))
            tensor = torch.where(mover.valid.unsqueeze(2), tensor, fillers)
        return full.scatter(1, mover.index.unsqueeze(2).expand_as(tensor), tensor)


def compact(plan: PrefillPlan, kept: list[torch.Tensor], device: torch.device, *, stage: int = 0) -> Compaction:
    """Build the map from what each bucket keeps, without waiting for the device.

    Args:
        plan: the prefill's plan.
        kept: for each bucket a LongTensor (G, K) on `device` of `sample * T + column`.
        device: where the hidden states are.
        stage: how many pruning layers come before.
    """
    stays = plan.fixed.to(device, non_blocking=True)
    flat = stays.flatten().clone()
    for columns in kept:
        flat.index_fill_(0, columns.flatten(), True)
    length = plan.length(stage)
    index = stay_index(flat.view_as(stays), length)
    valid = None
    if plan.ragged(stage):
        lengths = torch.tensor(plan.row_lengths[stage], device="cpu").unsqueeze(1)
        valid = torch.arange(length, device="cpu") >= length - lengths
        valid = valid.to(device, non_blocking=True)
    return Compaction(index, valid, plan.layout.length)


def stay_index(stays: torch.Tensor, length: int) -> torch.Tensor:
    """The columns that stay, right-aligned in each row: LongTensor (B, length).

    Args:
        stays: BoolTensor (B, T), at most `length` of them true in a row; false columns fill shorter rows on the left.
        length: columns of the compacted batch.
    """
    order = stays.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, stays.shape[1] - length :].contiguous()


def gather_arguments(value: Any, compaction: Compaction, batch: int) -> Any:
    """Compact every tensor inside `value` that has a batch and a sequence dimension; leave the rest alone.

    The sequence is the second dimension behind one of `batch` or 1 rows, or the third behind either of the first two:
    position ids and embeddings may count position rows (M-RoPE) or heads beside the batch.
    """
    if isinstance(value, torch.Tensor):
        where = _sequence(value, compaction.length, batch)
        return value if where is None else compaction.gather(value, dim=where[1], batch_dim=where[0])
    if isinstance(value, tuple):
        return tuple(gather_arguments(item, compaction, batch) for item in value)
    if isinstance(value, list):
        return [gather_arguments(item, compaction, batch) for item in value]
    if isinstance(value, dict):
        return {key: gather_arguments(item, compaction, batch) for key, item in value.items()}
    return value


def _sequence(value: torch.Tensor, length: int, batch: int) -> tuple[int, int] | None:
    """The batch and sequence dimensions of an argument, or None when it has no such pair."""
    shape = value.shape
    if value.ndim >= 2 and shape[1] == length and shape[0] in (1, batch):
        return 0, 1
    if value.ndim >= 3 and shape[2] == length:
        if shape[1] == batch or (value.ndim == 3 and shape[1] == 1):
            return 1, 2
        if shape[0] in (1, batch):
            return 0, 2
    return None
