"""The layers of one forward from a pruning layer up to the next: what is chosen for them, and what they are given."""

from __future__ import annotations

from typing import Any

import torch

from .. import ranking
from .arguments import CACHE, HIDDEN_STATES, MASK
from .call import Call
from .compaction import Choice, Compaction, compact, gather_arguments
from .evidence import EvidenceReader
from .finite import FiniteCheck
from .short_masks import LentKeys, ShortMasks
from .slots import Slots

__all__ = ["Stage"]

_OWN_MASK = "conv_mask"
"""The argument by which an attention layer learns which columns its convolutions must leave out."""


class Stage:
    """Decoder layers that see the same columns of one forward: from `layer` to the next stage's.

    Args:
        call: the forward.
        number: how many stages come before.
        layer: its first decoder layer.
        lent: by layer, the keys that were lent in this forward; shared by its stages.
        before: the stage before, or None where whole layers come before.

    Attributes:
        slots: where the columns stand in its layers.
        choice: what was chosen, or None until then.
        finite: the look for NaN and infinity in what was judged.
    """

    def __init__(
        self, call: Call, number: int, layer: int, *, lent: dict[int, LentKeys], before: Stage | None = None
    ) -> None:
        self.call = call
        self.number = number
        self.layer = layer
        self.before = before
        self.slots = Slots(call, number, layer)
        self.choice: Choice | None = None
        self.finite = FiniteCheck(layer)
        self._masks = ShortMasks(self.slots, lent)
        self._evidence: EvidenceReader | None = None
        if call.prunes:
            self._evidence = EvidenceReader(call, number=number, before=None if before is None else before.slots)
        self._arguments: dict[int, tuple[Any, Any]] = {}
        self._key_positions: dict[int, tuple[Any, Any]] = {}

    @property
    def compaction(self) -> Compaction | None:
        """From the slots of its layers to this forward's columns; None while nothing is dropped."""
        return self.slots.compaction

    @property
    def is_short(self) -> bool:
        """Whether its layers see a shortened sequence."""
        return self.slots.is_short

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
        plan = self.call.plan
        return plan is not None and any(bucket.drops(self.number) for bucket in plan.buckets)

    @torch.no_grad()
    def choose(self, hidden_states: torch.Tensor) -> Choice:
        """Select the tokens that stay, given what enters its first layer, and build the compaction."""
        plan, before = self.call.require_plan, self.before
        device = hidden_states.device
        earlier = None if before is None else before.choice
        if not self.drops:
            self.choice = Choice.everything(plan, device) if earlier is None else earlier
            self.slots.compaction = None if before is None else before.compaction
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
        self.slots.compaction = compact(plan, columns, device, stage=self.number)
        return choice

    def _choose_in(self, number: int, flat: torch.Tensor, choice: Choice, earlier: torch.Tensor | None) -> None:
        """Select among the tokens (G, N) of a bucket those that stay.

        Args:
            number: the bucket's place in the plan.
            flat: its columns, on the device.
            choice: where to put what was chosen.
            earlier: LongTensor (G, K), those that are left until here; None for all.
        """
        bucket, method = self.call.require_plan.buckets[number], self.call.method
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
        protected = None if bucket.protected is None else bucket.protected.to(flat.device, non_blocking=True)
        selection = ranking.choose(
            method, scores, count, protected=protected, most_protected=bucket.most_protected, earlier=earlier
        )
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
        call, changed = self.call, dict[str, Any]()
        hidden = arguments[HIDDEN_STATES]
        if self.compaction is not None:
            for name, value in arguments.items():
                if name == HIDDEN_STATES:
                    changed[name] = self._shortened_states(value, layer)
                elif name not in (MASK, _OWN_MASK, CACHE):
                    changed[name] = self._gathered(name, value)
            for name, filler in call.family.fillers.items():
                if changed.get(name) is not None:
                    changed[name] = self.compaction.fill_padding(changed[name], filler)
            hidden = changed[HIDDEN_STATES]
            # Gapped position ids look like several packed sequences to the flash kernels.
            if call.is_flash:
                changed["position_ids"] = None
        if call.past:
            changed |= self._positions_of_keys(arguments)
        mask = arguments.get(MASK)
        lender = call.family.key_layer(layer)
        borrows = lender != layer
        if not borrows and call.family.lends_keys:
            self._masks.note_lender(hidden, layer)
        attends = borrows or call.family.keeps_keys(layer) or call.family.masks_itself(layer)
        if attends and (mask is not None or self.slots.hides or self.slots.is_ragged or borrows):
            changed[MASK] = self._masks.attention(mask, hidden, layer)
        if _OWN_MASK in arguments:
            changed[_OWN_MASK] = self._masks.recurrent(arguments[_OWN_MASK], hidden)
        return {name: value for name, value in changed.items() if value is not arguments.get(name)}

    def _shortened_states(self, states: torch.Tensor, layer: int) -> torch.Tensor:
        """The hidden states that a layer takes, out of those that the layer before, or the decoder, has handed it."""
        before = None if self.before is None else self.before.compaction
        if layer - 1 in self.call.rejoined or (layer == self.layer and before is None):
            way = self.compaction
        else:
            way = None if layer != self.layer or self.compaction is before else self._step()
        if way is None or states.shape[1] != way.length:
            return states
        shortened: torch.Tensor = gather_arguments(states, way, self.call.batch)
        return shortened

    def _step(self) -> Compaction | None:
        """From its slots to those of the stage before."""
        before = None if self.before is None else self.before.compaction
        if self.before is None or before is None or self.compaction is None:
            return self.compaction
        index = self.before.slots.of(self.compaction.index)
        return Compaction(index, self.compaction.valid, before.index.shape[1])

    def rejoin(self, output: Any) -> Any:
        """A short layer's output put back at its prompt positions, for a decoder that adds to it there."""
        if self.compaction is None or self.call.plan is None:
            return output
        states = output[0] if isinstance(output, tuple) else output
        # Slots that pad a shorter row will take from pruned positions, so nothing there may spread.
        full = self.compaction.scatter(states, self.call.plan.real, unknown=0.0)
        return (full, *output[1:]) if isinstance(output, tuple) else full

    def _gathered(self, name: str, value: Any) -> Any:
        if self.compaction is None:
            return value
        if not name.startswith("position"):
            return gather_arguments(value, self.compaction, self.call.batch)
        # Positions are the same objects in every layer of a kind.
        known = self._arguments.get(id(value))
        if known is None:
            known = self._arguments[id(value)] = (value, gather_arguments(value, self.compaction, self.call.batch))
        return known[1]

    def _positions_of_keys(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments that hold the position of every key, cached ones included, without those that were dropped."""
        ends = self.call.past + self.call.length
        changed: dict[str, Any] = {}
        for name, value in arguments.items():
            if not name.startswith("position") or not _is_embedding(value, ends):
                continue
            known = self._key_positions.get(id(value))
            if known is None:
                columns, _ = self.slots.columns(self.slots.held + self.call.length - self.slots.removed, None)
                keys = Compaction(columns, None, ends)
                known = self._key_positions[id(value)] = (value, gather_arguments(value, keys, self.call.batch))
            changed[name] = known[1]
        return changed


def _is_embedding(value: Any, length: int) -> bool:
    """Whether `value` holds embedded positions (B or 1, length, D)."""
    if isinstance(value, tuple):
        return bool(value) and all(_is_embedding(item, length) for item in value)
    if not isinstance(value, torch.Tensor) or value.ndim != 3:
        return False
    return value.is_floating_point() and value.shape[1] == length
