"""A pruned run equals the unpruned model with the pruned tokens hidden as keys in the later layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import topv
from exactness_settings import BACKENDS, KEEPS, methods, uncompiled
from reference import generated_reference, masked_forward, positions, pruned_columns, relative_error
from tiny_models import IMAGE_TOKEN, TOKENS, prompt, shared_llava, tiny_llava

SINGLE = [[3, "image", 4]]
BATCH = [[3, "image", 4], [2, "image", 1, "image", 3], [6], ["image", 2]]
MIDDLE_AND_LAST = [["image", 2], [4, "image"], [2, "image", 1]]


def reference_of(backend: str, layers: int = 5) -> Any:
    return shared_llava(layers, "eager" if backend == "flex_attention" else backend)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("samples", [SINGLE, BATCH, MIDDLE_AND_LAST], ids=["single", "batch", "image last"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_equals_masked_model(backend: str, samples: Any, padding: str) -> None:
    model, inputs = shared_llava(5, backend), prompt(samples, padding=padding)
    real = inputs["attention_mask"].bool()
    for keep in KEEPS:
        for method in [*methods(keep), topv.VTW()]:
            with uncompiled(), topv.prune(model, method) as pruning, torch.no_grad():
                out = model(**inputs, position_ids=positions(real), output_hidden_states=True)
            hidden = pruned_columns(inputs, pruning.kept_positions, IMAGE_TOKEN)
            want = masked_forward(reference_of(backend), inputs, hidden, pruning.layer)
            stays = real & ~hidden
            assert relative_error(out.logits[stays], want.logits[stays]) <= 1e-5, method
            for got_state, want_state in zip(out.hidden_states, want.hidden_states, strict=True):
                assert relative_error(got_state[stays], want_state[stays]) <= 1e-5, method
            assert out.logits[hidden].isnan().all(), "pruned positions must not pass for results"
            assert not out.logits[stays].isnan().any()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("samples", [SINGLE, BATCH, MIDDLE_AND_LAST], ids=["single", "batch", "image last"])
def test_generation_equals_masked_model_step_by_step(backend: str, samples: Any) -> None:
    model, inputs = shared_llava(5, backend), prompt(samples)
    for keep in KEEPS:
        for method in [*methods(keep), topv.VTW(), topv.VTW(layer=4)]:
            with uncompiled(), topv.prune(model, method) as pruning:
                out = model.generate(
                    **inputs, max_new_tokens=16, do_sample=False, return_dict_in_generate=True, output_logits=True
                )
            want = generated_reference(
                reference_of(backend), inputs, out.sequences, positions=pruning.kept_positions, layer=pruning.layer
            )
            got = torch.stack(out.logits, dim=1)
            assert got.shape[1] == 16
            assert relative_error(got, want) <= 1e-5, method


@pytest.mark.slow
def test_compiled_flex_attention_equals_masked_model() -> None:
    model, inputs = tiny_llava(backend="flex_attention"), prompt(SINGLE)
    with topv.prune(model, topv.TopV(keep=0.5)) as pruning, torch.no_grad():
        out = model(**inputs)
    hidden = pruned_columns(inputs, pruning.kept_positions, IMAGE_TOKEN)
    want = masked_forward(reference_of("eager"), inputs, hidden, 2)
    assert relative_error(out.logits[~hidden], want.logits[~hidden]) <= 1e-5


@pytest.mark.parametrize("samples", [SINGLE, BATCH])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_keeping_everything_is_bit_identical(backend: str, samples: Any) -> None:
    model, inputs = shared_llava(5, backend), prompt(samples)
    with torch.no_grad():
        want = model(**inputs, output_hidden_states=True)
        want_ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    for method in [*methods(1.0), *methods(TOKENS)]:
        with topv.prune(model, method) as pruning, torch.no_grad():
            got = model(**inputs, output_hidden_states=True)
            ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        assert torch.equal(got.logits, want.logits), method
        assert all(torch.equal(a, b) for a, b in zip(got.hidden_states, want.hidden_states, strict=True))
        assert torch.equal(ids, want_ids)
        assert pruning.report().kept_tokens == pruning.report().visual_tokens


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
def test_half_precision_keeps_its_own_accuracy(dtype: torch.dtype, bound: float) -> None:
    model, inputs = tiny_llava(dtype=dtype), prompt(BATCH, dtype=dtype)
    for method in methods(0.5):
        with topv.prune(model, method) as pruning, torch.no_grad():
            out = model(**inputs, position_ids=positions(inputs["attention_mask"]))
        hidden = pruned_columns(inputs, pruning.kept_positions, IMAGE_TOKEN)
        want = masked_forward(model, inputs, hidden, pruning.layer)
        stays = inputs["attention_mask"].bool() & ~hidden
        assert out.logits.dtype == dtype
        assert relative_error(out.logits[stays].float(), want.logits[stays].float()) <= bound


def test_pruning_changes_the_result() -> None:
    """The exactness tests would pass on a runtime that never prunes; this one would not."""
    model, inputs = shared_llava(), prompt(SINGLE)
    with torch.no_grad():
        whole = model(**inputs).logits
        with topv.prune(model, topv.TopV(keep=0.1)):
            pruned = model(**inputs).logits
    assert relative_error(pruned[:, -1], whole[:, -1]) > 1e-3


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_class_token_is_never_pruned(strategy: str) -> None:
    model = tiny_llava(strategy=strategy)
    inputs = prompt(SINGLE)
    if strategy == "full":
        ids = inputs["input_ids"]
        inputs["input_ids"] = torch.cat([ids[:, :3], torch.full((1, 1), IMAGE_TOKEN), ids[:, 3:]], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with topv.prune(model, topv.Uniform(keep=1)) as pruning, torch.no_grad():
        out = model(**inputs)
    assert pruning.report().visual_tokens == TOKENS
    assert pruning.report().kept_tokens == 1
    visual = inputs["input_ids"][0] == IMAGE_TOKEN
    assert int((~out.logits[0].isnan().any(-1) & visual).sum()) == (2 if strategy == "full" else 1)


def test_labels_score_the_same_loss_as_the_masked_model() -> None:
    model, inputs = shared_llava(), prompt(BATCH)
    first = inputs["attention_mask"].long().argmax(1, keepdim=True)
    # The first token of a left-padded row would be predicted from padding, whose state nothing defines.
    real = torch.arange(inputs["input_ids"].shape[1]) > first
    labels = inputs["input_ids"].masked_fill(~real | (inputs["input_ids"] == IMAGE_TOKEN), -100)
    with topv.prune(model, topv.TopV(keep=0.25)) as pruning, torch.no_grad():
        loss = model(**inputs, labels=labels, position_ids=positions(inputs["attention_mask"])).loss
    hidden = pruned_columns(inputs, pruning.kept_positions, IMAGE_TOKEN)
    want = masked_forward(model, inputs, hidden, 2, labels=labels).loss
    assert torch.isfinite(loss)
    assert float(abs(loss - want)) <= 1e-5
    scored = labels[:, 1:] != -100
    for sample, kept in enumerate(pruning.kept_positions):
        visual = set((inputs["input_ids"][sample] == IMAGE_TOKEN).nonzero().flatten().tolist())
        must = set(scored[sample].nonzero().flatten().tolist()) & visual
        assert must <= set(kept.tolist())


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_four_dimensional_mask(backend: str) -> None:
    model, inputs = shared_llava(5, backend), prompt(BATCH)
    real = inputs["attention_mask"].bool()
    length = real.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril()[None, None] & real[:, None, None, :]
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    call = {**inputs, "position_ids": positions(real)}
    for method in methods(0.5):
        with topv.prune(model, method) as pruning, torch.no_grad():
            got = model(**{**call, "attention_mask": mask}).logits
        hidden = pruned_columns(inputs, pruning.kept_positions, IMAGE_TOKEN)
        want = masked_forward(model, inputs, hidden, pruning.layer).logits
        stays = real & ~hidden
        assert relative_error(got[stays], want[stays]) <= 1e-5


def test_result_does_not_depend_on_the_batch() -> None:
    model, inputs = shared_llava(), prompt(BATCH)
    for method in methods(0.5):
        with topv.prune(model, method) as pruning, torch.no_grad():
            model(**inputs, position_ids=positions(inputs["attention_mask"]))
            together = pruning.kept_positions
            image = 0
            for sample, parts in enumerate(BATCH):
                count = parts.count("image")
                real = inputs["attention_mask"][sample].bool()
                alone = {
                    "input_ids": inputs["input_ids"][sample : sample + 1, real],
                    "attention_mask": torch.ones(1, int(real.sum()), dtype=torch.long),
                }
                if count:
                    alone["pixel_values"] = inputs["pixel_values"][image : image + count]
                image += count
                model(**alone)
                padding = int((~real).sum())
                assert torch.equal(pruning.kept_positions[0] + padding, together[sample]), method
