"""Budgets by a share of importance: how many tokens stay follows from the picture, row by row."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

import topv
from reference import generated_reference, masked_forward, positions, pruned_columns, relative_error
from tiny_models import IMAGE_TOKEN, TOKENS, prompt, shared_llava
from topv.ask.method_spec import parse_methods
from topv.errors import InputError
from topv.methods import Evidence
from topv.selection import mass_counts

BATCH = [[3, "image", 4], [2, "image", 1, "image", 3], [6], ["image", 2]]
LAST = [["image", 2], [4, "image"], [2, "image", 1]]
METHODS = [
    topv.TopV(mass=0.6),
    topv.TopV(mass=0.5, importance="relaxed", budget="sample"),
    topv.TopV(mass=0.7, importance="potential", gamma=0.1, layer=3),
    topv.MeanCost(mass=0.4, budget="image"),
    topv.FastV(mass=0.8),
]


def by_hand(importance: torch.Tensor, mass: float) -> int:
    """The smallest K, in plain Python."""
    excess = sorted((value - float(importance.min()) for value in importance.tolist()), reverse=True)
    return next(k for k in range(1, len(excess) + 1) if sum(excess[:k]) >= mass * sum(excess) * (1 - 1e-6))


@pytest.mark.parametrize(
    ("importance", "mass", "count"),
    [
        ([5.0, 1.0, 3.0, 2.0], 0.5, 1),  # 4, 0, 2, 1 above the least: 4 of 7 is more than half
        ([5.0, 1.0, 3.0, 2.0], 0.6, 2),
        ([5.0, 1.0, 3.0, 2.0], 6 / 7, 2),
        ([5.0, 1.0, 3.0, 2.0], 0.9, 3),
        ([5.0, 1.0, 3.0, 2.0], 1.0, 3),  # the least important token holds nothing
        ([-0.5, -0.9, -0.7, -0.8], 0.6, 2),
        ([2.0, 2.0, 2.0, 2.0], 0.6, 3),
        ([7.0], 0.1, 1),
    ],
)
def test_counts_by_hand(importance: list[float], mass: float, count: int) -> None:
    values = torch.tensor([importance])
    assert mass_counts(values, mass).tolist() == [count]
    assert mass_counts(values * 4 - 3, mass).tolist() == [count], "neither scale nor shift matters"


def test_protected_tokens_come_first() -> None:
    values = torch.tensor([[5.0, 1.0, 3.0, 2.0]] * 3)
    protected = torch.tensor([[False, True, False, False], [False, True, True, True], [False] * 4])
    # Of 7: the least holds 0, then 4 are enough; 0 + 2 + 1 and 4 are enough; 4 are enough.
    assert mass_counts(values, 0.5, protected).tolist() == [2, 4, 1]
    assert mass_counts(values, 0.1, protected).tolist() == [2, 3, 1]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("samples", [BATCH, LAST], ids=["batch", "image last"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_forward_equals_masked_model(backend: str, samples: Any, padding: str) -> None:
    model, inputs = shared_llava(5, backend), prompt(samples, padding=padding)
    real = inputs["attention_mask"].bool()
    for method in METHODS:
        with topv.prune(model, method) as pruning, torch.no_grad():
            out = model(**inputs, position_ids=positions(real), output_hidden_states=True)
        hidden = pruned_columns(inputs, pruning.kept_positions, IMAGE_TOKEN)
        want = masked_forward(model, inputs, hidden, pruning.layer)
        stays = real & ~hidden
        assert relative_error(out.logits[stays], want.logits[stays]) <= 1e-5, method
        assert out.logits[hidden].isnan().all()
        assert bool(hidden.any())


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_generation_equals_masked_model_step_by_step(backend: str) -> None:
    model, inputs = shared_llava(5, backend), prompt(BATCH)
    for method in METHODS:
        with topv.prune(model, method) as pruning:
            out = model.generate(
                **inputs, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True
            )
        kept = pruning.kept_positions
        want = generated_reference(model, inputs, out.sequences, positions=kept, layer=pruning.layer)
        assert relative_error(torch.stack(out.logits, 1), want) <= 1e-5, method


def test_each_grid_keeps_the_fewest_that_hold_the_share() -> None:
    model, inputs = shared_llava(), prompt(BATCH)
    for mass in (0.3, 0.6, 0.9):
        with topv.prune(model, topv.TopV(mass=mass)) as pruning, torch.no_grad():
            model(**inputs)
        found = set()
        for kept, importance in zip(pruning.kept_positions, pruning.importance, strict=True):
            grids = [] if importance is None else importance.split(TOKENS)
            wanted = [by_hand(grid, mass) for grid in grids]
            assert len(kept) == sum(wanted)
            found.update(wanted)
        assert len(found) > 1, "pictures differ in how many they need"
        assert pruning.report().kept_tokens == sum(map(len, pruning.kept_positions))


def test_grids_that_share_a_budget() -> None:
    model, inputs = shared_llava(), prompt([[2, "image", 1, "image", 3]])
    with topv.prune(model, topv.MeanCost(mass=0.5, budget="sample")) as pruning, torch.no_grad():
        model(**inputs)
    (importance,) = pruning.importance
    assert importance is not None
    assert len(pruning.kept_positions[0]) == by_hand(importance, 0.5)


def test_a_batch_is_its_samples() -> None:
    model, inputs = shared_llava(), prompt(BATCH)
    for method in METHODS:
        with topv.prune(model, method) as pruning, torch.no_grad():
            model(**inputs, position_ids=positions(inputs["attention_mask"]))
            together, image = pruning.kept_positions, 0
            for sample, parts in enumerate(BATCH):
                real = inputs["attention_mask"][sample].bool()
                alone = {"input_ids": inputs["input_ids"][sample : sample + 1, real]}
                if count := parts.count("image"):
                    alone["pixel_values"] = inputs["pixel_values"][image : image + count]
                image += count
                model(**alone)
                assert torch.equal(pruning.kept_positions[0] + int((~real).sum()), together[sample]), method


class Flat(topv.FastV):
    """Every token as important as any other."""

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        return super().score(evidence, count) * 0


@pytest.mark.parametrize("method", [topv.TopV(mass=1.0), topv.MeanCost(mass=1.0), Flat(mass=0.999)], ids=repr)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_keeping_everything_is_bit_identical(backend: str, method: topv.Method) -> None:
    model, inputs = shared_llava(5, backend), prompt(BATCH)
    with torch.no_grad():
        want = model(**inputs, output_hidden_states=True)
        want_ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    with topv.prune(model, method) as pruning, torch.no_grad():
        got = model(**inputs, output_hidden_states=True)
        ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        report = pruning.report()
    assert torch.equal(got.logits, want.logits)
    assert all(torch.equal(a, b) for a, b in zip(got.hidden_states, want.hidden_states, strict=True))
    assert torch.equal(ids, want_ids)
    assert report.kept_tokens == report.visual_tokens == 4 * TOKENS
    assert report.kv_bytes == report.kv_bytes_unpruned
    assert [len(kept) for kept in pruning.kept_positions] == [TOKENS, 2 * TOKENS, 0, TOKENS]


def test_caches() -> None:
    """A second turn with a new image, and preallocated layers, where how many stay is not known before."""
    model, inputs, turn = shared_llava(), prompt([[3, "image", 4]]), prompt([[2, "image", 3]], seed=1)
    method = topv.TopV(mass=0.6)
    with topv.prune(model, method) as pruning, torch.no_grad():
        cache = DynamicCache(config=model.config.text_config)
        model(**inputs, past_key_values=cache)
        first = pruning.kept_positions[0]
        mask = torch.cat([inputs["attention_mask"], turn["attention_mask"]], 1)
        got = model(**{**turn, "attention_mask": mask}, past_key_values=cache).logits[:, -3:]
        kept = [torch.cat([first, pruning.kept_positions[0]])]
        want_ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        for static in (
            StaticCache(config=model.config.text_config, max_cache_len=64),
            pruning.static_cache(inputs, max_new_tokens=5),
        ):
            ids = model.generate(**inputs, max_new_tokens=5, do_sample=False, past_key_values=static)
            assert torch.equal(ids, want_ids)
    whole = {
        "input_ids": torch.cat([inputs["input_ids"], turn["input_ids"]], 1),
        "attention_mask": mask,
        "pixel_values": torch.cat([inputs["pixel_values"], turn["pixel_values"]]),
    }
    want = masked_forward(model, whole, pruned_columns(whole, kept, IMAGE_TOKEN), 2).logits[:, -3:]
    assert relative_error(got, want) <= 1e-5


def test_settings() -> None:
    assert topv.TopV(mass=0.9).keep is None
    assert topv.TopV(mass=0.9).with_budget(keep=0.5) == topv.TopV(keep=0.5)
    assert topv.TopV(keep=0.5).with_budget(mass=0.9) == topv.TopV(mass=0.9)
    assert "mass=0.9" in repr(topv.TopV(mass=0.9))
    (spec,) = parse_methods(["topv:mass=0.9"], keep=[0.5])
    assert (spec.label, spec.method) == ("topv mass=0.9", topv.TopV(mass=0.9))
    with pytest.raises(ValueError, match=r"keep=0\.5 and mass=0\.9"):
        topv.TopV(keep=0.5, mass=0.9)
    for wrong in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
            topv.TopV(mass=wrong)
    for cls in (topv.Random, topv.Uniform, topv.DivPrune, topv.VisionZip, topv.FacilityLocation, topv.PyramidDrop):
        with pytest.raises(ValueError, match=f"{cls.__name__} with these settings has none"):
            cls(mass=0.9)
    with pytest.raises(ValueError, match="recovery=0"):
        topv.TopV(mass=0.9, recovery=0.1)
    with pytest.raises(InputError, match="has none"):
        parse_methods(["divprune:mass=0.9"])
    pruning = topv.attach(shared_llava(), topv.TopV(mass=0.9))
    try:
        with pytest.raises(topv.UnsupportedError, match="depends on the picture"):
            pruning.compile_prefill()
    finally:
        pruning.detach()
