"""compact_early_layers: the prefill is as ever, and generated tokens see pruned tokens in no layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

import topv
from kv_caches import with_cache
from reference import generated_reference, positions, pruned_columns, relative_error
from tiny_models import IMAGE_TOKEN, prompt, tiny_llava
from topv.runtime.arguments import output_cache

SINGLE = [[3, "image", 4]]
RAGGED = [[3, "image", 4], [2, "image", 1, "image", 3], [6]]
METHODS = [
    topv.TopV(keep=0.5, compact_early_layers=True),
    topv.FastV(keep=0.25, layer=1, compact_early_layers=True),
    topv.VTW(compact_early_layers=True),
]
STEPS = 4


def generate(model: Any, inputs: dict[str, torch.Tensor], steps: int = STEPS, **options: Any) -> Any:
    with torch.no_grad():
        return model.generate(
            **inputs,
            max_new_tokens=steps,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )


def reference(model: Any, inputs: dict[str, torch.Tensor], hidden: torch.Tensor, layer: int, ids: Any) -> torch.Tensor:
    """Logits (B, steps, V) of the untouched model, with `hidden` (B, T) masked from `layer` on in the prompt, and in
    every layer for the tokens behind it."""
    real = inputs["attention_mask"].bool()
    length = real.shape[1]
    steps = ids.shape[1] - length
    real = torch.cat([real, torch.ones(len(real), steps, dtype=torch.bool)], 1)
    hidden = torch.cat([hidden, torch.zeros(len(hidden), steps, dtype=torch.bool)], 1)
    causal = torch.ones(length + steps, length + steps, dtype=torch.bool).tril()
    late = causal & (real & ~hidden)[:, None, :]
    early = causal & real[:, None, :]
    early[:, length:] = late[:, length:]
    masks = [
        torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None] for seen in (early, late)
    ]

    def swap(module: Any, args: Any, call: dict[str, Any]) -> Any:
        return args, {**call, "attention_mask": masks[1]}

    handles = [b.register_forward_pre_hook(swap, with_kwargs=True) for b in model.model.language_model.layers[layer:]]
    try:
        whole = {**inputs, "input_ids": ids, "attention_mask": masks[0], "position_ids": positions(real)}
        with torch.no_grad():
            return model(**whole, use_cache=False).logits[:, length - 1 : -1]
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("samples", [SINGLE, RAGGED], ids=["one", "ragged"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_generation_is_exact(method: Any, backend: str, samples: list[list[Any]]) -> None:
    model, inputs = tiny_llava(backend=backend), prompt(samples)
    with topv.prune(model, method) as pruning:
        out = generate(model, inputs)
    hidden = pruned_columns(inputs, pruning.kept_positions, IMAGE_TOKEN)
    want = reference(model, inputs, hidden, pruning.layer, out.sequences)
    got = torch.stack(out.logits, 1)
    assert relative_error(got, want) <= 1e-5
    # What plain pruning would give: generated tokens still see pruned ones in the first layers.
    plain = generated_reference(model, inputs, out.sequences, positions=pruning.kept_positions, layer=pruning.layer)
    assert relative_error(got[:, 1:], plain[:, 1:]) > 1e-4


@pytest.mark.parametrize("samples", [SINGLE, RAGGED], ids=["one", "ragged"])
def test_all_layers_hold_what_the_report_says(samples: list[list[Any]]) -> None:
    model, inputs = tiny_llava(), prompt(samples)
    with topv.prune(model, topv.TopV(keep=0.5, compact_early_layers=True)) as pruning, torch.no_grad():
        cache = output_cache(model(**inputs, use_cache=True))
    lengths = {layer.keys.shape[2] for layer in cache.layers}
    assert len(lengths) == 1
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] > lengths.pop()
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert pruning.report().kv_bytes == held < pruning.report().kv_bytes_unpruned


def test_a_copied_prefix_is_continued_with_text() -> None:
    model, inputs = tiny_llava(), prompt(SINGLE)
    turn = torch.tensor([[11, 12, 13]])
    with topv.prune(model, topv.TopV(keep=0.5, compact_early_layers=True)) as pruning:
        first = generate(model, inputs, **with_cache(DynamicCache(config=model.config.text_config)))
        kept = pruning.kept_positions
        whole = torch.cat([first.sequences, turn], 1)
        for _ in range(2):
            cache = copy.deepcopy(output_cache(first))
            second = generate(model, {"input_ids": whole, "attention_mask": torch.ones_like(whole)},
                              **with_cache(cache))  # fmt: skip
    hidden = pruned_columns(inputs, kept, IMAGE_TOKEN)
    want = reference(model, inputs, hidden, 2, second.sequences)
    got = torch.stack(second.logits, 1)
    assert relative_error(got, want[:, -STEPS:]) <= 1e-5


def test_beams_are_exact() -> None:
    model, inputs = tiny_llava(), prompt(SINGLE)
    with topv.prune(model, topv.TopV(keep=0.5, compact_early_layers=True)) as pruning, torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=STEPS, num_beams=3, do_sample=False, length_penalty=0.0,
                             return_dict_in_generate=True, output_scores=True)  # fmt: skip
    hidden = pruned_columns(inputs, pruning.kept_positions[:1], IMAGE_TOKEN)
    logits = reference(model, inputs, hidden, pruning.layer, out.sequences).log_softmax(-1)
    steps = out.sequences[:, -STEPS:]
    want = logits.gather(2, steps[:, :, None]).sum()
    assert float(out.sequences_scores[0]) == pytest.approx(float(want), rel=1e-4)


def test_nothing_pruned_changes_nothing() -> None:
    model, inputs = tiny_llava(), prompt(SINGLE)
    plain = generate(model, inputs)
    with topv.prune(model, topv.TopV(keep=1.0, compact_early_layers=True)):
        whole = generate(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, whole.logits, strict=True))


def test_what_cannot_be_compacted_is_refused() -> None:
    model, inputs = tiny_llava(), prompt(SINGLE)
    with topv.prune(model, topv.TopV(keep=0.5, compact_early_layers=True)), torch.no_grad():
        with pytest.raises(topv.UnsupportedError, match=r"StaticCache of StaticLayer.*DynamicCache"):
            model(**inputs, **with_cache(StaticCache(config=model.config.text_config, max_cache_len=64)))
        cache = output_cache(model(**inputs, use_cache=True))
        with pytest.raises(topv.UnsupportedError, match="cannot take another image"):
            model(**{**inputs, "attention_mask": torch.ones(1, 2 * inputs["input_ids"].shape[1], dtype=torch.long)},
                  **with_cache(cache))  # fmt: skip
    with pytest.raises(ValueError, match=r"compact_early_layers='yes' must be True or False"):
        topv.TopV(compact_early_layers="yes")  # type: ignore[arg-type]


def test_decoders_of_mixed_layers_are_refused() -> None:
    from tools.probe.recipes import recipes

    model = recipes()["gemma3"].build()
    with pytest.raises(topv.UnsupportedError, match=r"compact_early_layers=True needs.*Gemma3"):
        topv.attach(model, topv.TopV(compact_early_layers=True))
