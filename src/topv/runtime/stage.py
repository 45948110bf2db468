"""The layers of one forward from a pruning layer up to the next: what is chosen for them, and what they are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..selection import select
from .arguments import CACHE, HIDDEN_STATES, MASK
from .compaction import Choice, Compaction, compact, gather_arguments
from .evidence import EvidenceReader, FiniteCheck
from .masks import KeySlots, shorten_mask
from .record import CacheRecord
from .short_masks import ShortMasks

if TYPE_CHECKING:
    from .forward import Forward

__all__ = ["Stage"]

_OWN_MASK = "conv_mask"
"""The argument by which an attention layer learns which columns its convolutions must leave out."""


class Stage:
    """Decoder layers that see the same columns of one forward: from `layer` to the next stage's.

    Args:
        run: the forward.
        number: how many stages come before.
        layer: its first decoder layer.
        before: the stage before, or None where whole layers come before.
        record: what its layers hold in the cache of the columns before this forward, or None if all of them.

    Attributes:
        compaction: from the slots of its layers to this forward's columns; None while nothing is dropped.
        choice: what was chosen, or None until then.
        masks: the masks of its layers.
        finite: the look for NaN and infinity in what was judged.
    """

    def __init__(
        self, run: Forward, number: int, layer: int, *, before: Stage | None = None, record: CacheRecord | None = None
    ) -> None:
        self.run = run
        self.number = number
        self.layer = layer
        self.before = before
        self.record = record
        self.compaction: Compaction | None = None
        self.choice: Choice | None = None
        self.masks = ShortMasks(self)
        self.finite = FiniteCheck(layer)
        self._evidence: EvidenceReader | None = None
        if run.plan is not None and run.prunes:
            self._evidence = EvidenceReader(run.plan, run.method, run.past, number=number, before=before)
        self._arguments: dict[int, tuple[Any, Any]] = {}
        self._key_positions: dict[int, tuple[Any, Any]] = {}

    @property
    def is_short(self) -> bool:
        """Whether its layers see a shortened sequence."""
        return self.compaction is not None or self.record is not None

    # ---- what families ask of a short layer ------------------------------------------------------------------

    @property
    def cache(self) -> Any:
        """The KV cache or None."""
        return self.run.cache

    @property
    def removed(self) -> int:
        """Columns that this forward has dropped, in every row."""
        return 0 if self.compaction is None else self.run.length - self.compaction.index.shape[1]

    def queries(self, device: torch.device) -> torch.Tensor:
        """LongTensor (B, Q) on `device`: the prompt column of each query."""
        run = self.run
        if self.compaction is None:
            return torch.arange(run.past, run.past + run.length, device=device).expand(run.batch, -1)
        return self.compaction.to(device).index + run.past

    # ---- selection ------------------------------------------------------------------------------------------

    @property
    def evidence(self) -> EvidenceReader:
        """What is read of this forward's visual tokens, in the layer before.

        Raises:
            RuntimeError: when the forward prunes nothing.
        """
        if self._evidence is None:
            raise RuntimeError("this forward prunes nothing, so it reads no evidence.")
        return self._evidence

    @property
    def drops(self) -> bool:
        """Whether fewer tokens stay in its layers than before."""
        plan = self.run.plan
        return plan is not None and any(bucket.drops(self.number) for bucket in plan.buckets)

    @torch.no_grad()
    def choose(self, hidden_states: torch.Tensor) -> Choice:
        """Select the tokens that stay, given what enters its first layer, and build the compaction."""
        plan, before = self.run.require_plan, self.before
        device = hidden_states.device
        earlier = None if before is None else before.choice
        if not self.drops:
            self.choice = Choice.everything(plan, device) if earlier is None else earlier
            self.compaction = None if before is None else before.compaction
            return self.choice
        if earlier is None:
            self.finite.look(self.evidence.visual(hidden_states, copy=False))
        if self.layer == 0:
            self.evidence.read_source(hidden_states)
        self.choice = choice = Choice()
        columns = []
        for number, flat in enumerate(self.evidence.flat_columns(device)):
            self._choose_in(number, flat, choice, None if earlier is None else earlier.kept[number])
            columns.append(flat.gather(1, choice.kept[number]))
        self.evidence.release()
        self.compaction = compact(plan, columns, device, stage=self.number)
        return choice

    def _choose_in(self, number: int, flat: torch.Tensor, choice: Choice, earlier: torch.Tensor | None) -> None:
        """Select among the tokens (G, N) of a bucket those that stay.

        Args:
            number: the bucket's place in the plan.
            flat: its columns, on the device.
            choice: where to put what was chosen.
            earlier: LongTensor (G, K), those that are left until here; None for all.
        """
        bucket, method = self.run.require_plan.buckets[number], self.run.method
        count = bucket.counts[self.number]
        if count == 0 or not bucket.drops(self.number):
            none = flat.new_empty(len(flat), 0)
            kept = none if count == 0 else torch.arange(count, device=flat.device).expand(len(flat), -1)
            kept = earlier if count and earlier is not None else kept
            choice.add(kept, torch.zeros_like(kept, dtype=torch.bool), None)
            return
        scores = self.evidence.scores(number, flat.device)
        importance = scores if method.has_importance else None
        if earlier is not None:
            self.finite.look([scores])
        if bucket.protected is not None:
            scores = scores.masked_fill(bucket.protected.to(flat.device, non_blocking=True), float("inf"))
        recovered = 0
        if earlier is None:
            recovered = min(method.recovered(count, bucket.tokens), count - bucket.most_protected)
        else:
            gone = torch.ones_like(scores, dtype=torch.bool).scatter(1, earlier, False)
            scores = scores.masked_fill(gone, -float("inf"))
        selection = select(scores, count, recovered)
        choice.add(selection.indices, selection.recovered, importance)

    # ---- short layers ---------------------------------------------------------------------------------------

    def shorten(self, arguments: dict[str, Any], layer: int) -> dict[str, Any]:
        """The arguments of one of its layers, changed to the shortened sequence.

        Args:
            arguments: the layer's arguments by name.
            layer: the layer's index.

        Returns:
            The changed arguments alone.
        """
        run, changed = self.run, dict[str, Any]()
        hidden = arguments[HIDDEN_STATES]
        if self.compaction is not None:
            for name, value in arguments.items():
                if name == HIDDEN_STATES:
                    changed[name] = self._shortened_states(value, layer)
                elif name not in (MASK, _OWN_MASK, CACHE):
                    changed[name] = self._gathered(name, value)
            for name, filler in run.family.fillers.items():
                if changed.get(name) is not None:
                    changed[name] = self.compaction.fill_padding(changed[name], filler)
            hidden = changed[HIDDEN_STATES]
            # Gapped position ids look like several packed sequences to the flash kernels.
            if run.is_flash:
                changed["position_ids"] = None
        if run.past:
            changed |= self._positions_of_keys(arguments)
        mask = arguments.get(MASK)
        lender = run.family.key_layer(layer)
        borrows = lender != layer
        if not borrows and run.family.lends_keys:
            self.masks.note_lender(hidden, layer)
        attends = borrows or run.family.keeps_keys(layer) or run.family.masks_itself(layer)
        if attends and (mask is not None or self._hides or self._ragged or borrows):
            changed[MASK] = self.masks.attention(mask, hidden, layer)
        if _OWN_MASK in arguments:
            changed[_OWN_MASK] = self.masks.recurrent(arguments[_OWN_MASK], hidden)
        return {name: value for name, value in changed.items() if value is not arguments.get(name)}

    def _shortened_states(self, states: torch.Tensor, layer: int) -> torch.Tensor:
        """The hidden states that a layer takes, out of those that the layer before, or the decoder, has handed it."""
        before = None if self.before is None else self.before.compaction
        if layer - 1 in self.run.rejoined or (layer == self.layer and before is None):
            way = self.compaction
        else:
            way = None if layer != self.layer or self.compaction is before else self._step()
        if way is None or states.shape[1] != way.length:
            return states
        shortened: torch.Tensor = gather_arguments(states, way, self.run.batch)
        return shortened

    def _step(self) -> Compaction | None:
        """From its slots to those of the stage before."""
        before = None if self.before is None else self.before.compaction
        if self.before is None or before is None or self.compaction is None:
            return self.compaction
        index = self.before.slots_of(self.compaction.index)
        return Compaction(index, self.compaction.valid, before.index.shape[1])

    def slots_of(self, columns: torch.Tensor) -> torch.Tensor:
        """LongTensor (B, R): the slot of each of this forward's `columns` (B, R); any slot for one that was dropped."""
        if self.compaction is None:
            return columns
        index = self.compaction.to(columns.device).index
        slots = torch.arange(index.shape[1], device=index.device).expand_as(index)
        return index.new_zeros(len(index), self.run.length).scatter(1, index, slots).gather(1, columns)

    @property
    def held(self) -> int:
        """Slots that its layers' caches held before this forward."""
        return self.run.past - (0 if self.record is None else self.record.dropped)

    def key_mask(self, width: int, device: torch.device) -> torch.Tensor:
        """Which of the first `width` keys of its layers hold a column that is not padding: BoolTensor (B, width)."""
        columns, valid = self.masks.columns(width, device)
        mask = self.run.mask
        if mask is None or mask.ndim != 2:
            return valid
        return torch.Tensor.bool(shorten_mask(mask.to(device), KeySlots(columns, valid, 0), None))

    def rejoin(self, output: Any) -> Any:
        """A short layer's output put back at its prompt positions, for a decoder that adds to it there."""
        if self.compaction is None or self.run.plan is None:
            return output
        states = output[0] if isinstance(output, tuple) else output
        # Slots that pad a shorter row will take from pruned positions, so nothing there may spread.
        full = self.compaction.scatter(states, self.run.plan.real, unknown=0.0)
        return (full, *output[1:]) if isinstance(output, tuple) else full

    def _gathered(self, name: str, value: Any) -> Any:
        if self.compaction is None:
            return value
        if not name.startswith("position"):
            return gather_arguments(value, self.compaction, self.run.batch)
        # Positions are the same objects in every layer of a kind.
        known = self._arguments.get(id(value))
        if known is None:
            known = self._arguments[id(value)] = (value, gather_arguments(value, self.compaction, self.run.batch))
        return known[1]

    def _positions_of_keys(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments that hold the position of every key, cached ones included, without those that were dropped."""
        ends = self.run.past + self.run.length
        changed: dict[str, Any] = {}
        for name, value in arguments.items():
            if not name.startswith("position") or not _is_embedding(value, ends):
                continue
            known = self._key_positions.get(id(value))
            if known is None:
                columns, _ = self.masks.columns(self.held + self.run.length - self.removed, None)
                keys = Compaction(columns, None, ends)
                known = self._key_positions[id(value)] = (value, gather_arguments(value, keys, self.run.batch))
            changed[name] = known[1]
        return changed

    @property
    def _ragged(self) -> bool:
        return self.record is not None and self.record.ragged

    @property
    def _hides(self) -> bool:
        """Whether this forward leaves slots in its layers that no query may see."""
        return self.compaction is not None and self.compaction.valid is not None

    def after(self) -> CacheRecord | None:
        """What its layers hold once this forward is over, or None if every column."""
        run = self.run
        if self.compaction is None or run.plan is None:
            return self.record
        index, valid = self.compaction.index, self.compaction.valid
        now = index + run.past
        if valid is not None:
            now = now.masked_fill(~valid, -1)
        if run.past:
            if self.record is None:
                before = torch.arange(run.past, device=now.device).expand(run.batch, -1)
            else:
                columns, held = self.record.columns(self.held)
                before = columns.masked_fill(~held, -1).to(now.device)
            now = torch.cat([before, now], dim=1)
        return CacheRecord(
            layer=self.layer,
            length=run.past + run.length,
            slots=now,
            ragged=run.plan.ragged(self.number) or self._ragged,
            tail=run.plan.tail,
        )


def _is_embedding(value: Any, length: int) -> bool:
    """Whether `value` holds embedded positions (B or 1, length, D)."""
    if isinstance(value, tuple):
        return bool(value) and all(_is_embedding(item, length) for item in value)
    if not isinstance(value, torch.Tensor) or value.ndim != 3:
        return False
    return value.is_floating_point() and value.shape[1] == length
