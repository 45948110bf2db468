"""One forward of a pruned model: what its hooks share, from the first look at the prompt to the scattered output."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..methods import Method
from ..models import Family
from ..selection import select
from .compaction import Compaction, compact, gather_arguments
from .evidence import EvidenceReader, FiniteCheck
from .plan import PrefillPlan
from .record import CacheRecord
from .short_masks import ShortMasks

__all__ = ["Forward", "Outcome", "current_forward", "set_forward"]

_OWN_MASK = "conv_mask"
"""The argument by which an attention layer learns which columns its convolutions must leave out."""

_current: ContextVar[Forward | None] = ContextVar("topv_forward", default=None)


def current_forward() -> Forward | None:
    """The forward that is running in this context, or None."""
    return _current.get()


def set_forward(forward: Forward | None) -> None:
    """Make `forward` the one that is running in this context."""
    _current.set(forward)


@dataclass
class Outcome:
    """What a prefill chose, for `Pruning` to report.

    Attributes:
        lengths: for each layer that keeps keys, by its index, the entries in its KV cache after the prefill (or that
            it would hold, without a cache).
        entry_bytes: for each of them, bytes of one entry over the batch.
        kept: for each bucket of the plan, LongTensor (G, K) of each grid's kept tokens.
        recovered: for each bucket, BoolTensor (G, K): which of them were recovered.
        importance: for each bucket float32 (G, N), or None when the method has none.
        element_size: bytes per number in the hidden states, and so in the KV cache.
    """

    lengths: dict[int, int] = field(default_factory=dict)
    entry_bytes: dict[int, int] = field(default_factory=dict)
    kept: list[torch.Tensor] = field(default_factory=list)
    recovered: list[torch.Tensor] = field(default_factory=list)
    importance: list[torch.Tensor | None] = field(default_factory=list)
    element_size: int = 0


class Forward:
    """The state of one forward. It lives in a context variable and dies with the forward.

    Args:
        owner: the pruning whose hooks run it.
        opened_by: the module whose hook began it, and whose hook will end it.
        family: the model's parts.
        method: the method that prunes.
        layer: first layer that sees a shortened sequence.
        batch: number of rows B.
        length: columns T of this forward.
        past: columns already in the cache's whole layers.
        plan: what to prune, or None when this forward prunes nothing.
        is_prefill: whether the report should speak of this forward.
    """

    def __init__(
        self,
        *,
        owner: object,
        opened_by: nn.Module,
        family: Family,
        method: Method,
        layer: int,
        batch: int,
        length: int,
        past: int,
        plan: PrefillPlan | None,
        is_prefill: bool,
    ) -> None:
        self.owner = owner
        self.opened_by = opened_by
        self.family = family
        self.method = method
        self.layer = layer
        self.batch = batch
        self.length = length
        self.past = past
        self.plan = plan
        self.is_prefill = is_prefill
        self.thread = threading.get_ident()
        self.outer: Forward | None = None
        self.joined: set[nn.Module] = set()
        self.in_decoder = False
        self.own_sizes: AbstractContextManager[None] | None = None
        self.outcome = Outcome()
        self.mask: torch.Tensor | None = None
        self.cache: Any = None
        self.record: CacheRecord | None = None
        self.compaction: Compaction | None = None
        self._evidence = EvidenceReader(plan, method, past) if plan is not None and plan.buckets else None
        self.finite = FiniteCheck(layer)
        self.masks = ShortMasks(self)
        self.rejoined: frozenset[int] = frozenset()
        self._arguments: dict[int, tuple[Any, Any]] = {}
        self._key_positions: dict[int, tuple[Any, Any]] = {}

    @property
    def prunes(self) -> bool:
        """Whether this forward shortens the sequence."""
        return self.plan is not None and bool(self.plan.buckets)

    def shortens(self, layer: int) -> bool:
        """Whether decoder layer `layer` sees a shortened sequence."""
        return layer >= self.layer and (self.prunes or self.record is not None)

    # ---- selection ------------------------------------------------------------------------------------------

    @property
    def evidence(self) -> EvidenceReader:
        """What is read of this forward's visual tokens.

        Raises:
            RuntimeError: when it prunes nothing.
        """
        if self._evidence is None:
            raise RuntimeError("this forward prunes nothing, so it reads no evidence.")
        return self._evidence

    @torch.no_grad()
    def choose(self, hidden_states: torch.Tensor) -> None:
        """Select the tokens that stay, given what enters layer `layer`, and build the compaction."""
        plan = self.plan
        if plan is None:
            return
        device = hidden_states.device
        self.finite.look(self.evidence.visual(hidden_states, copy=False))
        if self.layer == 0:
            self.evidence.read_source(hidden_states)
        kept = []
        for number, (bucket, flat) in enumerate(zip(plan.buckets, self.evidence.flat_columns(device), strict=True)):
            if bucket.count == 0:
                self.outcome.importance.append(None)
                self.outcome.kept.append(flat.new_empty(len(bucket.groups), 0))
                self.outcome.recovered.append(flat.new_empty(len(bucket.groups), 0, dtype=torch.bool))
                continue
            scores = self.evidence.scores(number, device)
            self.outcome.importance.append(scores if self.method.has_importance else None)
            if bucket.protected is not None:
                scores = scores.masked_fill(bucket.protected.to(device, non_blocking=True), float("inf"))
            recovered = min(self.method.recovered(bucket.count, bucket.tokens), bucket.count - bucket.most_protected)
            selection = select(scores, bucket.count, recovered)
            self.outcome.kept.append(selection.indices)
            self.outcome.recovered.append(selection.recovered)
            kept.append(flat.gather(1, selection.indices))
        self.evidence.release()
        self.compaction = compact(plan, kept, device)

    # ---- short layers ---------------------------------------------------------------------------------------

    def shorten(self, arguments: dict[str, Any], layer: int) -> dict[str, Any]:
        """The arguments of a layer at or beyond the pruning layer, changed to the shortened sequence.

        Args:
            arguments: the layer's arguments by name.
            layer: the layer's index.

        Returns:
            The changed arguments alone.
        """
        changed: dict[str, Any] = {}
        hidden = arguments["hidden_states"]
        if self.compaction is not None:
            for name, value in arguments.items():
                if name in ("attention_mask", _OWN_MASK, "past_key_values"):
                    continue
                if name != "hidden_states" or (layer in self._whole and hidden.shape[1] == self.length):
                    changed[name] = self._gathered(name, value)
            for name, filler in self.family.fillers.items():
                if changed.get(name) is not None:
                    changed[name] = self.compaction.fill_padding(changed[name], filler)
            hidden = changed.get("hidden_states", hidden)
            # Gapped position ids look like several packed sequences to the flash kernels.
            if self.is_flash:
                changed["position_ids"] = None
        if self.past:
            changed |= self._positions_of_keys(arguments)
        mask = arguments.get("attention_mask")
        lender = self.family.key_layer(layer)
        borrows = lender != layer
        if not borrows and self.family.lends_keys:
            self.masks.note_lender(hidden, layer)
        attends = borrows or self.family.keeps_keys(layer) or self.family.masks_itself(layer)
        if attends and (mask is not None or self._hides or self._ragged or borrows):
            changed["attention_mask"] = self.masks.attention(mask, hidden, layer)
        if _OWN_MASK in arguments:
            changed[_OWN_MASK] = self.masks.recurrent(arguments[_OWN_MASK], hidden)
        return {name: value for name, value in changed.items() if value is not arguments.get(name)}

    @property
    def _whole(self) -> set[int]:
        """Layers that are handed whole hidden states, which they must shorten."""
        return {self.layer, *(layer + 1 for layer in self.rejoined)}

    def queries(self, device: torch.device) -> torch.Tensor:
        """LongTensor (B, Q) on `device`: the prompt column of each query of the short layers."""
        if self.compaction is None:
            return torch.arange(self.past, self.past + self.length, device=device).expand(self.batch, -1)
        return self.compaction.to(device).index + self.past

    @property
    def removed(self) -> int:
        """Columns that this forward has dropped, in every row."""
        return 0 if self.compaction is None else self.length - self.compaction.index.shape[1]

    def rejoin(self, output: Any) -> Any:
        """A short layer's output put back at its prompt positions, for a decoder that adds to it there."""
        if self.compaction is None or self.plan is None:
            return output
        states = output[0] if isinstance(output, tuple) else output
        # Slots that pad a shorter row will take from pruned positions, so nothing there may spread.
        full = self.compaction.scatter(states, self.plan.real, unknown=0.0)
        return (full, *output[1:]) if isinstance(output, tuple) else full

    @property
    def is_flash(self) -> bool:
        """Whether the decoder runs on a flash-attention kernel, which takes no mask but padding."""
        return "flash" in str(self.family.text_config._attn_implementation)

    def _gathered(self, name: str, value: Any) -> Any:
        if self.compaction is None:
            return value
        if not name.startswith("position"):
            return gather_arguments(value, self.compaction, self.batch)
        # Positions are the same objects in every layer of a kind.
        known = self._arguments.get(id(value))
        if known is None:
            known = self._arguments[id(value)] = (value, gather_arguments(value, self.compaction, self.batch))
        return known[1]

    def _positions_of_keys(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments that hold the position of every key, cached ones included, without those that were dropped."""
        ends = self.past + self.length
        changed: dict[str, Any] = {}
        for name, value in arguments.items():
            if not name.startswith("position") or not _is_embedding(value, ends):
                continue
            known = self._key_positions.get(id(value))
            if known is None:
                columns, _ = self.masks.columns(ends - (self.record.dropped if self.record else 0) - self.removed, None)
                keys = Compaction(columns, None, ends)
                known = self._key_positions[id(value)] = (value, gather_arguments(value, keys, self.batch))
            changed[name] = known[1]
        return changed

    @property
    def _ragged(self) -> bool:
        return self.record is not None and self.record.ragged

    @property
    def _hides(self) -> bool:
        """Whether this forward leaves slots in its short layers that no query may see."""
        return self.compaction is not None and self.compaction.valid is not None

    def after(self) -> CacheRecord | None:
        """The record that the cache should carry once this forward is over, or None."""
        if self.compaction is None or self.plan is None:
            return self.record
        index, valid = self.compaction.index, self.compaction.valid
        now = index + self.past
        if valid is not None:
            now = now.masked_fill(~valid, -1)
        if self.past:
            if self.record is None:
                before = torch.arange(self.past, device=now.device).expand(self.batch, -1)
            else:
                columns, held = self.record.columns(self.past - self.record.dropped)
                before = columns.masked_fill(~held, -1).to(now.device)
            now = torch.cat([before, now], dim=1)
        return CacheRecord(
            layer=self.layer,
            length=self.past + self.length,
            slots=now,
            ragged=self.plan.ragged or self._ragged,
            tail=self.plan.tail,
        )


def _is_embedding(value: Any, length: int) -> bool:
    """Whether `value` holds embedded positions (B or 1, length, D)."""
    if isinstance(value, tuple):
        return bool(value) and all(_is_embedding(item, length) for item in value)
    if not isinstance(value, torch.Tensor) or value.ndim != 3:
        return False
    return value.is_floating_point() and value.shape[1] == length
