"""One forward of a pruned model: what its hooks share, from the first look at the prompt to the scattered output."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import EvidenceError
from ..layout import coordinates
from ..methods import Evidence, Method
from ..models import Family
from ..selection import select
from .attention_row import KeyTap, attention_to_tokens
from .compaction import Compaction, compact, gather_arguments
from .masks import KeySlots, causal_mask, shorten_mask
from .plan import Bucket, PrefillPlan, Section
from .record import CacheRecord, mask_sizes

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
        self._flat: dict[torch.device, list[torch.Tensor]] = {}
        self._source: list[torch.Tensor] | None = None
        self._target: list[torch.Tensor] | None = None
        self._attention: torch.Tensor | None = None
        self._key_tap: KeyTap | None = None
        self._finite: list[tuple[torch.Tensor, Any]] = []
        self.rejoined: frozenset[int] = frozenset()
        self._arguments: dict[int, tuple[Any, Any]] = {}
        self._key_positions: dict[int, tuple[Any, Any]] = {}
        self._lent: dict[int, tuple[int, int]] = {}
        self._masks: dict[tuple[int, int, int], tuple[Any, Any]] = {}

    @property
    def prunes(self) -> bool:
        """Whether this forward shortens the sequence."""
        return self.plan is not None and bool(self.plan.buckets)

    def shortens(self, layer: int) -> bool:
        """Whether decoder layer `layer` sees a shortened sequence."""
        return layer >= self.layer and (self.prunes or self.record is not None)

    # ---- evidence -------------------------------------------------------------------------------------------

    def wants(self, evidence: str) -> bool:
        """Whether the method asked for `evidence` and this forward has something to prune."""
        return self.prunes and evidence in self.method.needs

    @torch.no_grad()
    def read_source(self, hidden_states: torch.Tensor) -> None:
        """Take the visual tokens that enter layer `layer - 1` from (B, T, D)."""
        self._source = self._visual(hidden_states)

    @torch.no_grad()
    def read_target(self, hidden_states: torch.Tensor) -> None:
        """Take the visual tokens at the method's target position from (B, T, D)."""
        self._target = self._visual(hidden_states)

    def tap_keys(self, cache: Any) -> KeyTap:
        """A stand-in for `cache` that remembers the keys of layer `layer - 1`."""
        self._key_tap = KeyTap(cache)
        return self._key_tap

    @torch.no_grad()
    def read_attention(self, attention: nn.Module, arguments: dict[str, Any]) -> None:
        """Take the last prompt token's attention in layer `layer - 1`, which has just run with `arguments`."""
        if self.plan is None or self._key_tap is None:
            return
        last = torch.where(self.plan.real, torch.arange(self.length, device="cpu"), -1).amax(1)
        own = arguments.get("attention_mask")
        self._attention = attention_to_tokens(
            attention,
            arguments,
            self._key_tap,
            last=last,
            past=self.past,
            mask=own if isinstance(own, torch.Tensor) and own.ndim == 4 else self.mask,
            whole_map="attention_map" in self.method.needs,
        )
        self._key_tap = None

    def _visual(self, hidden_states: torch.Tensor) -> list[torch.Tensor]:
        tokens = hidden_states.reshape(self.batch * self.length, -1)
        return [
            tokens.index_select(0, flat.flatten()).view(*flat.shape, -1)
            for flat in self._flat_columns(hidden_states.device)
        ]

    def _flat_columns(self, device: torch.device) -> list[torch.Tensor]:
        if device not in self._flat:
            buckets = self.plan.buckets if self.plan is not None else ()
            self._flat[device] = [bucket.flat.to(device, non_blocking=True) for bucket in buckets]
        return self._flat[device]

    # ---- selection ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def choose(self, hidden_states: torch.Tensor) -> None:
        """Select the tokens that stay, given what enters layer `layer`, and build the compaction."""
        plan = self.plan
        if plan is None:
            return
        self._check_finite(hidden_states)
        device = hidden_states.device
        kept = []
        for number, (bucket, flat) in enumerate(zip(plan.buckets, self._flat_columns(device), strict=True)):
            if bucket.count == 0:
                self.outcome.importance.append(None)
                self.outcome.kept.append(flat.new_empty(len(bucket.groups), 0))
                self.outcome.recovered.append(flat.new_empty(len(bucket.groups), 0, dtype=torch.bool))
                continue
            scores = self._scores(number, bucket, device)
            self.outcome.importance.append(scores if self.method.has_importance else None)
            if bucket.protected is not None:
                scores = scores.masked_fill(bucket.protected.to(device, non_blocking=True), float("inf"))
            recovered = min(self.method.recovered(bucket.count, bucket.tokens), bucket.count - bucket.most_protected)
            selection = select(scores, bucket.count, recovered)
            self.outcome.kept.append(selection.indices)
            self.outcome.recovered.append(selection.recovered)
            kept.append(flat.gather(1, selection.indices))
        self._source = self._target = self._attention = None
        self.compaction = compact(plan, kept, device)

    def _scores(self, number: int, bucket: Bucket, device: torch.device) -> torch.Tensor:
        """The scores of a bucket's tokens: float32 (G, N), one solve for all its grids of a shape."""
        pieces: dict[int, torch.Tensor] = {}
        for section in bucket.sections:
            evidence = self._evidence(number, section, device)
            scores = self.method.score(evidence, min(bucket.count, section.tokens))
            _check_scores(scores, (len(section.grids), section.tokens), self.method)
            pieces.update(zip(section.starts, scores.chunk(len(section.starts)), strict=True))
        return torch.cat([pieces[start] for start in sorted(pieces)], dim=1)

    def _evidence(self, number: int, section: Section, device: torch.device) -> Evidence:
        def cut(whole: list[torch.Tensor] | None) -> torch.Tensor | None:
            if whole is None:
                return None
            states = whole[number].to(device)
            return torch.cat([states[:, start : start + section.tokens] for start in section.starts])

        attention = None
        if self._attention is not None:
            samples = torch.tensor([grid.sample for grid in section.grids], device="cpu").unsqueeze(1)
            columns = torch.stack([grid.columns for grid in section.grids]) + self.past
            attention = self._attention.to(device)[
                samples.to(device, non_blocking=True), columns.to(device, non_blocking=True)
            ]
        source, target = cut(self._source), cut(self._target)
        if source is not None and target is not None and source.shape[-1] > target.shape[-1]:
            # Several residual streams side by side: what a layer reads is a mixture of them.
            source = source.unflatten(-1, (-1, target.shape[-1])).mean(-2)
        shape = section.grids[0].rows_and_columns
        return Evidence(
            rows_and_columns=shape,
            coordinates=coordinates(shape).to(device, non_blocking=True),
            images=tuple(grid.ordinal for grid in section.grids),
            source=source,
            target=target,
            attention=attention,
        )

    def _check_finite(self, hidden_states: torch.Tensor) -> None:
        flags = [tokens.isfinite().all() for tokens in self._visual(hidden_states)]
        finite = torch.stack(flags).all()
        if not finite.is_cuda:
            _raise_unless_finite(bool(finite), self.layer)
            return
        # The copy is read when the forward ends, by when it has long arrived: no layer waits for it.
        copied = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(finite.device))
        self._finite.append((copied, event))

    def finish_checks(self) -> None:
        """Raise what a check on the device has found meanwhile.

        Raises:
            EvidenceError: when a visual token held NaN or infinity.
        """
        for copied, event in self._finite:
            event.synchronize()
            _raise_unless_finite(bool(copied), self.layer)

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
            self._lent[layer] = mask_sizes(self.cache, hidden.shape[1], layer)
        if mask is not None or self._hides or self._ragged or borrows:
            changed["attention_mask"] = self._shortened_mask(mask, hidden, layer)
        if _OWN_MASK in arguments:
            changed[_OWN_MASK] = self._known_mask(arguments[_OWN_MASK], (0, 0), hidden, self._recurrent_mask)
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
                columns, _ = self._columns(ends - (self.record.dropped if self.record else 0) - self.removed, None)
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

    def _shortened_mask(self, mask: Any, hidden_states: torch.Tensor, layer: int) -> Any:
        recurrent = self.family.masks_itself(layer)
        lender = self.family.key_layer(layer)
        sizes = (0, 0) if recurrent else (-1, lender)
        if lender == layer and not recurrent:
            sizes = mask_sizes(self.cache, hidden_states.shape[1], layer)

        def make(mask: Any) -> Any:
            if recurrent:
                return self._recurrent_mask(mask)
            if lender != layer:
                return self._borrowed_keys_mask(mask, hidden_states, lender)
            return self._attention_mask(mask, hidden_states, layer, sizes)

        return self._known_mask(mask, sizes, hidden_states, make)

    def _known_mask(
        self, mask: Any, sizes: tuple[int, int], hidden_states: torch.Tensor, make: Callable[[Any], Any]
    ) -> Any:
        """What `make` makes of `mask`, for layers of given key sizes; made once, as layers share masks."""
        known = self._masks.get((id(mask), *sizes))
        if known is None:
            known = self._masks[(id(mask), *sizes)] = (mask, make(mask))
        made = known[1]
        return made.to(hidden_states.device) if isinstance(made, torch.Tensor) else made

    def _recurrent_mask(self, mask: Any) -> Any:
        """A recurrent layer's mask says which of this forward's own columns are padding."""
        if self.compaction is None or (mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2)):
            return mask
        if mask is None:
            return None if self.compaction.valid is None else self.compaction.valid.clone()
        columns = self.compaction.to(mask.device).index + (mask.shape[1] - self.length)
        kept = mask.expand(self.batch, -1).gather(1, columns)
        valid = self.compaction.to(mask.device).valid
        return kept if valid is None else kept.masked_fill(~valid, False)

    def _attention_mask(self, mask: Any, hidden_states: torch.Tensor, layer: int, sizes: tuple[int, int]) -> Any:
        device = mask.device if isinstance(mask, torch.Tensor) else hidden_states.device
        length, let_go = sizes
        columns, valid = (slots[:, let_go:] for slots in self._columns(let_go + length, device))
        offset = self._mask_offset(mask, layer, let_go)
        pinned = self.family.pinned(self.cache, layer)
        if pinned and mask is not None:
            offset, gone = 0, self.past + self.length - mask.shape[-1]
            columns, valid = self._columns(let_go + length, device)
            columns = torch.cat([columns[:, :pinned], columns[:, pinned + let_go :] - gone], dim=1)
            valid = torch.cat([valid[:, :pinned], valid[:, pinned + let_go :]], dim=1)
        keys = KeySlots(columns, valid, offset)
        if mask is not None:
            return shorten_mask(mask, keys, None if self.compaction is None else self.compaction.to(device).index)
        return causal_mask(
            keys, config=self.family.text_config, hidden_states=hidden_states, cache=self.cache, layer=layer
        )

    def _columns(self, width: int, device: torch.device | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The prompt column in each of a short layer's first `width` slots (B, width), and which slots hold one."""
        record = self.after()
        if record is None:
            columns = torch.arange(width, device=device).expand(self.batch, -1)
            return columns, torch.ones_like(columns, dtype=torch.bool)
        columns, filled = record.columns(width)
        return (columns, filled) if device is None else (columns.to(device), filled.to(device))

    def _borrowed_keys_mask(self, mask: Any, hidden_states: torch.Tensor, lender: int) -> Any:
        """The mask of a layer that attends to the keys of an earlier one, which may hold every column."""
        record, device = self.after(), hidden_states.device
        ends, queries = self.past + self.length, hidden_states.shape[1]
        rows = torch.arange(self.length, device=device).expand(self.batch, -1)
        if self.compaction is not None:
            rows = self.compaction.to(device).index
        rows = rows[:, rows.shape[1] - queries :]
        columns = torch.arange(ends, device=device).expand(self.batch, -1)
        member = torch.ones_like(columns, dtype=torch.bool)
        if record is not None:
            slots = record.slots.to(device)
            known = member.new_zeros(self.batch, record.length + 1)
            known.scatter_(1, torch.where(slots >= 0, slots, record.length), True)
            member[:, : record.length] = known[:, : record.length]
            if lender in self._lent:
                length, let_go = self._lent[lender]
                columns, member = (t[:, let_go:].to(device) for t in record.columns(let_go + length))
        if mask is None:
            seen = (columns[:, None, :] <= (rows + self.past)[:, :, None]) & member[:, None, :]
            if self.mask is not None and self.mask.ndim == 2:
                seen = seen & self.mask[:, :ends].bool().to(device).gather(1, columns)[:, None, :]
            return seen[:, None]
        offset = max(0, ends - mask.shape[-1])
        inside = slice(offset, None) if lender < self.layer else slice(None)
        whole_rows = mask.shape[-2] != queries or queries == self.length
        keys = KeySlots(columns[:, inside], member[:, inside], offset)
        return shorten_mask(mask, keys, rows if whole_rows and self.compaction is not None else None)

    def _mask_offset(self, mask: Any, layer: int, let_go: int) -> int:
        """The prompt column that a layer's mask begins with: not the first where a window has let go of some."""
        if let_go == 0 and self.past == 0:
            return 0
        if isinstance(mask, torch.Tensor) and mask.ndim == 2:
            return 0
        width = mask.shape[-1] if mask is not None else 0
        ends = self.past + self.length
        window = self.family.window(layer)
        return max(0, ends - width) if window is not None and width < ends else 0

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


def _check_scores(scores: Any, shape: tuple[int, int], method: Method) -> None:
    if not isinstance(scores, torch.Tensor) or scores.shape != shape or not scores.is_floating_point():
        shown = f"{tuple(scores.shape)} {scores.dtype}" if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise TypeError(
            f"{type(method).__name__}.score() returned {shown}, expected a floating-point tensor of shape {shape}: one "
            "score for each visual token of each grid."
        )


def _raise_unless_finite(finite: bool, layer: int) -> None:
    if not finite:
        raise EvidenceError(
            f"the visual tokens entering decoder layer {layer} hold NaN or infinity, so no method can rank them. "
            "Look for an overflow in a lower layer (float16 is prone to it; try bfloat16 or float32) or for NaN in "
            "the pixel values."
        )
