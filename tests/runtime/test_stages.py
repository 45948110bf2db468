"""Several pruning layers in one prefill: the run equals the model in which, from each of them on, what it dropped is
hidden, and each layer's cache, mask and positions are its own."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

import topv
from architectures import expands_images
from ecosystem.bench import STEPS, bench
from exactness_settings import uncompiled
from kv_caches import with_cache
from reference import (
    generated_reference,
    hidden_columns,
    positions,
    relative_error,
    staged_forward,
)
from tiny_models import IMAGE_TOKEN, TOKENS, prompt, shared_llava
from topv.methods import Evidence
from topv.models import family_of
from topv.runtime.arguments import output_cache
from topv.verify.reference import extended, masked_logits

SINGLE = [[3, "image", 4]]
BATCH = [[3, "image", 4], [2, "image", 1, "image", 3], [6], ["image", 2]]
MIDDLE_AND_LAST = [["image", 2], [4, "image"], [2, "image", 1]]
LAYERS = 6
METHODS = [
    topv.PyramidDrop(keep=0.4),
    topv.PyramidDrop(keep=0.3, stages=3, layer=2, budget="sample"),
    topv.SparseVLM(keep=0.4),
    # In the first of its pruning layers nothing leaves.
    topv.SparseVLM(keep=0.9, budget="image"),
]


def longer(inputs: dict[str, torch.Tensor], sequences: torch.Tensor) -> dict[str, torch.Tensor]:
    """The prompt with generated tokens behind it."""
    ones = torch.ones(len(sequences), sequences.shape[1] - inputs["input_ids"].shape[1], dtype=torch.long)
    return {**inputs, "input_ids": sequences, "attention_mask": torch.cat([inputs["attention_mask"], ones], dim=1)}


def padded(hidden: dict[int, torch.Tensor], length: int) -> dict[int, torch.Tensor]:
    return {at: torch.nn.functional.pad(columns, (0, length - columns.shape[1])) for at, columns in hidden.items()}


def check_generated(model: Any, inputs: dict[str, torch.Tensor], hidden: dict[int, torch.Tensor], out: Any) -> None:
    """Every logit that generation saw is the masked model's. `inputs` without the generated tokens."""
    whole = longer(inputs, out.sequences)
    want = staged_forward(model, whole, padded(hidden, out.sequences.shape[1])).logits
    length = inputs["input_ids"].shape[1]
    assert relative_error(torch.stack(out.logits, 1), want[:, length - 1 : -1]) <= 1e-5


def generate(model: Any, inputs: Any, steps: int = 5, **more: Any) -> Any:
    arguments = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True, **more}
    # A random model may say its image placeholder.
    arguments["suppress_tokens"] = [IMAGE_TOKEN]
    return model.generate(**inputs, max_new_tokens=steps, **arguments)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("samples", [SINGLE, BATCH, MIDDLE_AND_LAST], ids=["single", "batch", "image last"])
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex_attention"])
def test_forward_equals_masked_model(backend: str, samples: Any, padding: str) -> None:
    model, inputs = shared_llava(LAYERS, backend), prompt(samples, padding=padding)
    real = inputs["attention_mask"].bool()
    for method in METHODS:
        with uncompiled(), topv.prune(model, method) as pruning, torch.no_grad():
            out = model(**inputs, position_ids=positions(real), output_hidden_states=True)
        hidden = hidden_columns(inputs, pruning.kept_by_layer, IMAGE_TOKEN)
        want = staged_forward(shared_llava(LAYERS, "eager" if backend == "flex_attention" else backend), inputs, hidden)
        assert len(pruning.layers) > 1
        for index, (got_state, want_state) in enumerate(zip(out.hidden_states, want.hidden_states, strict=True)):
            # Entry i is the output of layer i - 1.
            gone = hidden[max(at for at in hidden if at <= index - 1)] if index > pruning.layer else ~real & False
            assert relative_error(got_state[real & ~gone], want_state[real & ~gone]) <= 1e-5, (method, index)
            assert got_state[gone].isnan().all()
        gone = hidden[pruning.layers[-1]]
        assert relative_error(out.logits[real & ~gone], want.logits[real & ~gone]) <= 1e-5, method
        assert out.logits[gone].isnan().all()
        assert not torch.equal(hidden[pruning.layer], gone)


@pytest.mark.parametrize("samples", [BATCH, MIDDLE_AND_LAST], ids=["batch", "image last"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_generation_equals_masked_model_step_by_step(backend: str, samples: Any) -> None:
    model, inputs = shared_llava(LAYERS, backend), prompt(samples)
    for method in METHODS:
        with topv.prune(model, method) as pruning:
            out = generate(model, inputs)
        want = generated_reference(model, inputs, out.sequences, by_layer=pruning.kept_by_layer)
        assert relative_error(torch.stack(out.logits, 1), want) <= 1e-5


@pytest.mark.parametrize("padding", ["left", "right"])
def test_each_stage_keeps_what_is_attended_to_most(padding: str) -> None:
    """PyramidDrop's choice, computed again from the whole maps of the masked model."""
    model, inputs = shared_llava(LAYERS, "eager"), prompt(BATCH, padding=padding)
    method = topv.PyramidDrop(keep=0.4)
    with topv.prune(model, method) as pruning, torch.no_grad():
        model(**inputs, position_ids=positions(inputs["attention_mask"]))
        kept_by_layer, grids = pruning.kept_by_layer, pruning.results.plan.layout.grids
    maps = staged_forward(
        model, inputs, hidden_columns(inputs, pruning.kept_by_layer, IMAGE_TOKEN), output_attentions=True
    ).attentions
    last = torch.where(inputs["attention_mask"] > 0, torch.arange(inputs["input_ids"].shape[1]), -1).amax(1)
    left = [set(grid.columns.tolist()) for grid in grids]
    for layer, kept in kept_by_layer.items():
        for number, grid in enumerate(grids):
            paid = maps[layer - 1][grid.sample, :, last[grid.sample]].mean(0)
            stays = sorted(set(kept[grid.sample].tolist()) & left[number], key=lambda column: -paid[column])
            ranked = sorted(left[number], key=lambda column: -paid[column])
            assert ranked[: len(stays)] == stays, "ties apart, which random weights do not make"
            left[number] = set(stays)


class Least(topv.PyramidDrop):
    """Keeps what is attended to least: dropped tokens, to which nothing is paid, must not come back."""

    def score(self, evidence: Evidence, count: int) -> torch.Tensor:
        return -super().score(evidence, count)


def test_what_was_dropped_stays_away() -> None:
    model, inputs = shared_llava(LAYERS), prompt(BATCH)
    with topv.prune(model, Least(keep=0.4)) as pruning, torch.no_grad():
        out = model(**inputs, position_ids=positions(inputs["attention_mask"]))
        by_layer = list(pruning.kept_by_layer.values())
    for earlier, later in itertools.pairwise(by_layer):
        assert all(set(b.tolist()) < set(a.tolist()) for a, b in zip(earlier, later, strict=True) if len(a))
    hidden = hidden_columns(inputs, pruning.kept_by_layer, IMAGE_TOKEN)
    stays = inputs["attention_mask"].bool() & ~hidden[pruning.layers[-1]]
    assert relative_error(out.logits[stays], staged_forward(model, inputs, hidden).logits[stays]) <= 1e-5


@pytest.mark.parametrize("words", [9, 150])
def test_raters_rate(words: int) -> None:
    """SparseVLM's choice at every pruning layer, computed again from the masked model."""
    model, inputs = shared_llava(LAYERS, "eager"), prompt([[3, "image", words]])
    with topv.prune(model, topv.SparseVLM(keep=0.4)) as pruning, torch.no_grad():
        model(**inputs)
        kept = {layer: set(own[0].tolist()) for layer, own in pruning.kept_by_layer.items()}
    out = staged_forward(
        model, inputs, hidden_columns(inputs, pruning.kept_by_layer, IMAGE_TOKEN), output_attentions=True
    )
    entering = out.hidden_states[0][0].double()
    visual, text = list(range(3, 3 + TOKENS)), list(range(3 + TOKENS, 3 + TOKENS + words))
    relevance = (entering[visual] @ entering[text].T).softmax(1).mean(0)
    raters = [text[i] for i in range(words) if relevance[i] > relevance.mean()]
    assert 0 < len(raters) < words
    left = set(visual)
    for layer in pruning.layers:
        paid = out.attentions[layer - 1][0].mean(0)[raters].mean(0)
        ranked = sorted(left, key=lambda column: -paid[column])
        left = set(ranked[: len(kept[layer])])
        assert left == kept[layer]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "cohere2_vision", "qwen3_vl", "llava_next", "internvl"])
@pytest.mark.parametrize("method", [topv.PyramidDrop(keep=0.4), topv.SparseVLM(keep=0.4, layer=1)], ids=repr)
def test_families(name: str, method: topv.Method) -> None:
    """M-RoPE, masks by layer type with windows, features added between layers, tiles."""
    check_family(name, method)


def test_borrowed_keys() -> None:
    """Gemma 4's last layers attend to keys of earlier ones, which see more columns than they do."""
    check_family("gemma4", topv.PyramidDrop(keep=0.4, stages=3, layer=1))
    tiny = bench("gemma4")
    with (
        topv.prune(tiny.model, topv.PyramidDrop(keep=0.4)),
        torch.no_grad(),
        pytest.raises(topv.UnsupportedError, match="does not hand its keys"),
    ):
        tiny.model(**tiny.prompt([[7, "image", 6]]))


def test_a_mixed_cache_answers_in_prompt_columns() -> None:
    """Whichever layer a decoder of several kinds asks, and however short that layer is."""
    tiny = bench("cohere2_vision")
    inputs = tiny.prompt([[7, "image", 6]])
    with topv.prune(tiny.model, topv.PyramidDrop(keep=0.4)) as pruning, torch.no_grad():
        cache = output_cache(tiny.model(**inputs, use_cache=True))
    whole = inputs["input_ids"].shape[1]
    held = [layer.keys.shape[2] for layer in cache.layers]
    assert len({*held[pruning.layer :]}) > 1
    assert [cache.get_seq_length(index) for index in range(len(held))] == [whole] * len(held)
    assert cache.get_mask_sizes(1, 3) == (whole + 1, 0)


def check_family(name: str, method: topv.Method) -> None:
    """Generation is the masked model's."""
    tiny = bench(name)
    family, inputs = family_of(tiny.model), tiny.prompt([[7, "image", 6]])
    with torch.no_grad(), topv.prune(tiny.model, method) as pruning:
        out = tiny.model.generate(**inputs, **tiny.arguments())
        visual = torch.zeros(inputs["input_ids"].shape[1], dtype=torch.bool)
        for grid in pruning.results.plan.layout.grids:
            visual[grid.columns] = True
        kept = {layer: own[0] for layer, own in pruning.kept_by_layer.items()}
    run: Any = tiny.model
    assert len({len(own) for own in kept.values()} - {int(visual.sum())}) > 1, "several layers dropped something"
    for layer, own in kept.items():
        run = hiding(run, family, own, visual, layer)
    length = inputs["input_ids"].shape[1]
    tiny.model.set_attn_implementation("eager")
    try:
        want = run(**extended(inputs, out.sequences, tiny.recipe.continuation)).logits[:, length - 1 : -1]
    finally:
        tiny.model.set_attn_implementation("sdpa")
    assert want.shape[1] == STEPS
    assert relative_error(torch.stack(out.logits, 1), want) <= 1e-5


def hiding(run: Any, family: Any, kept: torch.Tensor, visual: torch.Tensor, layer: int) -> Any:
    """A model in which what is not among `kept` is hidden from `layer` on, beside what `run` hides already."""

    def forward(**inputs: Any) -> Any:
        return SimpleNamespace(logits=masked_logits(run, family, inputs, kept, visual, layer))

    return forward


@pytest.mark.parametrize("images", [False, True], ids=["text", "image"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("method", METHODS[:3], ids=repr)
def test_second_turn(method: topv.Method, backend: str, images: bool) -> None:
    model, inputs = shared_llava(LAYERS, backend), prompt(BATCH)
    parts: list[list[int | str]] = [[2, "image", 3], [1, "image", 1], [4], ["image", 5]] if images else [[5]] * 4
    turn = prompt(parts, seed=1)
    with topv.prune(model, method) as pruning:
        first = generate(model, inputs, **with_cache(DynamicCache(config=model.config.text_config)))
        before = pruning.kept_by_layer
        whole = longer(inputs, first.sequences)
        whole["input_ids"] = torch.cat([whole["input_ids"], turn["input_ids"]], dim=1)
        whole["attention_mask"] = torch.cat([whole["attention_mask"], turn["attention_mask"]], dim=1)
        del whole["pixel_values"]
        new = {"pixel_values": turn["pixel_values"]} if images else {}
        out = generate(model, {**whole, **new}, **with_cache(copy.deepcopy(output_cache(first))))
        after = (
            pruning.kept_by_layer if images else {layer: [kept[:0] for kept in own] for layer, own in before.items()}
        )
    kept = {at: [torch.cat(pair) for pair in zip(before[at], after[at], strict=True)] for at in pruning.layers}
    hidden = hidden_columns(whole, kept, IMAGE_TOKEN)
    pictures, at, new_at = [], 0, 0
    for row, own in enumerate(BATCH):
        pictures.append(inputs["pixel_values"][at : at + own.count("image")])
        at += own.count("image")
        if images:
            pictures.append(turn["pixel_values"][new_at : new_at + parts[row].count("image")])
            new_at += parts[row].count("image")
    check_generated(model, {**whole, "pixel_values": torch.cat(pictures)}, hidden, out)


@pytest.mark.parametrize("method", METHODS[:3], ids=repr)
def test_preallocated_caches(method: topv.Method) -> None:
    model, inputs = shared_llava(LAYERS), prompt(BATCH)
    with topv.prune(model, method) as pruning:
        want, kept = generate(model, inputs).sequences, pruning.kept_by_layer
        cache = StaticCache(config=model.config.text_config, max_cache_len=128)
        assert torch.equal(generate(model, inputs, **with_cache(cache)).sequences, want)
        assert str(pruning.kept_by_layer) == str(kept)
        cache = pruning.static_cache(inputs, max_new_tokens=5)
        assert torch.equal(generate(model, inputs, **with_cache(cache)).sequences, want)
    lengths = [layer.max_cache_len for layer in cache.layers]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) > 2


def test_crop_reset_and_copies() -> None:
    model, inputs, turn = shared_llava(LAYERS), prompt(SINGLE), prompt([[5]], seed=1)["input_ids"]
    shorter = {**inputs, "input_ids": inputs["input_ids"][:, :-2], "attention_mask": inputs["attention_mask"][:, :-2]}
    method = topv.PyramidDrop(keep=0.4)
    with topv.prune(model, method) as pruning, torch.no_grad():
        cache = output_cache(model(**inputs, use_cache=True))
        kept = pruning.kept_by_layer
        want = model(input_ids=turn, **with_cache(copy.deepcopy(cache))).logits
        model(input_ids=torch.tensor([[20, 21, 22]]), **with_cache(cache))
        cache.crop(-3)
        assert torch.equal(model(input_ids=turn, **with_cache(copy.deepcopy(cache))).logits, want)
        cache.crop(-2)
        got = model(input_ids=turn, **with_cache(cache)).logits
    hidden = hidden_columns(inputs, kept, IMAGE_TOKEN)
    whole = longer(shorter, torch.cat([shorter["input_ids"], turn], dim=1))
    length = whole["input_ids"].shape[1]
    hidden = padded({at: columns[:, :-2] for at, columns in hidden.items()}, length)
    assert relative_error(got, staged_forward(model, whole, hidden).logits[:, -5:]) <= 1e-5
    with topv.prune(model, method), torch.no_grad():
        cache = output_cache(model(**inputs, use_cache=True))
        cache.crop(-6)
        with pytest.raises(topv.CacheError, match="into the pruned part"):
            model(input_ids=turn, **with_cache(cache))
        cache = output_cache(model(**inputs, use_cache=True))
        cache.layers[3].crop(-1)
        with pytest.raises(topv.CacheError, match="changed outside of topv"):
            model(input_ids=turn, **with_cache(cache))


@expands_images
def test_beams() -> None:
    model, inputs = shared_llava(LAYERS), prompt(BATCH)
    with topv.prune(model, topv.PyramidDrop(keep=0.4)) as pruning:
        out = model.generate(**inputs, max_new_tokens=4, num_beams=3, do_sample=False)
        kept = pruning.kept_by_layer
        model.generate(**inputs, max_new_tokens=1)
        alone = pruning.kept_by_layer
    assert out.shape[0] == len(BATCH)
    for layer, own in alone.items():
        assert all(torch.equal(kept[layer][3 * row + beam], own[row]) for row in range(4) for beam in range(3))


def test_a_cache_of_other_layers() -> None:
    model, inputs, turn = shared_llava(LAYERS), prompt(SINGLE), prompt([[1, "image", 2]], seed=2)
    del turn["attention_mask"]
    step = torch.tensor([[20]])
    with topv.prune(model, topv.PyramidDrop(keep=0.4)), torch.no_grad():
        cache = output_cache(model(**inputs, use_cache=True))
        want = model(input_ids=step, **with_cache(copy.deepcopy(cache))).logits
    with topv.prune(model, topv.FastV(keep=0.4, layer=3)), torch.no_grad():
        assert torch.equal(model(input_ids=step, **with_cache(copy.deepcopy(cache))).logits, want)
        with pytest.raises(topv.UnsupportedError, match=r"pruned from layer 1, 3, 4 on.*settings that it was"):
            model(**turn, **with_cache(cache))


def test_a_batch_is_its_samples() -> None:
    model, inputs = shared_llava(LAYERS), prompt(BATCH)
    for method in METHODS:
        with topv.prune(model, method) as pruning, torch.no_grad():
            model(**inputs, position_ids=positions(inputs["attention_mask"]))
            together, image = pruning.kept_by_layer, 0
            for sample, parts in enumerate(BATCH):
                real = inputs["attention_mask"][sample].bool()
                alone = {"input_ids": inputs["input_ids"][sample : sample + 1, real]}
                if count := parts.count("image"):
                    alone["pixel_values"] = inputs["pixel_values"][image : image + count]
                image += count
                model(**alone)
                for layer, kept in pruning.kept_by_layer.items():
                    assert torch.equal(kept[0] + int((~real).sum()), together[layer][sample]), method


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_keeping_everything_is_bit_identical(backend: str) -> None:
    model, inputs = shared_llava(LAYERS, backend), prompt(BATCH)
    with torch.no_grad():
        want = model(**inputs).logits
    for method in (topv.PyramidDrop(keep=1.0), topv.SparseVLM(keep=TOKENS), topv.PyramidDrop(kv_share=1.0)):
        with topv.prune(model, method) as pruning, torch.no_grad():
            assert torch.equal(model(**inputs).logits, want)
        assert pruning.report().kept_tokens == pruning.report().visual_tokens


def test_report_says_what_ran() -> None:
    model, inputs = shared_llava(LAYERS), prompt(SINGLE)
    with topv.prune(model, topv.PyramidDrop(keep=0.4)) as pruning, torch.no_grad():
        cache = output_cache(model(**inputs, use_cache=True))
    report = pruning.report()
    tokens = [report.visual_tokens, *(n for _, n in report.stages)]
    assert [layer for layer, _ in report.stages] == [1, 3, 4] == list(pruning.layers)
    assert [len(own[0]) for own in pruning.kept_by_layer.values()] == tokens[1:]
    assert tokens == sorted(set(tokens), reverse=True)
    by_layer = [tokens[sum(at <= index for at in pruning.layers)] for index in range(LAYERS)]
    held = [layer.keys.shape[2] for layer in cache.layers]
    assert held == [inputs["input_ids"].shape[1] - TOKENS + n for n in by_layer]
    assert report.kv_bytes == sum(2 * n * 2 * 8 * 4 for n in held)
    family = family_of(model)
    spent = sum(family.visual_flops(index, n) for index, n in enumerate(by_layer))
    whole = sum(family.visual_flops(index, TOKENS) for index in range(LAYERS))
    assert report.visual_flops_reduction == pytest.approx(1 - spent / whole, abs=1e-12)
    assert "from layer  1, 3, 4 of 6" in str(report)
    assert " -> ".join(map(str, tokens)) in str(report)
    assert report.to_dict()["stages"] == [list(stage) for stage in report.stages]
    assert [None if own is None else len(own) for own in pruning.importance] == [TOKENS]


def test_what_cannot_work_is_refused() -> None:
    model = shared_llava(LAYERS)
    for cls in (topv.PyramidDrop, topv.SparseVLM):
        with pytest.raises(ValueError, match="compact_early_layers=True is not offered"):
            cls(compact_early_layers=True)
    pruning = topv.attach(model, topv.PyramidDrop())
    try:
        with pytest.raises(topv.UnsupportedError, match="several pruning layers"):
            pruning.compile_prefill()
    finally:
        pruning.detach()

    class Sources(topv.PyramidDrop):
        @property
        def needs(self) -> frozenset[str]:
            return frozenset({"source"})

    with pytest.raises(topv.UnsupportedError, match="needs source"):
        topv.attach(model, Sources())
    with pytest.raises(topv.UnsupportedError, match="depend on how many entries they hold"):
        topv.attach(bench("llama4").model, topv.PyramidDrop())
