"""Pruning before the decoder: no layer sees every token, and the evidence comes from the vision tower."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import topv
from architectures import expands_images
from ecosystem.bench import KEEP, STEPS, bench, relative_error
from kv_caches import with_cache
from topv.models import family_of
from topv.runtime.arguments import output_cache
from topv.verify.reference import masked_logits

FAMILIES = ["llava", "llava_next", "llava_onevision", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
SAMPLE = [[7, "image", 6]]
BATCH = [[7, "image", 6], [3, "image", 5, "image", 4], [9]]
ENCODER = topv.TopV(keep=KEEP, stage="encoder")
PROJECTOR = topv.TopV(keep=KEEP, stage="projector")
FIELD = [
    topv.DivPrune(keep=KEEP),
    topv.VisionZip(keep=KEEP, contextual=0.4),
    topv.CDPruner(keep=KEEP),
    topv.FacilityLocation(keep=KEEP, stage="encoder"),
]


def visual(pruning: topv.Pruning, sample: int, length: int) -> torch.Tensor:
    columns = torch.zeros(length, dtype=torch.bool)
    for grid in pruning.results.plan.layout.grids:
        if grid.sample == sample:
            columns[grid.columns] = True
    return columns


@pytest.mark.parametrize(
    "method", [topv.Random(keep=KEEP, layer=0), ENCODER, PROJECTOR], ids=["random", "encoder", "projector"]
)
@pytest.mark.parametrize("name", [*FAMILIES, "gemma3", "qwen3_5"])
def test_generation_without_whole_layers_is_exact(name: str, method: topv.Method) -> None:
    if method is ENCODER and name == "gemma3":
        pytest.skip("how its tower pools is not known")
    tiny = bench(name)
    inputs = tiny.prompt(SAMPLE)
    with topv.prune(tiny.model, method) as pruning, torch.no_grad():
        out = tiny.model.generate(**inputs, **tiny.arguments())
    kept, columns = pruning.kept_positions[0], visual(pruning, 0, inputs["input_ids"].shape[1])
    assert 0 < len(kept) < int(columns.sum())
    run = type(tiny.generate(inputs))(inputs, out, kept, columns, 0)
    tiny.check(run, 2e-5 if name == "qwen3_5" else 1e-5)
    cache = output_cache(out)
    held = {layer.keys.shape[2] for layer in cache.layers if getattr(layer, "keys", None) is not None}
    assert max(held) == inputs["input_ids"].shape[1] + STEPS - 1 - (int(columns.sum()) - len(kept))


@pytest.mark.parametrize("method", FIELD, ids=lambda method: method.name)
@pytest.mark.parametrize("name", ["llava", "llava_next", "internvl", "qwen2_5_vl"])
def test_every_method_before_the_decoder_is_exact(name: str, method: topv.Method) -> None:
    if name == "qwen2_5_vl" and isinstance(method, topv.VisionZip):
        with pytest.raises(topv.UnsupportedError, match="VisionAttention returns no attention weights"):
            test_generation_without_whole_layers_is_exact(name, method)
        return
    test_generation_without_whole_layers_is_exact(name, method)


@pytest.mark.parametrize(
    "method", [ENCODER, PROJECTOR, *FIELD], ids=["encoder", "projector", *(method.name for method in FIELD)]
)
def test_a_batch_is_its_samples(method: topv.Method) -> None:
    tiny = bench("llava")
    inputs = tiny.prompt(BATCH)
    with topv.prune(tiny.model, method) as pruning, torch.no_grad():
        tiny.model(**inputs)
        together = pruning.kept_positions
        for sample, images in enumerate((slice(0, 1), slice(1, 3))):
            alone = {name: inputs[name][sample : sample + 1] for name in ("input_ids", "attention_mask")}
            tiny.model(**alone, pixel_values=inputs["pixel_values"][images])
            assert torch.equal(pruning.kept_positions[0], together[sample])
    assert len(together[2]) == 0


@pytest.mark.parametrize(
    "name",
    [*(pytest.param(name, marks=expands_images) for name in ("llava", "llava_next")), "qwen2_5_vl", "qwen3_vl"],
)
def test_generation_and_beams_choose_what_a_forward_chooses(name: str) -> None:
    """Generation runs the tower first, and copies its features for the beams."""
    tiny = bench(name)
    inputs = tiny.prompt(BATCH)
    with topv.prune(tiny.model, ENCODER) as pruning, torch.no_grad():
        tiny.model(**inputs)
        want = pruning.kept_positions
        tiny.model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert all(torch.equal(a, b) for a, b in zip(pruning.kept_positions, want, strict=True))
        tiny.model.generate(**inputs, max_new_tokens=2, do_sample=False, num_beams=2)
        beams = pruning.kept_positions
    assert len(beams) == 2 * len(want)
    assert all(torch.equal(beams[2 * i + j], want[i]) for i in range(len(want)) for j in range(2))


@pytest.mark.parametrize("name", FAMILIES)
def test_evidence_is_pooled_as_tokens_are(name: str) -> None:
    """With a tower in which patches do not mix, the rows of evidence that a change of some pixels changes are the
    tokens that it changes."""
    tiny = bench(name)
    model = copy.deepcopy(tiny.model)
    family = family_of(model)
    tower = getattr(family.multimodal, "visual", None) or family.multimodal.vision_tower
    for module_name, module in tower.named_modules():
        if module_name.endswith(("attn.proj", "out_proj", "projection_layer")) and hasattr(module, "weight"):
            torch.nn.init.zeros_(module.weight)
    inputs = tiny.prompt(SAMPLE)
    changed = {**inputs, "pixel_values": inputs["pixel_values"].clone()}
    pixels = changed["pixel_values"]
    part = pixels[5:9] if pixels.ndim == 2 else pixels[..., -9:-5, 2:9]
    part += 3.0
    seen: list[torch.Tensor] = []

    class Watching(topv.TopV):
        def score(self, evidence: Any, count: int) -> torch.Tensor:
            seen.append(torch.cat([evidence.encoder_source.flatten(2), evidence.encoder_target.flatten(2)], -1))
            return super().score(evidence, count)

    tokens: list[torch.Tensor] = []
    handle = family.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append(kwargs["inputs_embeds"].detach().clone()), with_kwargs=True
    )
    for call in (inputs, changed):
        with topv.prune(model, Watching(keep=KEEP, stage="encoder")) as pruning, torch.no_grad():
            model(**call)
    handle.remove()
    sections = [section for bucket in pruning.results.plan.buckets for section in bucket.sections]
    half = len(seen) // 2
    assert half == len(sections)
    moved, difference = 0, (tokens[0] - tokens[1])[0].abs().amax(-1) > 1e-6
    for one, two, section in zip(seen[:half], seen[half:], sections, strict=True):
        rows = (one - two).abs().amax(-1) > 1e-6
        assert torch.equal(rows, torch.stack([difference[grid.columns] for grid in section.grids]))
        moved += int(rows.sum())
    assert 0 < moved < sum(grid.tokens for grid in pruning.results.plan.layout.grids)


def test_a_conversation_takes_another_image() -> None:
    tiny = bench("llava")
    first, second = tiny.prompt(SAMPLE), tiny.prompt([[2, "image", 3]], seed=1)
    whole = {
        "input_ids": torch.cat([first["input_ids"], second["input_ids"]], 1),
        "attention_mask": torch.cat([first["attention_mask"], second["attention_mask"]], 1),
    }
    with topv.prune(tiny.model, ENCODER) as pruning, torch.no_grad():
        cache = DynamicCache(config=tiny.model.config.text_config)
        tiny.model(**first, **with_cache(cache))
        kept = pruning.kept_positions[0]
        turn = {**second, "attention_mask": whole["attention_mask"]}
        got = tiny.model(**turn, **with_cache(cache)).logits
        kept = torch.cat([kept, pruning.kept_positions[0]])
    whole["pixel_values"] = torch.cat([first["pixel_values"], second["pixel_values"]])
    columns = whole["input_ids"][0] == tiny.model.config.image_token_id
    tiny.model.set_attn_implementation("eager")
    want = masked_logits(tiny.model, family_of(tiny.model), whole, kept, columns, 0)
    tiny.model.set_attn_implementation("sdpa")
    length = second["input_ids"].shape[1]
    real = ~got.isnan().any(-1)[0]
    assert relative_error(got[:, real], want[:, -length:][:, real]) <= 1e-5


def test_everything_kept_is_bit_identical() -> None:
    tiny = bench("llava")
    inputs = tiny.prompt(BATCH)
    with torch.no_grad():
        want = tiny.model(**inputs).logits
        with topv.prune(tiny.model, topv.TopV(keep=1.0, stage="encoder")):
            assert torch.equal(tiny.model(**inputs).logits, want)


def test_features_without_evidence_are_refused() -> None:
    tiny = bench("llava")
    inputs = tiny.prompt(SAMPLE)
    with torch.no_grad():
        encoded = tiny.model.model.get_image_features(inputs.pop("pixel_values"))
        with topv.prune(tiny.model, ENCODER), pytest.raises(topv.EvidenceError, match="gave 0 rows of evidence"):
            tiny.model(**inputs, mm_encoder_outputs={"image": encoded})


def test_what_has_no_tower_to_read_is_refused() -> None:
    gemma = bench("gemma3")
    inputs = gemma.prompt(SAMPLE)
    unknown = pytest.raises(topv.UnsupportedError, match=r"Gemma3.*pools the images")
    with topv.prune(gemma.model, ENCODER), torch.no_grad(), unknown:
        gemma.model(**inputs)
    with pytest.raises(ValueError, match=r"layer=0 must be at least 1 for FastV"):
        topv.FastV(layer=0)
    with pytest.raises(ValueError, match=r"stage='tower' is not one of decoder, encoder, projector"):
        topv.TopV(stage="tower")  # type: ignore[arg-type]
    assert (topv.TopV().layer, topv.TopV(stage="encoder").layer, topv.TopV(stage="encoder", layer=2).layer) == (2, 0, 2)
    assert (PROJECTOR.layer, PROJECTOR.needs) == (0, {"source"})
    for settings in ({"layer": 2}, {"target": "mlp"}):
        with pytest.raises(ValueError, match=r"stage='projector'.*Leave both out"):
            topv.TopV(stage="projector", **settings)
