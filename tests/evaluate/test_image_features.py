"""The vision tower runs once for all methods, but for the block that some look into, and no answer changes."""

from __future__ import annotations

import contextlib
from collections import Counter
from functools import partial

import pytest
import torch

import topv
from topv.evaluate import Configuration, bundled_examples, evaluate
from topv.evaluate.image_features import SharedImageFeatures, reads_tower

CONFIGURATIONS = [
    Configuration("unpruned", None, None),
    Configuration("topv", 0.5, topv.TopV(visual_flops=0.5)),
    Configuration("divprune", 0.5, topv.DivPrune(visual_flops=0.5)),
    Configuration("encoder", 0.5, topv.TopV(stage="encoder", visual_flops=0.5)),
    Configuration("visionzip", 0.5, topv.VisionZip(visual_flops=0.5)),
]


def attentions_of_the_tower(model: torch.nn.Module, seen: list[int]) -> list[torch.utils.hooks.RemovableHandle]:
    """Note the block of each attention that the tower computes."""

    def note(block: int, module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: object) -> None:
        seen.append(block)

    encoder = model.get_submodule("model.vision_tower.encoder")
    blocks = getattr(encoder, "layers", None) or encoder.layer
    parts = (getattr(block, "self_attn", None) or block.attention for block in blocks)
    return [part.register_forward_hook(partial(note, number)) for number, part in enumerate(parts)]


@pytest.mark.parametrize("tiled", [False, True], ids=["mini", "tiled"])
def test_answers_are_those_of_towers_of_their_own(tiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = topv.load_mini(tiled=tiled)
    asked = bundled_examples("validation", 3, ("counting", "recognition"))
    examples = [*asked["counting"], *asked["recognition"]]
    seen: list[int] = []
    handles = attentions_of_the_tower(model, seen)
    shared = evaluate(model, processor, examples, CONFIGURATIONS, batch_size=4)
    batches, blocks = 2, len(handles)
    # Each of the two configurations that read the last block has it run for itself.
    assert Counter(seen) == {**dict.fromkeys(range(blocks - 1), batches), blocks - 1: 3 * batches}
    seen.clear()
    monkeypatch.setattr(SharedImageFeatures, "used", lambda features, method: contextlib.nullcontext())
    alone = evaluate(model, processor, examples, CONFIGURATIONS, batch_size=4)
    for handle in handles:
        handle.remove()
    assert Counter(seen) == dict.fromkeys(range(blocks), len(CONFIGURATIONS) * batches)
    assert shared == alone


def test_other_pictures_are_not_given_the_last_ones_features() -> None:
    model, _ = topv.load_mini()
    size = model.config.vision_config.image_size
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    features = SharedImageFeatures(model)
    with torch.inference_mode():
        expected = [model.model.get_image_features(pixel_values=one[None]).pooler_output for one in pixels]
        with features.used(None):
            for one, wanted in [*zip(pixels, expected, strict=True)] * 2:
                found = model.model.get_image_features(pixel_values=one[None]).pooler_output
                assert torch.equal(torch.cat(list(found)), torch.cat(list(wanted)))
    assert "get_image_features" not in vars(model.model)


def test_a_model_without_image_features_is_left_alone() -> None:
    with SharedImageFeatures(torch.nn.Linear(2, 2)).used(None):
        pass


def test_who_reads_the_tower() -> None:
    assert reads_tower(topv.TopV(stage="encoder"))
    assert not reads_tower(topv.TopV())
    assert not reads_tower(None)
