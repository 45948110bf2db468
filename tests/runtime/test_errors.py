"""Bad input raises with a reason, and leaves the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, MistralConfig

import topv
from module_snapshot import snapshot
from tiny_models import IMAGE_TOKEN, TOKENS, prompt, shared_llava, tiny_llava
from topv.models import family_of
from topv.verify.reference import masked_logits, relative_error

SINGLE = [[3, "image", 4]]


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.5, float("nan"), float("inf"), 0, -1, True, "half"])
def test_keep_out_of_range(keep: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="keep"):
        topv.TopV(keep=keep)


@pytest.mark.parametrize("layer", [0, -1, 5, 99, 1.5, True])
def test_layer_out_of_range(layer: Any) -> None:
    model = shared_llava()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"layer=.*"):
        topv.attach(model, topv.TopV(layer=layer))
    assert snapshot(model) == before
    topv.attach(model, topv.TopV()).detach()


def test_count_above_the_grid() -> None:
    model, inputs = shared_llava(), prompt(SINGLE)
    with topv.prune(model, topv.TopV(keep=TOKENS + 1)), pytest.raises(ValueError, match=f"{TOKENS + 1}.*{TOKENS}"):
        model(**inputs)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", [topv.TopV(keep=0.5), topv.FastV(keep=0.5), topv.Random(keep=0.5), topv.VTW()])
def test_hidden_states_that_are_not_finite(value: float, method: topv.Method) -> None:
    model, inputs = shared_llava(), prompt(SINGLE)
    bad = {**inputs, "pixel_values": inputs["pixel_values"].clone()}
    bad["pixel_values"][0, 0, 3, 3] = value
    with topv.prune(model, method), torch.no_grad():
        with pytest.raises(topv.EvidenceError, match="NaN or infinity"):
            model(**bad)
        assert model(**inputs).logits[:, -1].isfinite().all()


def test_missing_and_truncated_placeholders() -> None:
    model, inputs = shared_llava(), prompt(SINGLE)
    without = {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE_TOKEN, 9)}
    truncated = {**inputs, "input_ids": inputs["input_ids"][:, :20], "attention_mask": inputs["attention_mask"][:, :20]}
    no_pixels = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with topv.prune(model, topv.TopV()), torch.no_grad():
        with pytest.raises(topv.LayoutError, match="missing or were truncated"):
            model(**without)
        with pytest.raises(topv.LayoutError, match=r"holds 17 image placeholder tokens .* need 36"):
            model(**truncated)
        with pytest.raises(topv.LayoutError, match="no images came with it"):
            model(**no_pixels)
        with pytest.raises(topv.LayoutError, match="missing or were truncated"):
            model.generate(**truncated, max_new_tokens=2)


def test_one_image_dealt_to_two_samples_is_refused() -> None:
    model, inputs = shared_llava(), prompt([["image", 20], ["image", 20]])
    ids = inputs["input_ids"].clone()
    ids[0, 18:36], ids[1, 18:36] = 9, 9
    with topv.prune(model, topv.TopV()), pytest.raises(topv.LayoutError):
        model(input_ids=ids, pixel_values=inputs["pixel_values"][:1])


def test_hidden_visual_tokens() -> None:
    model, inputs = shared_llava(), prompt(SINGLE)
    inputs["attention_mask"][0, 5:10] = 0
    with topv.prune(model, topv.TopV()), pytest.raises(topv.LayoutError, match="attention mask hides visual tokens"):
        model(**inputs)


def test_output_attentions() -> None:
    model, inputs = shared_llava(5, "eager"), prompt(SINGLE)
    with topv.prune(model, topv.TopV()), pytest.raises(topv.UnsupportedError, match="output_attentions"):
        model(**inputs, output_attentions=True)
    with topv.prune(model, topv.TopV()), pytest.raises(topv.UnsupportedError, match="output_attentions"):
        model.generate(**inputs, max_new_tokens=2, output_attentions=True, return_dict_in_generate=True)


def test_embeddings_instead_of_ids() -> None:
    model, inputs = shared_llava(), prompt(SINGLE)
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    with topv.prune(model, topv.TopV()), pytest.raises(topv.UnsupportedError, match="without input_ids"):
        model(inputs_embeds=embeddings, pixel_values=inputs["pixel_values"])


def test_the_decoder_called_by_itself() -> None:
    model, inputs = shared_llava(), prompt(SINGLE)
    with topv.prune(model, topv.TopV()), pytest.raises(topv.UnsupportedError, match="was called by itself"):
        model.model.language_model(input_ids=inputs["input_ids"])


def test_masks_that_cannot_be_shortened() -> None:
    model, inputs = shared_llava(), prompt(SINGLE)
    with topv.prune(model, topv.TopV()), torch.no_grad():
        with pytest.raises(topv.UnsupportedError, match="3 dimensions"):
            model(**{**inputs, "attention_mask": inputs["attention_mask"][None]})
        with pytest.raises(topv.UnsupportedError, match=r"has shape \(1, 7\)"):
            model(**{**inputs, "attention_mask": torch.ones(1, 7, dtype=torch.long)})


def test_labels_on_more_visual_tokens_than_stay() -> None:
    model, inputs = shared_llava(), prompt(SINGLE)
    with topv.prune(model, topv.TopV(keep=0.5)), pytest.raises(topv.LayoutError, match="Set the labels"):
        model(**inputs, labels=inputs["input_ids"])


def test_unsupported_models() -> None:
    model = shared_llava()
    with pytest.raises(topv.UnsupportedError, match=r"LlamaModel cannot be pruned: .*generates no text"):
        topv.attach(model.model.language_model, topv.TopV())
    for part in (model.lm_head, torch.nn.Linear(2, 2)):
        with pytest.raises(topv.UnsupportedError, match=r"Linear has no .*list of decoder layers"):
            topv.attach(part, topv.TopV())
    with pytest.raises(TypeError, match="not a pruning method"):
        topv.attach(model, topv.TopV)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a vision-language model"):
        topv.attach("llava", topv.TopV())  # type: ignore[arg-type]


def test_windows_that_flash_kernels_would_miscount_are_refused() -> None:
    """Other backends are given masks, in which a window counts in the prompt's columns."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=24,
            patch_size=4,
        ),
        text_config=MistralConfig(
            vocab_size=96, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=2, sliding_window=16,
        ),
        image_token_id=5,
        vision_feature_layer=-1,
    )  # fmt: skip
    torch.manual_seed(0)
    model, inputs = LlavaForConditionalGeneration(config).eval(), prompt(SINGLE)
    model.set_attn_implementation("eager")
    with torch.no_grad(), topv.prune(model, topv.TopV()) as pruning:
        out = model(**inputs)
    visual = inputs["input_ids"][0] == IMAGE_TOKEN
    want = masked_logits(model, family_of(model), inputs, pruning.kept_positions[0], visual, 2)
    stays = ~visual
    stays[pruning.kept_positions[0]] = True
    assert relative_error(out.logits[:, stays], want[:, stays]) <= 1e-5
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    with (
        topv.prune(model, topv.TopV()),
        torch.no_grad(),
        pytest.raises(topv.UnsupportedError, match=r"window of 16.*attn_implementation='sdpa'"),
    ):
        model(**inputs)


def test_compiled_models_are_refused() -> None:
    model = tiny_llava()
    model.model.language_model.layers[2].compile()
    with pytest.raises(topv.UnsupportedError, match="is compiled"):
        topv.attach(model, topv.TopV())


def test_gradient_checkpointing_is_refused() -> None:
    model, inputs = tiny_llava(), prompt(SINGLE)
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    model.train()
    with topv.prune(model, topv.TopV()), pytest.raises(topv.UnsupportedError, match="gradient checkpointing"):
        model(**inputs)


def test_report_before_any_prefill() -> None:
    with topv.prune(shared_llava(), topv.TopV()) as pruning, pytest.raises(RuntimeError, match="no prefill has run"):
        pruning.report()
