"""Reading what a method asks for, and scoring the visual tokens with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .. import ranking
from ..errors import EvidenceError
from ..layout import Grid
from ..methods import TARGETS
from .arguments import HIDDEN_STATES, MASK
from .attention_row import KeyTap, Raters, attention_to_tokens, run_eagerly
from .call import Call
from .plan import Bucket
from .raters import gather_marked, last_token
from .slots import Slots

__all__ = ["EvidenceReader"]


class EvidenceReader:
    """What was read of one prefill's visual tokens on their way through the layer before they are pruned.

    Args:
        call: the prefill, whose method will score the tokens.
        number: how many pruning layers come before.
        before: what the layer holds, or None where it sees every column.

    Attributes:
        keys: the keys that the tapped attention module works with, while it runs.
        raters: whose attention is read, by their columns.
        encoder: by kind of picture, then by name, what was read in the vision tower, a row for each placeholder.
    """

    def __init__(self, call: Call, *, number: int = 0, before: Slots | None = None) -> None:
        self._number = number
        self._before = before
        self.raters: Raters | None = None
        self._plan = call.require_plan
        self._method = call.method
        self._call = call
        self._flat: dict[torch.device, list[torch.Tensor]] = {}
        self._source: list[torch.Tensor] | None = None
        self._target: list[torch.Tensor] | None = None
        self._attention: torch.Tensor | None = None
        self._text: tuple[torch.Tensor, torch.Tensor] | None = None
        self.keys: KeyTap | None = None
        self.encoder: dict[str, dict[str, torch.Tensor]] = {}
        self._placeholders: tuple[Mapping[str, torch.Tensor], int] | None = None

    def note_placeholders(self, kinds: Mapping[str, torch.Tensor], copies: int) -> None:
        """Remember which columns stand for the rows that the vision tower gives.

        Args:
            kinds: by kind of picture, BoolTensor (B, T).
            copies: rows of the batch that are made of each sample, and show the same pictures.
        """
        self._placeholders = kinds, copies

    def flat_columns(self, device: torch.device) -> list[torch.Tensor]:
        """For each bucket of the plan, `Bucket.flat` on `device`."""
        if device not in self._flat:
            self._flat[device] = [bucket.flat.to(device, non_blocking=True) for bucket in self._plan.buckets]
        return self._flat[device]

    @torch.no_grad()
    def read_source(self, hidden_states: torch.Tensor) -> None:
        """Take the visual and the text tokens that enter the layer, from (B, T, D), as far as the method asked."""
        if "source" in self._method.needs:
            self._source = self.visual(hidden_states, copy=False)
        if "text" in self._method.needs:
            self._text = self._text_tokens(hidden_states)

    def _text_tokens(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The text tokens (B, M, D) of every sample, padded on the left with zeros, and where they are (B, M)."""
        plan = self._plan
        text = plan.real.clone()
        for grid in plan.layout.grids:
            text[grid.sample, grid.columns] = False
        return gather_marked(hidden_states, text)

    @torch.no_grad()
    def read_target(self, hidden_states: torch.Tensor, *, copy: bool) -> None:
        """Take the visual tokens at the method's target position, from (B, T, D).

        Args:
            hidden_states: the states there.
            copy: whether the layer may yet write into them.
        """
        self._target = self.visual(hidden_states, copy=copy)

    @torch.no_grad()
    def read_attention(self, attention: nn.Module, arguments: dict[str, Any]) -> None:
        """Take the raters' attention in a module that has just run with `arguments`, beside its fast path.

        Args:
            attention: the attention module, whose keys were tapped.
            arguments: what it ran with.
        """
        tap, before, mask = self.keys, self._before, self._call.mask
        if tap is None:
            return
        self.keys = None
        width, hidden = 0 if tap.keys is None else tap.keys.shape[-2], arguments[HIDDEN_STATES]
        past = min(self._call.past if before is None else before.held, width - hidden.shape[1])
        raters = self.raters or last_token(self._plan)
        if before is not None and before.is_short:
            raters = Raters(before.of(raters.rows.to(hidden.device, non_blocking=True)), raters.weights)
            mask = before.key_mask(width, hidden.device)
        attended = attention_to_tokens(
            attention,
            arguments,
            tap,
            raters=raters,
            past=past,
            mask=_own_mask(arguments, mask),
            whole_map="attention_map" in self._method.needs,
        )
        self._attention = self._at_columns(attended, past)

    @torch.no_grad()
    def run_attention(self, attention: nn.Module, arguments: dict[str, Any]) -> Any:
        """Run an attention module with its whole map computed, and take the last prompt token's attention from it."""
        mask, last = _own_mask(arguments, self._call.mask), last_token(self._plan).rows[:, 0]
        output, attention_row = run_eagerly(attention, arguments, last=last, past=self._call.past, mask=mask)
        self._attention = self._at_columns(attention_row, self._call.past)
        return output

    def _at_columns(self, attended: torch.Tensor, past: int) -> torch.Tensor:
        """What was paid to each key (B, keys), at this forward's columns: (B, T), 0 at those that were dropped."""
        compaction = None if self._before is None else self._before.compaction
        if compaction is None:
            return attended[:, past : past + self._plan.layout.length]
        index = compaction.to(attended.device).index
        own = attended[:, past : past + index.shape[1]]
        return own.new_zeros(len(own), compaction.length).scatter(1, index, own)

    def visual(self, hidden_states: torch.Tensor, *, copy: bool) -> list[torch.Tensor]:
        """The visual tokens of each bucket, (G, N, D), out of (B, T, D), or of (B * T, D) as some MLPs take them.

        Args:
            hidden_states: the states of the whole prompt.
            copy: False for views of them, where the tokens lie at even distances.
        """
        tokens = hidden_states.reshape(self._plan.real.numel(), -1)
        taken = []
        for bucket, flat in zip(self._plan.buckets, self.flat_columns(hidden_states.device), strict=True):
            plain = type(tokens) is torch.Tensor and bucket.stride is not None
            view = _evenly(tokens, bucket) if plain and not copy else None
            taken.append(tokens.index_select(0, flat.flatten()).view(*flat.shape, -1) if view is None else view)
        return taken

    def release(self) -> None:
        """Let go of everything that was read."""
        self._source = self._target = self._attention = self._text = self.keys = None
        self.encoder = {}

    def scores(self, number: int, device: torch.device) -> torch.Tensor:
        """The scores of a bucket's tokens: float32 (G, N), one solve for all its grids of a shape.

        Args:
            number: the bucket's place in the plan.
            device: where to score.

        Raises:
            TypeError: when the method returns something else.
        """
        bucket = self._plan.buckets[number]
        grids = bucket.sections
        sections = [section.on(device) for section in grids]

        def read(which: int) -> dict[str, torch.Tensor | None]:
            return self._read(number, sections[which], grids[which].grids, device)

        return ranking.score(self._method, sections, read, bucket.counts[self._number])

    def _read(
        self, number: int, section: ranking.Section, grids: tuple[Grid, ...], device: torch.device
    ) -> dict[str, torch.Tensor | None]:
        """What was read of a section's tokens, by the names of the method's needs."""

        def cut(whole: list[torch.Tensor] | None) -> torch.Tensor | None:
            return None if whole is None else section.cut(whole[number].to(device))

        samples = torch.tensor([grid.sample for grid in grids], device="cpu").to(device, non_blocking=True)
        read: dict[str, torch.Tensor | None] = {}
        for name in self._method.needs:
            if name == "source":
                read[name] = cut(self._source)
            elif name in TARGETS:
                read[name] = cut(self._target)
            elif name == "text":
                if self._text is not None:
                    read["text"], read["text_mask"] = (states.to(device)[samples] for states in self._text)
            elif name.startswith("encoder_"):
                states = self._encoded(name, grids, device)
                read[name] = states.float().mean(-1) if states is not None and name == "encoder_weights" else states
            elif self._attention is not None:
                columns = torch.stack([grid.columns for grid in grids]).to(device, non_blocking=True)
                read[name] = self._attention.to(device)[samples.unsqueeze(1), columns]
        return read

    def _encoded(self, name: str, grids: tuple[Grid, ...], device: torch.device) -> torch.Tensor | None:
        """What the vision tower says of a section's tokens, (P * G, n, D), or None where it was not asked."""
        if self._placeholders is None:
            return None
        kinds, copies = self._placeholders
        states, rows, before = [], torch.full_like(next(iter(kinds.values())), -1, dtype=torch.long), 0
        for kind, marks in kinds.items():
            own = self.encoder.get(kind, {}).get(name.removeprefix("encoder_"))
            counts = marks[::copies].sum(1)
            expected = int(counts.sum())
            if (0 if own is None else len(own)) != expected:
                raise EvidenceError(
                    f"the vision tower gave {0 if own is None else len(own)} rows of evidence, and the prompt has "
                    f"{expected} {kind} placeholders. Pass the pixel values that the processor returned, and attach "
                    "the method before they are encoded."
                )
            if own is None:
                continue
            first = (counts.cumsum(0) - counts + before).repeat_interleave(copies).unsqueeze(1)
            rows = torch.where(marks, marks.cumsum(1) - 1 + first, rows)
            states.append(own)
            before += expected
        index = torch.stack([rows[grid.sample, grid.columns] for grid in grids])
        return torch.cat(states)[index.to(states[0].device)].to(device)


def _evenly(tokens: torch.Tensor, bucket: Bucket) -> torch.Tensor:
    """The tokens (G, N, D) of a bucket as a view of all of them (B * T, D)."""
    first, step = bucket.stride if bucket.stride is not None else (0, 0)
    row, number = tokens.stride()
    return tokens.as_strided(
        (len(bucket.groups), bucket.tokens, tokens.shape[1]),
        (step * row, row, number),
        tokens.storage_offset() + first * row,
    )


def _own_mask(arguments: dict[str, Any], mask: torch.Tensor | None) -> torch.Tensor | None:
    own = arguments.get(MASK)
    return own if isinstance(own, torch.Tensor) and own.ndim == 4 else mask
