"""Choosing an image's tokens, from what its vision tower said: the runtime's own arithmetic, image by image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from ..budget import keep_count
from ..errors import InputError
from ..layout import Part, Picture, coordinates
from ..methods import Evidence, Method
from ..selection import select

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
        scores = torch.cat(
            [_scores(jobs, members, place, method, count, device) for place in range(len(members[0][1]))], dim=1
        )
        chosen = select(scores, count, min(method.recovered(count, places.shape[1]), count)).indices
        for (number, _), row in zip(members, places.gather(1, chosen), strict=True):
            kept[number].append(row)
    return [torch.cat(parts).sort().values for parts in kept]


def _scores(
    jobs: Sequence[Job],
    members: Sequence[tuple[int, tuple[int, ...]]],
    place: int,
    method: Method,
    count: int,
    device: torch.device,
) -> torch.Tensor:
    """Scores (G, n) of the part at `place` in each of G groups."""
    pairs = [(jobs[number], group[place]) for number, group in members]
    parts: list[Part] = [job.picture.parts[part] for job, part in pairs]
    if method.uses_places and not all(part.spatial for part in parts):
        raise InputError(f"{method!r} uses the places of visual tokens, and this image's have none.")

    def read(name: str) -> torch.Tensor:
        # Infinities would make every score NaN, and an exception here would end the engine for all requests.
        states = torch.stack([job.evidence[name][part].float() for job, part in pairs])
        return torch.nan_to_num(states, nan=0.0, posinf=0.0, neginf=0.0)

    shape = parts[0].rows_and_columns
    evidence = Evidence.of_readings(
        {name: read(name) for name in method.needs},
        rows_and_columns=shape,
        coordinates=coordinates(shape).to(device),
        images=tuple(part for _, part in pairs),
    )
    return method.score(evidence, min(count, parts[0].positions.numel()))


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
