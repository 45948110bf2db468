"""Choosing an image's tokens, from what its vision tower said: the runtime's own arithmetic, image by image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from .. import ranking
from ..budget import keep_count
from ..errors import InputError
from ..layout import Picture, coordinates
from ..methods import Method

__all__ = ["Job", "budgets", "choose", "kept_tokens", "split_parts"]


def budgets(picture: Picture, method: Method) -> list[tuple[int, ...]]:
    """The numbers of the parts that share a budget: each "grid" by itself, or all of an "image"."""
    numbers = range(len(picture.parts))
    return [tuple(numbers)] if method.budget == "image" else [(number,) for number in numbers]


def kept_tokens(picture: Picture, method: Method, most: float = 1.0) -> list[int]:
    """How many tokens of each budget of a picture stay.

    Args:
        picture: the image's grids.
        method: gives `keep`.
        most: ratio that no budget may exceed.

    Raises:
        InputError: when a count is larger than the tokens that share it, or than the largest ratio allows.
    """
    counts = []
    for group in budgets(picture, method):
        tokens = sum(picture.parts[number].positions.numel() for number in group)
        try:
            count = method.count(tokens)
        except ValueError as error:
            raise InputError(str(error)) from error
        if count > keep_count(tokens, most):
            raise InputError(
                f"keep={method.keep!r} keeps {count} of {tokens} tokens, more than max_keep={most!r} has room for. "
                "Ask for fewer."
            )
        counts.append(count)
    return counts


@dataclass(frozen=True)
class Job:
    """One image to prune.

    Attributes:
        picture: its grids.
        counts: how many tokens of each budget stay, as `kept_tokens` says.
        evidence: by name, for each part of the picture what its tokens showed, (n, D): "encoder_source" and
            "encoder_" before one of `TARGETS` of those in the vision tower, "source" of those behind the projector.
    """

    picture: Picture
    counts: Sequence[int]
    evidence: Mapping[str, Sequence[torch.Tensor]]


@torch.no_grad()
def choose(jobs: Sequence[Job], method: Method, device: torch.device) -> list[torch.Tensor]:
    """The placeholders that stay of each image: LongTensors, ascending, on `device`.

    Grids of one shape and budget are solved together; the result does not depend on which they are.
    """
    alike: dict[tuple[tuple[tuple[int, int], ...], int], list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
    kept: list[list[torch.Tensor]] = []
    for number, job in enumerate(jobs):
        kept.append([_between(job.picture).to(device)])
        for group, count in zip(budgets(job.picture, method), job.counts, strict=True):
            parts = [job.picture.parts[part] for part in group]
            if count == sum(part.positions.numel() for part in parts):
                kept[number] += [part.positions.to(device) for part in parts]
            else:
                alike[tuple(part.rows_and_columns for part in parts), count].append((number, group))
    for (_, count), members in alike.items():
        places = torch.stack(
            [torch.cat([jobs[n].picture.parts[part].positions for part in group]) for n, group in members]
        ).to(device)
        scores = _scores(jobs, members, method, count, device)
        chosen = ranking.choose(method, scores, count).indices
        for (number, _), row in zip(members, places.gather(1, chosen), strict=True):
            kept[number].append(row)
    return [torch.cat(parts).sort().values for parts in kept]


def _scores(
    jobs: Sequence[Job],
    members: Sequence[tuple[int, tuple[int, ...]]],
    method: Method,
    count: int,
    device: torch.device,
) -> torch.Tensor:
    """Scores (G, N) of G groups of parts that are alike, each a job's number and the numbers of its parts."""
    sections: list[ranking.Section] = []
    first, parts = members[0]
    start = 0
    for place, number in enumerate(parts):
        part = jobs[first].picture.parts[number]
        shape, tokens = part.rows_and_columns, part.positions.numel()
        images = tuple(group[place] for _, group in members)
        sections.append(ranking.Section((start,), tokens, shape, coordinates(shape).to(device), images))
        start += tokens

    def read(which: int) -> dict[str, torch.Tensor]:
        pairs = [(jobs[number], group[which]) for number, group in members]
        if method.uses_places and not all(job.picture.parts[part].spatial for job, part in pairs):
            raise InputError(f"{method!r} uses the places of visual tokens, and this image's have none.")

        def states(name: str) -> torch.Tensor:
            # Infinities would make every score NaN, and an exception here would end the engine for all requests.
            stacked = torch.stack([job.evidence[name][part].float() for job, part in pairs])
            return torch.nan_to_num(stacked, nan=0.0, posinf=0.0, neginf=0.0)

        return {name: states(name) for name in method.needs}

    return ranking.score(method, sections, read, count)


def _between(picture: Picture) -> torch.Tensor:
    """Placeholders that belong to no grid, which always stay."""
    free = torch.ones(picture.tokens, dtype=torch.bool)
    for part in picture.parts:
        free[part.positions] = False
    return free.nonzero().squeeze(1)


def split_parts(states: torch.Tensor, picture: Picture) -> list[torch.Tensor]:
    """States (tokens, D) of an image whose grids fill its placeholders one after another, part by part.

    >>> [len(part) for part in split_parts(torch.zeros(6, 3), Picture.stacked([(1, 2), (2, 2)], ["tile", "thumbnail"]))]
    [2, 4]
    """
    ends = list(accumulate(part.positions.numel() for part in picture.parts))
    return [states[end - part.positions.numel() : end] for end, part in zip(ends, picture.parts, strict=True)]
