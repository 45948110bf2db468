"""FrameDifference: what did not change since the frame before goes first."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import topv
from tiny_models import TOKENS, prompt, shared_llava
from topv.errors import InputError
from topv.layout import Grid, Part, Picture, VisualLayout, coordinates
from topv.methods import Evidence, FrameDifference, TopV
from topv.methods.settings import build_method, read_settings
from topv.runtime.plan import Section
from topv.selection import select

SHAPE = (2, 2)


def frames(source: torch.Tensor, previous: tuple[int, ...] | None) -> Evidence:
    """Evidence of grids of 2 x 2 tokens whose targets are their sources."""
    images = tuple(range(len(source)))
    return Evidence(SHAPE, coordinates(SHAPE), images, source, source.flip(1), previous=previous)


def test_a_case_worked_by_hand() -> None:
    """Tokens are unit vectors e1 .. e4. Of frame 2 only cell 2 differs: e3 became (e3 + e1) / sqrt 2, at the cosine
    distance 1 - 1 / sqrt 2 = 0.293. Frame 3 is frame 2 again."""
    first = torch.eye(4)
    second = first.clone()
    second[2, 0] = 1.0
    seen = frames(torch.stack([first, second, second]), (-1, 0, 1))
    method = FrameDifference(keep=0.5)
    assert method.changed(seen).tolist() == [[True] * 4, [False, False, True, False], [False] * 4]
    assert FrameDifference(keep=0.5, threshold=0.3).changed(seen)[1:].any().item() is False
    # Five tokens changed: with a budget of five for the clip these are kept, whatever their importance.
    flat = method.score(seen, 5).reshape(1, -1)
    assert select(flat, 5).indices.tolist() == [[0, 1, 2, 3, 6]]
    # A length is no change.
    assert not method.changed(frames(torch.stack([first, 3 * first]), (-1, 0)))[1].any()


def test_within_what_changed_and_what_did_not_topv_decides() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(4, 8, generator=generator)
    second = first.clone()
    second[[0, 3]] = torch.randn(2, 8, generator=generator)
    seen = frames(torch.stack([first, second]), (-1, 0))
    ranked = TopV().score(seen, 4)
    found = FrameDifference().score(seen, 4)
    assert torch.equal(found[0].argsort(), ranked[0].argsort())
    changed, static = found[1, [0, 3]], found[1, [1, 2]]
    assert changed.min() > static.max()
    assert torch.equal(changed.argsort(), ranked[1, [0, 3]].argsort())
    assert torch.equal(static.argsort(), ranked[1, [1, 2]].argsort())
    # No importance reaches sqrt(N), so none can make up for what is taken off.
    assert found.max() - found.min() < 4 * math.sqrt(4)


@pytest.mark.parametrize("previous", [None, (-1, -1)])
def test_pictures_without_a_frame_before_are_ranked_as_topv_ranks_them(previous: tuple[int, ...] | None) -> None:
    source = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1))
    seen = frames(source, previous)
    for found, want in zip(FrameDifference().score(seen, 2), TopV().score(seen, 2), strict=True):
        assert torch.equal(found.argsort(), want.argsort())


def section(*grids: tuple[int, int, str]) -> Section:
    """A section of grids, each given by its sample, its image and its kind, in prompt order."""
    found, ordinals = [], dict.fromkeys((sample for sample, _, _ in grids), 0)
    for sample, image, kind in grids:
        found.append(Grid(sample, ordinals[sample], torch.arange(4), SHAPE, image, kind))
        ordinals[sample] += 1
    return Section((0,), tuple(found))


def test_which_grid_is_a_frame_earlier() -> None:
    # The frames of a video; two samples.
    assert section((0, 0, "frame"), (0, 0, "frame"), (1, 0, "frame"), (1, 0, "frame")).previous == (-1, 0, -1, 2)
    # Images one after another, and two videos: the second begins anew.
    assert section((0, 0, "image"), (0, 1, "image"), (0, 2, "image")).previous == (-1, 0, 1)
    assert section((0, 0, "frame"), (0, 0, "frame"), (0, 1, "frame"), (0, 1, "frame")).previous == (-1, 0, -1, 2)
    # Tiles are compared with the same tile of the image before, where that has as many.
    tiled = [(0, image, "tile") for image in (0, 0, 1, 1)]
    assert section(*tiled).previous == (-1, -1, 0, 1)
    assert section((0, 0, "tile"), (0, 1, "tile"), (0, 1, "tile")).previous == (-1, -1, -1)


def test_sections_hold_their_grids_in_any_order() -> None:
    ordered = section((0, 0, "image"), (1, 0, "image"), (0, 1, "image"), (1, 1, "image"))
    assert ordered.previous == (-1, -1, 0, 1)
    turned = replace(ordered, grids=ordered.grids[::-1])
    assert turned.previous == (2, 3, -1, -1)


def test_repeated_rows_have_frames_of_their_own() -> None:
    part = Part(torch.arange(4), SHAPE, "frame")
    video = Picture(8, (part, replace(part, positions=torch.arange(4, 8))))
    layout = VisualLayout.from_pictures(torch.ones(1, 8, dtype=torch.bool), [video]).repeated(2)
    assert Section((0,), layout.grids).previous == (-1, 0, -1, 2)


def test_a_model_loses_what_did_not_change() -> None:
    """Of a picture shown twice the second goes whole; of another picture after it tokens stay."""
    model = shared_llava()
    inputs = prompt([[1, "image", "image", 2]])
    method = FrameDifference(keep=0.5, layer=0, stage="encoder")
    inputs["pixel_values"][1] = inputs["pixel_values"][0]
    with topv.prune(model, method) as pruning, torch.no_grad():
        model(**inputs)
    assert pruning.kept_positions[0].tolist() == list(range(1, 1 + TOKENS))
    inputs["pixel_values"][1] = -inputs["pixel_values"][0]
    with topv.prune(model, method) as pruning, torch.no_grad():
        model(**inputs)
    assert int((pruning.kept_positions[0] > TOKENS).sum()) > 0


def test_a_batch_keeps_what_each_sample_alone_keeps() -> None:
    model, method = shared_llava(), FrameDifference(keep=0.4)
    samples = [[1, "image", "image", 2], [3, "image", "image", 2]]
    inputs = prompt(samples)
    for row in (0, 1):
        near = inputs["pixel_values"][2 * row].clone()
        near[:, :8] = 0.0
        inputs["pixel_values"][2 * row + 1] = near
    with topv.prune(model, method) as pruning, torch.no_grad():
        model(**inputs)
    together = [columns - (0 if row else 2) for row, columns in enumerate(pruning.kept_positions)]
    for row, columns in enumerate(together):
        real = inputs["attention_mask"][row].bool()
        alone = {
            "input_ids": inputs["input_ids"][row : row + 1, real],
            "pixel_values": inputs["pixel_values"][2 * row : 2 * row + 2],
        }
        with topv.prune(model, method) as pruning, torch.no_grad():
            model(**alone)
        assert torch.equal(pruning.kept_positions[0], columns)


@pytest.mark.parametrize("settings", [{"threshold": "-0.1"}, {"threshold": "2.5"}, {"threshold": "nan"}])
def test_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="a cosine distance"):
        build_method("framedifference", read_settings("framedifference", settings))
    assert FrameDifference().budget == "sample"
