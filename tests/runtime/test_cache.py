"""Caches that outlive a generation: passed in, copied, cropped, reset, continued with text and with images."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

import topv
from kv_caches import with_cache
from reference import masked_forward, pruned_columns, relative_error
from tiny_models import IMAGE_TOKEN, prompt, shared_llava
from topv.runtime.arguments import output_cache

SINGLE = [[3, "image", 4]]
BATCH = [[3, "image", 4], [2, "image", 1, "image", 3], [6], ["image", 2]]
METHODS = [topv.TopV(keep=0.5), topv.FastV(keep=0.25), topv.VTW(), topv.Uniform(keep=0.3, layer=1)]


def generate(model: Any, inputs: Any, cache: Any, steps: int = 4) -> Any:
    return model.generate(
        **inputs,
        **with_cache(cache),
        max_new_tokens=steps,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )


def second_turn(first: Any, inputs: dict[str, torch.Tensor], turn: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The whole conversation as the next call's inputs, with only the new images."""
    generated = first.sequences.shape[1] - inputs["input_ids"].shape[1]
    ones = torch.ones(len(first.sequences), generated, dtype=torch.long)
    whole = {
        "input_ids": torch.cat([first.sequences, turn["input_ids"]], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], ones, turn["attention_mask"]], dim=1),
    }
    if "pixel_values" in turn:
        whole["pixel_values"] = turn["pixel_values"]
    return whole


def check(
    model: Any, whole: dict[str, torch.Tensor], images: torch.Tensor, hidden: torch.Tensor, layer: int, out: Any
) -> None:
    """The logits of `out`, which continued `whole`, equal the masked model's."""
    length = whole["input_ids"].shape[1]
    steps = out.sequences.shape[1] - length
    ones = torch.ones(len(hidden), steps, dtype=torch.long)
    inputs = {
        "input_ids": out.sequences,
        "attention_mask": torch.cat([whole["attention_mask"], ones], dim=1),
        "pixel_values": images,
    }
    padded = torch.zeros_like(inputs["attention_mask"], dtype=torch.bool)
    padded[:, : hidden.shape[1]] = hidden
    want = masked_forward(model, inputs, padded, layer).logits[:, length - 1 : -1]
    assert relative_error(torch.stack(out.logits, 1), want) <= 1e-5


@pytest.mark.parametrize("samples", [SINGLE, BATCH], ids=["single", "batch"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("method", METHODS)
def test_second_turn_with_text(method: topv.Method, backend: str, samples: Any) -> None:
    model, inputs = shared_llava(5, backend), prompt(samples)
    turn = prompt([[5]] * len(samples), seed=1)
    with topv.prune(model, method) as pruning:
        first = generate(model, inputs, DynamicCache(config=model.config.text_config))
        kept = pruning.kept_positions
        whole = second_turn(first, inputs, turn)
        out = generate(model, whole, output_cache(first))
    hidden = pruned_columns(inputs, kept, IMAGE_TOKEN)
    check(model, whole, inputs["pixel_values"], hidden, pruning.layer, out)


@pytest.mark.parametrize("samples", [SINGLE, BATCH], ids=["single", "batch"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("method", METHODS)
def test_second_turn_with_a_new_image(method: topv.Method, backend: str, samples: Any) -> None:
    model, inputs = shared_llava(5, backend), prompt(samples)
    turn = prompt([[2, "image", 3], [1, "image", 1], [4], ["image", 5]][: len(samples)], seed=1)
    with topv.prune(model, method) as pruning:
        first = generate(model, inputs, DynamicCache(config=model.config.text_config))
        kept_first = pruning.kept_positions
        whole = second_turn(first, inputs, turn)
        out = generate(model, whole, output_cache(first))
        kept_second = pruning.kept_positions
    start = first.sequences.shape[1] - 1
    for sample, kept in enumerate(kept_second):
        assert (kept >= start).all(), "columns count from the start of the conversation"
        assert (whole["input_ids"][sample, kept] == IMAGE_TOKEN).all()
    both = [torch.cat([a, b]) for a, b in zip(kept_first, kept_second, strict=True)]
    hidden = pruned_columns(whole, both, IMAGE_TOKEN)
    images: list[torch.Tensor] = []
    for sample in range(len(samples)):
        for source, parts in ((inputs, samples), (turn, [[2, "image", 3], [1, "image", 1], [4], ["image", 5]])):
            before = sum(p.count("image") for p in parts[:sample])
            images.append(source["pixel_values"][before : before + parts[sample].count("image")])
    check(model, whole, torch.cat(images), hidden, pruning.layer, out)


def test_an_image_after_an_unpruned_prefix() -> None:
    model, inputs = shared_llava(), prompt([[6]])
    cache = DynamicCache(config=model.config.text_config)
    first = generate(model, inputs, cache)
    turn = prompt(SINGLE, seed=1)
    whole = second_turn(first, inputs, turn)
    with topv.prune(model, topv.TopV(keep=0.5)) as pruning:
        out = generate(model, whole, output_cache(first))
    hidden = pruned_columns(whole, pruning.kept_positions, IMAGE_TOKEN)
    check(model, whole, turn["pixel_values"], hidden, 2, out)


def test_a_copied_cache_continues_twice() -> None:
    model, inputs = shared_llava(), prompt(BATCH)
    with topv.prune(model, topv.TopV(keep=0.5)) as pruning, torch.no_grad():
        prefix = output_cache(model(**inputs, use_cache=True))
        kept = pruning.kept_positions
        hidden = pruned_columns(inputs, kept, IMAGE_TOKEN)
        lengths = [layer.keys.shape[-2] for layer in prefix.layers]
        for seed in (1, 2):
            turn = prompt([[4]] * 4, seed=seed)
            whole = {
                "input_ids": torch.cat([inputs["input_ids"], turn["input_ids"]], 1),
                "attention_mask": torch.cat([inputs["attention_mask"], turn["attention_mask"]], 1),
            }
            out = generate(model, whole, copy.deepcopy(prefix))
            pruning.detach()
            # The prefix was prefilled without position ids, which then count padding too.
            steps = torch.ones(4, 4, dtype=torch.long)
            mask = torch.cat([whole["attention_mask"], steps], 1)
            late = (mask.long().cumsum(-1) - 1).clamp(min=0)
            late[:, : inputs["input_ids"].shape[1]] = torch.arange(inputs["input_ids"].shape[1])
            call = {
                "input_ids": out.sequences,
                "attention_mask": mask,
                "pixel_values": inputs["pixel_values"],
                "position_ids": late,
            }
            full = torch.zeros_like(mask, dtype=torch.bool)
            full[:, : hidden.shape[1]] = hidden
            want = masked_forward(model, call, full, 2).logits[:, whole["input_ids"].shape[1] - 1 : -1]
            assert relative_error(torch.stack(out.logits, 1), want) <= 1e-5
            pruning = topv.attach(model, topv.TopV(keep=0.5))
        pruning.detach()
        assert [layer.keys.shape[-2] for layer in prefix.layers] == lengths


def test_cropped_answer_is_forgotten() -> None:
    model, inputs = shared_llava(), prompt(SINGLE)
    turn = prompt([[5]], seed=1)
    with topv.prune(model, topv.TopV(keep=0.5)), torch.no_grad():
        cache = output_cache(model(**inputs, use_cache=True))
        want = model(input_ids=turn["input_ids"], **with_cache(copy.deepcopy(cache))).logits
        model(input_ids=torch.tensor([[20, 21, 22]]), **with_cache(cache))
        cache.crop(-3)
        got = model(input_ids=turn["input_ids"], **with_cache(cache)).logits
    assert torch.equal(got, want)


def test_crop_into_the_question_and_into_the_image() -> None:
    model, inputs = shared_llava(), prompt(SINGLE)
    shorter = {**inputs, "input_ids": inputs["input_ids"][:, :-2], "attention_mask": inputs["attention_mask"][:, :-2]}
    turn = prompt([[5]], seed=1)["input_ids"]
    method = topv.TopV(keep=0.5)
    with topv.prune(model, method), torch.no_grad():
        want = model(input_ids=turn, **with_cache(output_cache(model(**shorter, use_cache=True)))).logits
        cache = output_cache(model(**inputs, use_cache=True))
        cache.crop(-2)
        got = model(input_ids=turn, **with_cache(cache)).logits
        assert relative_error(got, want) <= 1e-5

        cache = output_cache(model(**inputs, use_cache=True))
        cache.crop(-6)
        with pytest.raises(topv.CacheError, match="into the pruned part of the prompt"):
            model(input_ids=turn, **with_cache(cache))


@pytest.mark.skipif("reset" not in vars(DynamicLayer), reason="this transformers keeps a reset cache at its length")
def test_reset_cache_starts_anew() -> None:
    model, inputs = shared_llava(), prompt(BATCH)
    with topv.prune(model, topv.TopV(keep=0.5)), torch.no_grad():
        cache = DynamicCache(config=model.config.text_config)
        want = generate(model, inputs, cache).sequences
        cache.reset()
        assert torch.equal(generate(model, inputs, cache).sequences, want)
        text = prompt([[7]])
        cache.reset()
        assert torch.equal(generate(model, text, cache).sequences, generate(model, text, None).sequences)


def test_changed_cache_is_refused() -> None:
    model, inputs = shared_llava(), prompt(SINGLE)
    with topv.prune(model, topv.TopV(keep=0.5)), torch.no_grad():
        cache = output_cache(model(**inputs, use_cache=True))
        cache.layers[2].crop(-1)
        with pytest.raises(topv.CacheError, match="changed outside of topv"):
            model(input_ids=torch.tensor([[20]]), **with_cache(cache))


def test_cache_pruned_at_another_layer() -> None:
    model, inputs = shared_llava(), prompt(SINGLE)
    with topv.prune(model, topv.TopV(keep=0.5, layer=2)), torch.no_grad():
        cache = output_cache(model(**inputs, use_cache=True))
        want = model(input_ids=torch.tensor([[20]]), **with_cache(copy.deepcopy(cache))).logits
    with topv.prune(model, topv.TopV(keep=0.5, layer=3)), torch.no_grad():
        assert torch.equal(model(input_ids=torch.tensor([[20]]), **with_cache(copy.deepcopy(cache))).logits, want)
        turn = prompt([[1, "image", 2]], seed=2)
        del turn["attention_mask"]
        with pytest.raises(topv.UnsupportedError, match="Attach the method with layer=2"):
            model(**turn, **with_cache(cache))


def test_one_cached_prompt_continues_as_a_batch() -> None:
    model, inputs = shared_llava(), prompt(SINGLE)
    with topv.prune(model, topv.TopV(keep=0.5)), torch.no_grad():
        cache = output_cache(model(**inputs, use_cache=True))
        one = model(input_ids=torch.tensor([[20]]), **with_cache(copy.deepcopy(cache))).logits
        cache.batch_repeat_interleave(3)
        three = model(input_ids=torch.tensor([[20], [20], [20]]), **with_cache(cache)).logits
    assert torch.allclose(three, one.expand(3, -1, -1), atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("method", METHODS)
def test_static_cache(method: topv.Method, backend: str) -> None:
    model, inputs = shared_llava(5, backend), prompt(BATCH)
    with topv.prune(model, method):
        want = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        cache = StaticCache(config=model.config.text_config, max_cache_len=128)
        got = model.generate(**inputs, max_new_tokens=6, do_sample=False, **with_cache(cache))
    assert torch.equal(got, want)


def test_layers_hold_what_they_need() -> None:
    model, inputs = shared_llava(), prompt(BATCH)
    with topv.prune(model, topv.TopV(keep=0.5, layer=2)), torch.no_grad():
        cache = output_cache(model(**inputs, use_cache=True))
    rows = [sum(18 if part == "image" else int(part) for part in sample) for sample in BATCH]
    assert [layer.keys.shape[-2] for layer in cache.layers] == [inputs["input_ids"].shape[1]] * 2 + [max(rows)] * 3
