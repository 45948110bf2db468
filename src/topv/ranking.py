"""Which visual tokens of a bucket stay: its grids are judged section by section, and the best are selected.

The one place where a method's scores become a choice. Every way of running a model, and serving, calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .methods import Evidence, Method
from .selection import Selection, select

__all__ = ["Section", "choose", "score"]


@dataclass(frozen=True, eq=False)
class Section:
    """The grids of one shape among a bucket's groups, to be judged in one batched solve.

    Attributes:
        starts: where each of the P grids of a group begins among the group's N tokens.
        tokens: visual tokens n of a grid.
        rows_and_columns: the grids' shape (h, w).
        coordinates: float32 (n, 2), each token's (row, column), on the device of the evidence.
        images: for each of the P * G grids, the first of every group and then the second, its number among its
            sample's grids.
        previous: for each grid the number, among these, of the one in its place a frame earlier, or -1; None where
            that is not known.
    """

    starts: tuple[int, ...]
    tokens: int
    rows_and_columns: tuple[int, int]
    coordinates: torch.Tensor
    images: tuple[int, ...]
    previous: tuple[int, ...] | None = None

    def cut(self, tokens: torch.Tensor) -> torch.Tensor:
        """This section's tokens (P * G, n, ...) out of those of whole groups (G, N, ...)."""
        parts = [tokens[:, start : start + self.tokens] for start in self.starts]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


Reader = Callable[[int], Mapping[str, torch.Tensor | None]]
"""Gives what was read of the tokens of a section, by its number: by the names of `Method.needs`."""


def score(method: Method, sections: Sequence[Section], read: Reader, count: int) -> torch.Tensor:
    """The scores of a bucket's tokens: float (G, N).

    Args:
        method: judges each section by itself.
        sections: the bucket's grids; together they cover every token of a group once.
        read: gives the evidence of one of them.
        count: how many tokens of each group are to stay.

    Raises:
        TypeError: when the method returns no floating-point score for each token.
    """
    pieces: dict[int, torch.Tensor] = {}
    for number, section in enumerate(sections):
        evidence = Evidence.of_readings(
            read(number),
            rows_and_columns=section.rows_and_columns,
            coordinates=section.coordinates,
            images=section.images,
            previous=section.previous,
        )
        scores = method.score(_of_one_width(evidence), min(count, section.tokens))
        _check_scores(scores, (len(section.images), section.tokens), method)
        pieces.update(zip(section.starts, scores.chunk(len(section.starts)), strict=True))
    return torch.cat([pieces[start] for start in sorted(pieces)], dim=1) if len(pieces) > 1 else pieces[0]


def choose(
    method: Method,
    scores: torch.Tensor,
    count: int,
    *,
    protected: torch.Tensor | None = None,
    most_protected: int = 0,
    earlier: torch.Tensor | None = None,
) -> Selection:
    """Select the `count` tokens of each group that stay.

    Args:
        method: says how many of them are recovered.
        scores: float (G, N).
        count: K, at least `most_protected`.
        protected: BoolTensor (G, N) of tokens that stay whatever their score, or None.
        most_protected: the largest number of them in a group, so that no device needs to be asked. Recovery takes
            only the room that they leave.
        earlier: LongTensor (G, K'), K' >= K, those that an earlier choice has left; None for all. From among them
            nothing is recovered.
    """
    if protected is not None:
        scores = scores.masked_fill(protected, float("inf"))
    if earlier is None:
        recovered = min(method.recovered(count, scores.shape[1]), count - most_protected)
    else:
        recovered = 0
        gone = torch.ones_like(scores, dtype=torch.bool).scatter(1, earlier, False)
        scores = scores.masked_fill(gone, -float("inf"))
    return select(scores, count, recovered)


def _of_one_width(evidence: Evidence) -> Evidence:
    """Several residual streams side by side made one: what a layer reads is a mixture of them."""
    source = _averaged(evidence.source, evidence.target)
    text = _averaged(evidence.text, source)
    return (
        evidence if source is evidence.source and text is evidence.text else replace(evidence, source=source, text=text)
    )


def _averaged(wide: torch.Tensor | None, narrow: torch.Tensor | None) -> torch.Tensor | None:
    """The mean of the streams in `wide` (..., streams * D), where `narrow` (..., D) holds one."""
    if wide is None or narrow is None or wide.shape[-1] <= narrow.shape[-1]:
        return wide
    return wide.reshape(*wide.shape[:-1], -1, narrow.shape[-1]).mean(-2)


def _check_scores(scores: Any, shape: tuple[int, int], method: Method) -> None:
    if not isinstance(scores, torch.Tensor) or scores.shape != shape or not scores.is_floating_point():
        shown = f"{tuple(scores.shape)} {scores.dtype}" if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise TypeError(
            f"{type(method).__name__}.score() returned {shown}, expected a floating-point tensor of shape {shape}: one "
            "score for each visual token of each grid."
        )
