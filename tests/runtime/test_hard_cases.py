"""Cases that a runtime made of hooks gets wrong easily: interruptions, nesting, odd masks, wrappers, gradients."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PixtralVisionConfig, StaticCache

import topv
from kv_caches import with_cache
from reference import masked_forward, positions, pruned_columns, relative_error
from tiny_models import IMAGE_TOKEN, TOKENS, VOCABULARY, prompt, shared_llava, tiny_llava
from topv.models import family_of
from topv.runtime.eager import current_forward

SINGLE = [[3, "image", 4]]
BATCH = [[3, "image", 4], [2, "image", 1, "image", 3], [6], ["image", 2]]


def test_interrupted_forward_is_forgotten() -> None:
    model, inputs = tiny_llava(), prompt(SINGLE)
    other = prompt([[9, "image", 1]], seed=5)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    with topv.prune(model, topv.TopV(keep=0.5)), torch.no_grad():
        want = model.model(**other).last_hidden_state
        handle = model.model.language_model.layers[3].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(**inputs)
        handle.remove()
        assert torch.equal(model.model(**other).last_hidden_state.nan_to_num(), want.nan_to_num())
        handle = model.model.language_model.layers[3].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(**inputs)
        handle.remove()
        with pytest.raises(topv.UnsupportedError, match="called by itself"):
            model.model.language_model(input_ids=inputs["input_ids"])
    assert current_forward() is None


def test_a_pruned_model_inside_a_pruned_models_forward() -> None:
    outer, inner = tiny_llava(seed=0), tiny_llava(seed=1)
    inputs, others = prompt(BATCH), prompt(SINGLE, seed=2)
    with topv.prune(outer, topv.TopV(keep=0.5)), topv.prune(inner, topv.TopV(keep=0.25)), torch.no_grad():
        want, want_inner = outer(**inputs).logits, inner(**others).logits
        found = []
        handle = outer.model.language_model.layers[1].register_forward_hook(
            lambda *_: found.append(inner(**others).logits)
        )
        got = outer(**inputs).logits
        handle.remove()
    assert torch.equal(got.nan_to_num(), want.nan_to_num())
    assert torch.equal(found[0].nan_to_num(), want_inner.nan_to_num())


@pytest.mark.parametrize("attention", ["row", "full"])
@pytest.mark.parametrize("mask", ["none", "prompt", "whole cache"])
def test_fastv_with_a_preallocated_cache(attention: Any, mask: str) -> None:
    model = shared_llava()
    inputs = prompt(SINGLE if mask == "none" else BATCH)
    call = {**inputs, "position_ids": positions(inputs["attention_mask"])}
    if mask == "none":
        del call["attention_mask"]
    if mask == "whole cache":
        padding = torch.zeros(4, 128 - inputs["input_ids"].shape[1], dtype=torch.long)
        call["attention_mask"] = torch.cat([inputs["attention_mask"], padding], dim=1)
    with topv.prune(model, topv.FastV(keep=0.3, attention=attention)) as pruning, torch.no_grad():
        model(**inputs, position_ids=positions(inputs["attention_mask"]))
        kept = pruning.kept_positions
        cache = StaticCache(config=model.config.text_config, max_cache_len=128)
        got = model(**call, **with_cache(cache)).logits
        assert all(torch.equal(a, b) for a, b in zip(pruning.kept_positions, kept, strict=True))
    hidden = pruned_columns(inputs, kept, IMAGE_TOKEN)
    want = masked_forward(model, inputs, hidden, 2).logits
    stays = inputs["attention_mask"].bool() & ~hidden
    assert relative_error(got[stays], want[stays]) <= 1e-5


def test_gradients_are_the_masked_models() -> None:
    model, inputs = tiny_llava(), prompt(SINGLE)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -3:] = inputs["input_ids"][:, -3:]
    with topv.prune(model, topv.TopV(keep=0.25)) as pruning:
        model(**inputs, labels=labels).loss.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    hidden = pruned_columns(inputs, pruning.kept_positions, IMAGE_TOKEN)
    masked_forward(model, inputs, hidden, 2, gradients=True, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        if name in got and parameter.grad is not None:
            assert torch.allclose(got[name], parameter.grad, atol=1e-5), name
    assert got["lm_head.weight"].isfinite().all()


def test_packed_sequences_are_refused() -> None:
    model, inputs = shared_llava(), prompt([[3, "image", 4, 6]])
    position_ids = torch.cat([torch.arange(43), torch.arange(6)]).unsqueeze(0)
    call = {"input_ids": inputs["input_ids"], "pixel_values": inputs["pixel_values"], "position_ids": position_ids}
    with topv.prune(model, topv.TopV()), pytest.raises(topv.UnsupportedError, match="packed into one row"):
        model(**call, use_cache=False)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_biased_mask_hides_nothing(backend: str) -> None:
    model, inputs = shared_llava(5, backend), prompt(SINGLE)
    length = inputs["input_ids"].shape[1]
    mask = torch.zeros(1, 1, length, length).masked_fill(~torch.ones(length, length).tril().bool(), -torch.inf)
    mask[..., 39:43] -= 0.01 * torch.ones(4)
    call = {"input_ids": inputs["input_ids"], "pixel_values": inputs["pixel_values"], "attention_mask": mask}
    with topv.prune(model, topv.TopV(keep=0.5)) as pruning, torch.no_grad():
        logits = model(**call).logits
    assert pruning.report().prompt_tokens == length
    assert not logits[0, 39:].isnan().any()


def test_copies_and_pickles_say_to_detach() -> None:
    model = tiny_llava()
    with topv.prune(model, topv.FastV()):
        with pytest.raises(topv.UnsupportedError, match="Detach first"):
            copy.deepcopy(model)
        with pytest.raises(topv.UnsupportedError, match="Detach it before saving"):
            pickle.dumps(model)
    copy.deepcopy(model)


def test_adapter_wrappers_are_seen_through() -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.inside = model

        def get_base_model(self) -> Any:
            return self.inside

        def forward(self, **kwargs: Any) -> Any:
            return self.inside(**kwargs)

    wrapper = Wrapper(shared_llava())
    with topv.prune(wrapper, topv.TopV(keep=0.5)) as pruning, torch.no_grad():
        wrapper(**prompt(SINGLE))
    assert pruning.report().kept_tokens == TOKENS // 2


def test_scores_of_a_wrong_shape_are_refused() -> None:
    class Short(topv.Random):
        def score(self, evidence: Any, count: int) -> torch.Tensor:
            return super().score(evidence, count)[:, :20]

    with topv.prune(shared_llava(), Short()), pytest.raises(TypeError, match=r"\(1, 20\).*\(1, 36\)"):
        shared_llava()(**prompt(SINGLE))


def test_models_that_compiled_a_call_are_refused() -> None:
    model = tiny_llava()
    model._compiled_call = object()
    with pytest.raises(topv.UnsupportedError, match="is compiled"):
        topv.attach(model, topv.TopV())


def test_images_of_differing_sizes() -> None:
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=PixtralVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            image_size=32, patch_size=4,
        ),
        text_config=LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4
        ),
        image_token_id=IMAGE_TOKEN,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    row_break = 7
    sizes = [(3, 5), (2, 4)]
    ids = [20, 21]
    for rows, columns in sizes:
        ids += ([IMAGE_TOKEN] * columns + [row_break]) * rows
    ids += [30, 31, 32]
    inputs = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values": torch.randn(2, 3, 12, 20),
        "image_sizes": torch.tensor([[4 * rows, 4 * columns] for rows, columns in sizes]),
    }
    with topv.prune(model, topv.TopV(keep=0.5)) as pruning:
        with torch.no_grad():
            got = model(**inputs).logits
        grids = [grid.rows_and_columns for grid in pruning.results.plan.layout.grids]
        kept = pruning.kept_positions
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert [grid.rows_and_columns for grid in pruning.results.plan.layout.grids] == grids == sizes
        assert torch.equal(pruning.kept_positions[0], kept[0])
    hidden = pruned_columns(inputs, kept, IMAGE_TOKEN)
    want = masked_forward(model, inputs, hidden, 2).logits
    assert relative_error(got[~hidden], want[~hidden]) <= 1e-5
    with pytest.raises(topv.UnsupportedError, match="no one grid size"):
        family_of(model).fixed_grid()
