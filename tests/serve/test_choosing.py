from __future__ import annotations

from typing import Any

import pytest
import torch

import topv
from topv.errors import InputError
from topv.layout import Part, Picture
from topv.methods import Evidence, Method
from topv.selection import select
from topv.serve.choosing import Job, choose, kept_tokens

CPU = torch.device("cpu")
TOPV = topv.TopV(stage="encoder", keep=0.4)
# A thumbnail, then a grid whose rows end in a newline.
TILED = Picture(
    16 + 3 * 6,
    (
        Part(torch.arange(16), (4, 4), "thumbnail"),
        Part(16 + torch.arange(18).view(3, 6)[:, :-1].flatten(), (3, 5)),
    ),
)


def job(picture: Picture, method: Method, seed: int = 0) -> Job:
    generator = torch.Generator().manual_seed(seed)
    names = ("source", "encoder_source", "encoder_post_norm")
    evidence: Any = {
        name: [torch.randn(part.positions.numel(), 8, generator=generator) for part in picture.parts] for name in names
    }
    return Job(picture, kept_tokens(picture, method), evidence)


def test_each_grid_keeps_its_share_and_separators_stay() -> None:
    own = job(TILED, TOPV)
    assert own.counts == [6, 6]
    (kept,) = choose([own], TOPV, CPU)
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert {21, 27, 33} <= set(kept.tolist())
    assert (kept < 16).sum() == 6
    assert len(kept) == 6 + 6 + 3


def test_the_choice_is_the_methods() -> None:
    own = job(Picture.filled((4, 4), skip=1), TOPV)
    evidence = Evidence(
        (4, 4),
        topv.layout.coordinates((4, 4)),
        (0,),
        encoder_source=own.evidence["encoder_source"][0][None],
        encoder_target=own.evidence["encoder_post_norm"][0][None],
    )
    expected = select(TOPV.score(evidence, 6), 6).indices[0] + 1
    assert choose([own], TOPV, CPU)[0].tolist() == [0, *expected.tolist()]


@pytest.mark.parametrize("method", [topv.TopV(stage="projector", keep=0.4), topv.DivPrune(keep=0.4)], ids=repr)
def test_the_choice_among_projected_tokens_is_the_methods(method: Method) -> None:
    own = job(Picture.filled((4, 4)), method)
    evidence = Evidence((4, 4), topv.layout.coordinates((4, 4)), (0,), source=own.evidence["source"][0][None])
    assert choose([own], method, CPU)[0].tolist() == select(method.score(evidence, 6), 6).indices[0].tolist()


@pytest.mark.parametrize("budget", ["grid", "image"])
@pytest.mark.parametrize("recovery", [0.0, 0.25])
def test_no_image_depends_on_the_others(budget: Any, recovery: float) -> None:
    method = topv.TopV(stage="encoder", keep=0.4, budget=budget, recovery=recovery)
    jobs = [job(picture, method, seed) for seed, picture in enumerate([TILED, Picture.filled((4, 4)), TILED])]
    together = choose(jobs, method, CPU)
    for own, kept in zip(jobs, together, strict=True):
        assert torch.equal(choose([own], method, CPU)[0], kept)
        assert len(kept) == own.picture.tokens - sum(p.positions.numel() for p in own.picture.parts) + sum(own.counts)


def test_all_of_an_image() -> None:
    own = job(TILED, TOPV.with_budget(keep=1.0))
    assert choose([own], TOPV, CPU)[0].tolist() == list(range(TILED.tokens))


@pytest.mark.parametrize("method", [topv.Uniform(layer=0, keep=0.4), topv.Random(layer=0, keep=0.4, seed=2)])
def test_methods_that_look_at_nothing(method: Method) -> None:
    own = Job(TILED, kept_tokens(TILED, method), {})
    assert len(choose([own], method, CPU)[0]) == 15


def test_overflown_evidence_does_not_raise() -> None:
    own = job(Picture.filled((4, 4)), TOPV)
    own.evidence["encoder_source"][0][3, 2] = float("inf")
    own.evidence["encoder_post_norm"][0][5] = float("nan")
    assert len(choose([own], TOPV, CPU)[0]) == 6


def test_counts_are_bounded() -> None:
    assert kept_tokens(TILED, topv.Uniform(layer=0, keep=8), most=0.5) == [8, 8]
    with pytest.raises(InputError, match=r"keeps 9 of 16 tokens, more than max_keep=0.5"):
        kept_tokens(TILED, topv.Uniform(layer=0, keep=9), most=0.5)
    with pytest.raises(InputError, match="keep=16 tokens of a grid of n=15"):
        kept_tokens(TILED, topv.Uniform(layer=0, keep=16))
