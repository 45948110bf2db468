"""Decoders that read a token's place off its slot, choose among their keys, or are called past the model's forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import topv
from architectures import recipe_of
from kv_caches import with_cache
from tools.probe.probe import probe
from tools.probe.recipe import Recipe
from topv.models import family_of
from topv.models.llama4 import Llama4
from topv.models.reasons import REASONS
from topv.runtime.arguments import output_cache
from topv.verify.reference import extended, masked_logits, relative_error

EXACT = [
    "llama4",
    "blip-2",
    "instructblip",
    "instructblipvideo",
    "kosmos-2",
    "kosmos-2.5",
    "unlimited_ocr",
    "mistral_large4",
    "dots3_note",
    "glm5_next",
    "qwen4_exp",
    "inkling_mm_model",
    "inkling2",
]
BATCHED = [name for name in EXACT if name not in ("llama4", "kosmos-2", "kosmos-2.5")]
TEXT_ONLY: dict[str, Any] = {"suppress_tokens": list(range(32)), "do_sample": False}


def build(model_type: str, recipe: Recipe | None = None) -> tuple[Recipe, Any]:
    recipe = recipe or recipe_of(model_type)
    torch.manual_seed(0)
    model = recipe.build()
    model.set_attn_implementation("eager")
    return recipe, model


def visual_columns(pruning: topv.Pruning, ids: torch.Tensor) -> torch.Tensor:
    visual = torch.zeros_like(ids, dtype=torch.bool)
    for grid in pruning.results.plan.layout.grids:
        visual[grid.sample, grid.columns] = True
    return visual


@pytest.mark.parametrize("model_type", EXACT)
def test_forward_and_generation_are_exact(model_type: str) -> None:
    outcome = probe(recipe_of(model_type), ("eager", "generate"))
    assert outcome.cells == {"eager": "yes", "generate": "yes"}, outcome.notes


@pytest.mark.parametrize("model_type", BATCHED)
def test_a_batch_is_its_samples(model_type: str) -> None:
    outcome = probe(recipe_of(model_type), ("batch",))
    assert outcome.cells == {"batch": "yes"}, outcome.notes


@pytest.mark.parametrize("model_type", ["llama4", "kosmos-2", "kosmos-2.5"])
def test_a_batch_that_differs_unpruned_as_well_says_so(model_type: str) -> None:
    outcome = probe(recipe_of(model_type), ("batch",))
    assert outcome.cells == {"batch": "-"}
    assert outcome.notes["batch"].startswith("unpruned")


# ---- llama4 -------------------------------------------------------------------------------------------------


def test_llama4_needs_its_scale_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Llama4, "corrections", lambda self, short: ())
    outcome = probe(recipe_of("llama4"), ("eager", "generate"))
    assert outcome.cells == {"eager": "no", "generate": "no"}
    assert all("off by" in note for note in outcome.notes.values())


def test_llama4_ragged_batch_is_exact_while_it_generates() -> None:
    recipe, model = build("llama4")
    inputs = recipe.prompt(model, [[2, "image", 3, "image", 4], [9, "wide", 5]])
    with torch.no_grad(), topv.prune(model, topv.TopV(keep=0.4)) as pruning:
        out = model.generate(
            **inputs,
            **TEXT_ONLY,
            max_new_tokens=4,
            min_new_tokens=4,
            output_logits=True,
            return_dict_in_generate=True,
        )
        kept, visual = pruning.kept_positions, visual_columns(pruning, inputs["input_ids"])
        assert pruning.results.plan.ragged
    whole = extended(inputs, out.sequences, {})
    want = masked_logits(model, family_of(model), whole, kept, visual, 2)[:, inputs["input_ids"].shape[1] - 1 : -1]
    assert relative_error(torch.stack(out.logits, 1), want) < 1e-5


def test_llama4_continues_a_pruned_cache_exactly() -> None:
    recipe, model = build("llama4")
    inputs = recipe.prompt(model, [[7, "wide", 6]])
    more = torch.randint(40, 190, (1, 5), generator=torch.Generator().manual_seed(1))
    whole = extended(inputs, torch.cat([inputs["input_ids"], more], 1), {})
    with torch.no_grad(), topv.prune(model, topv.TopV(keep=0.4)) as pruning:
        first = model(**inputs, use_cache=True)
        kept, visual = pruning.kept_positions[0], visual_columns(pruning, inputs["input_ids"])[0]
        mask = whole["attention_mask"]
        second = model(input_ids=more, attention_mask=mask, **with_cache(output_cache(first)), use_cache=True)
    want = masked_logits(model, family_of(model), whole, kept, visual, 2)[:, -5:]
    assert relative_error(second.logits, want) < 1e-5


def test_llama4_scores_attention_in_a_layer_that_scales_queries() -> None:
    recipe, model = build("llama4")
    inputs = recipe.prompt(model, [[7, "image", 6]])
    importance = []
    for attention in ("row", "full"):
        with torch.no_grad(), topv.prune(model, topv.FastV(keep=0.4, attention=attention)) as pruning:
            model(**inputs)
            importance.append(pruning.importance[0])
    assert torch.allclose(*importance, rtol=1e-5)


# ---- generation inside the model -----------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["blip-2", "kosmos-2", "llama4", "unlimited_ocr", "inkling_mm_model"])
def test_detaching_leaves_nothing(model_type: str) -> None:
    recipe, model = build(model_type)
    inputs = recipe.prompt(model, [[7, "image", 6]])
    before = [sorted(vars(module)) for module in model.modules()]
    with torch.no_grad(), topv.prune(model, topv.TopV(keep=0.4)):
        model.generate(**inputs, **TEXT_ONLY, max_new_tokens=2)
    assert [sorted(vars(module)) for module in model.modules()] == before
    hooks = [
        hook
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    ]
    assert not hooks


def test_several_sequences_of_one_embedded_prompt() -> None:
    recipe, model = build("blip-2")
    inputs = recipe.prompt(model, [[7, "image", 6], [3, "image", 6]])
    with torch.no_grad(), topv.prune(model, topv.TopV(keep=0.4)) as pruning:
        sequences = model.generate(**inputs, **TEXT_ONLY, max_new_tokens=3, num_beams=2, num_return_sequences=2)
        assert len(sequences) == 4
        kept = pruning.kept_positions
        assert len(kept) == 4
        assert torch.equal(kept[0], kept[1])


def test_states_that_reach_the_mlp_flattened_are_scored_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """OPT, the decoder of BLIP-2, hands its MLP (B * T, D)."""
    widths = []

    def score(self: topv.TopV, evidence: Any, count: int) -> torch.Tensor:
        widths.append((evidence.source.shape[-1], evidence.target.shape[-1]))
        return torch.zeros(evidence.source.shape[:2])

    monkeypatch.setattr(topv.TopV, "score", score)
    recipe, model = build("blip-2")
    with torch.no_grad(), topv.prune(model, topv.TopV(keep=0.4)):
        model(**recipe.prompt(model, [[7, "image", 6]]))
    assert widths == [(model.config.text_config.hidden_size,) * 2]


def test_language_model_called_by_itself_is_refused() -> None:
    _, model = build("blip-2")
    embeds = torch.zeros(1, 4, model.language_model.config.hidden_size)
    with topv.prune(model, topv.TopV(keep=0.4)), pytest.raises(topv.UnsupportedError, match="without input_ids"):
        model.language_model(inputs_embeds=embeds)


# ---- refusals -------------------------------------------------------------------------------------------------


def test_blocks_of_slots_are_refused() -> None:
    _, model = build("minimax_m3_vl")
    with pytest.raises(topv.UnsupportedError, match=REASONS["window"]):
        topv.attach(model, topv.TopV(keep=0.4))


@pytest.mark.parametrize(
    "setting", [{"indexer_types": ["full", "full", "shared", "full", "shared"]}, {"kv_source_layers": [0, 1, 2, 1, 4]}]
)
def test_choices_that_cross_the_pruning_layer_are_refused(setting: dict[str, Any]) -> None:
    recipe = recipe_of("mistral_large4")
    torch.manual_seed(0)
    config = recipe.config()
    for name, value in setting.items():
        setattr(config.text_config, name, value)
    from transformers import MistralLarge4ForConditionalGeneration

    model = MistralLarge4ForConditionalGeneration(config).eval()
    with pytest.raises(topv.UnsupportedError, match=r"chosen among all tokens: .* start at one of the layers \["):
        topv.attach(model, topv.TopV(keep=0.4, layer=2))


def test_choices_shared_behind_the_pruning_layer_are_exact() -> None:
    class Shared(type(recipe_of("mistral_large4"))):  # type: ignore[misc]
        def config(self) -> Any:
            config = super().config()
            config.text_config.indexer_types = ["full", "shared", "full", "shared", "shared"]
            return config

    outcome = probe(Shared(), ("eager", "generate"))
    assert outcome.cells == {"eager": "yes", "generate": "yes"}, outcome.notes


def test_encoder_decoder_language_model_is_refused() -> None:
    from transformers import Blip2Config, Blip2ForConditionalGeneration, T5Config

    config: Any = recipe_of("blip-2").config()
    small = T5Config(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=192)
    whole = Blip2Config(
        vision_config=config.vision_config,
        qformer_config=config.qformer_config,
        text_config=small,
        num_query_tokens=4,
        image_token_index=5,
    )
    with pytest.raises(topv.UnsupportedError, match=REASONS["encoder-decoder"]):
        topv.attach(Blip2ForConditionalGeneration(whole).eval(), topv.TopV(keep=0.4))


def test_the_probe_names_the_reason_of_a_refusal() -> None:
    assert probe(recipe_of("minimax_m3_vl")).reason == f"window: {REASONS['window']}"


def test_layers_that_keep_nothing_need_no_mask_for_ragged_rows() -> None:
    recipe, model = build("nemotron_h_omni")
    samples = [[7, "image", 6], [3, "image", 2, "image", 4]]
    inputs = recipe.prompt(model, samples)
    with torch.no_grad(), topv.prune(model, topv.TopV(keep=0.4)) as pruning:
        together = model.generate(**inputs, **TEXT_ONLY, max_new_tokens=3)
        assert len({len(columns) for columns in pruning.kept_positions}) == 2
    assert together.shape == (2, inputs["input_ids"].shape[1] + 3)
