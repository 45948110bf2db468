"""What reaches a flash attention kernel: padding masks of the right length, and no positions that look packed.

The kernel itself needs a GPU. Here a stand-in is registered under a flash-like name: it takes what transformers
hands to such kernels, checks it the way they read it, and computes the attention with sdpa.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import flash_attention_mask

import topv
from kv_caches import with_cache
from reference import generated_reference, masked_forward, positions, pruned_columns, relative_error
from tiny_models import IMAGE_TOKEN, prompt, shared_llava, tiny_llava
from topv.models import family_of
from topv.runtime.opening import open_call
from topv.runtime.refusals import refuse_windows

NAME = "flash_stand_in"
BATCH = [[3, "image", 4], [2, "image", 1, "image", 3], [6], ["image", 2]]
calls: list[dict[str, Any]] = []


def stand_in(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    batch, _, queries, _ = query.shape
    keys = key.shape[2]
    position_ids = kwargs.get("position_ids")
    if attention_mask is not None:
        assert attention_mask.shape == (batch, keys), "flash kernels take one mask column for each key"
    if position_ids is not None and batch == 1 and queries > 1 and module.config.model_type == "llama":
        steps = position_ids.diff(dim=-1)
        assert (steps == 1).all(), "gapped positions look like packed sequences"
    calls.append({"layer": module.layer_idx, "queries": queries, "keys": keys, "mask": attention_mask})
    groups = query.shape[1] // key.shape[1]
    causal = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    seen = causal if module.is_causal else torch.ones(queries, keys, dtype=torch.bool)
    seen = seen.expand(batch, 1, -1, -1)
    if attention_mask is not None:
        seen = seen & attention_mask.bool()[:, None, None, :]
    out = torch.nn.functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(groups, 1),
        value.repeat_interleave(groups, 1),
        attn_mask=seen,
        scale=scaling,
    )
    return out.nan_to_num().transpose(1, 2).contiguous(), None


@pytest.fixture(scope="module")
def model() -> Any:
    AttentionInterface.register(NAME, stand_in)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    built = tiny_llava()
    # Asked for by name, transformers would look for a kernel to load.
    built.model.language_model.config._attn_implementation_internal = NAME
    return built


@pytest.mark.parametrize("samples", [[[3, "image", 4]], BATCH], ids=["single", "batch"])
@pytest.mark.parametrize("method", [topv.TopV(keep=0.5), topv.FastV(keep=0.25), topv.VTW(layer=3)])
def test_generation(model: Any, method: topv.Method, samples: Any) -> None:
    inputs = prompt(samples)
    calls.clear()
    with topv.prune(model, method) as pruning:
        out = model.generate(
            **inputs, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    want = generated_reference(
        shared_llava(5, "eager"), inputs, out.sequences, positions=pruning.kept_positions, layer=pruning.layer
    )
    assert relative_error(torch.stack(out.logits, 1), want) <= 1e-5
    length = inputs["input_ids"].shape[1]
    prefill = {call["layer"]: call["keys"] for call in calls[:5]}
    assert all((prefill[layer] < length) == (layer >= pruning.layer) for layer in range(5))


def test_second_turn_with_a_new_image_sees_the_cache(model: Any) -> None:
    inputs, turn = prompt([[3, "image", 4]]), prompt([[2, "image", 3]], seed=1)
    with topv.prune(model, topv.TopV(keep=0.5)) as pruning, torch.no_grad():
        cache = DynamicCache(config=model.config.text_config)
        model(**inputs, **with_cache(cache))
        first = pruning.kept_positions[0]
        whole = {
            "input_ids": torch.cat([inputs["input_ids"], turn["input_ids"]], 1),
            "attention_mask": torch.cat([inputs["attention_mask"], turn["attention_mask"]], 1),
        }
        got = model(
            input_ids=turn["input_ids"],
            pixel_values=turn["pixel_values"],
            attention_mask=whole["attention_mask"],
            position_ids=positions(whole["attention_mask"])[:, -turn["input_ids"].shape[1] :],
            **with_cache(cache),
        ).logits
    kept = [torch.cat([first, pruning.kept_positions[0]])]
    whole["pixel_values"] = torch.cat([inputs["pixel_values"], turn["pixel_values"]])
    hidden = pruned_columns(whole, kept, IMAGE_TOKEN)
    want = masked_forward(shared_llava(5, "eager"), whole, hidden, 2).logits[:, -turn["input_ids"].shape[1] :]
    stays = ~hidden[:, -turn["input_ids"].shape[1] :]
    assert relative_error(got[stays], want[stays]) <= 1e-5


@pytest.mark.parametrize("method", [topv.PyramidDrop(keep=0.4), topv.SparseVLM(keep=0.5, layer=1)])
def test_several_pruning_layers(model: Any, method: topv.Method) -> None:
    """What is chosen, and every logit, is what eager attention makes of it."""
    inputs, found = prompt(BATCH), []
    settings = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    for each in (model, shared_llava(5, "eager")):
        with topv.prune(each, method) as pruning:
            out = each.generate(**inputs, **settings)
        found.append((pruning.kept_by_layer, torch.stack(out.logits, 1)))
    (kept, got), (want_kept, want) = found
    assert len(kept) == 3
    assert all(torch.equal(a, b) for at in kept for a, b in zip(kept[at], want_kept[at], strict=True))
    assert relative_error(got, want) <= 1e-5


@pytest.mark.parametrize(("beyond", "refused"), [(0, False), (1, True)])
def test_a_window_as_long_as_the_prompt_hides_nothing(beyond: int, refused: bool, monkeypatch: Any) -> None:
    """The last query of a prompt as long as the window still sees the first key."""
    model, inputs = shared_llava(), prompt([[3, "image", 4]])
    family = family_of(model)
    length = inputs["input_ids"].shape[1]
    monkeypatch.setattr(type(family), "window", lambda self, layer: length - beyond)
    monkeypatch.setattr(type(family.text_config), "_attn_implementation", "flash_attention_2", raising=False)
    call = open_call(family, topv.TopV(keep=0.5), (2,), model, inputs)
    with pytest.raises(topv.UnsupportedError, match="more than the attention window") if refused else nullcontext():
        refuse_windows(call)
