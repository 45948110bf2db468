"""On a CUDA device: the same exactness, every backend that is installed, and no wait for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.utils import is_flash_attn_2_available

import topv
from reference import masked_forward, positions, pruned_columns, relative_error
from tiny_models import IMAGE_TOKEN, prompt, tiny_llava

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

BATCH = [[3, "image", 4], [2, "image", 1, "image", 3], [6], ["image", 2]]
METHODS = [topv.TopV(keep=0.5), topv.FastV(keep=0.25), topv.VTW(), topv.Random(keep=0.3), topv.MeanCost(keep=0.5)]
STAGED = [topv.PyramidDrop(keep=0.4), topv.SparseVLM(keep=0.4, layer=1)]


def on_gpu(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cuda() for name, tensor in inputs.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_forward_equals_masked_model_on_the_cpu(backend: str, method: topv.Method) -> None:
    inputs = prompt(BATCH)
    real = inputs["attention_mask"].bool()
    model = tiny_llava(backend=backend).cuda()
    with topv.prune(model, method) as pruning, torch.no_grad():
        got = model(**on_gpu(inputs), position_ids=positions(real).cuda()).logits.cpu()
    hidden = pruned_columns(inputs, pruning.kept_positions, IMAGE_TOKEN)
    want = masked_forward(tiny_llava(backend="eager"), inputs, hidden, pruning.layer).logits
    stays = real & ~hidden
    assert relative_error(got[stays], want[stays]) <= 1e-4


@pytest.mark.parametrize("method", STAGED)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_what_the_cpu_chooses(backend: str, method: topv.Method) -> None:
    inputs, found = prompt(BATCH), []
    place = positions(inputs["attention_mask"])
    for model, call in ((tiny_llava(backend=backend), inputs), (tiny_llava(backend=backend).cuda(), on_gpu(inputs))):
        with topv.prune(model, method) as pruning, torch.no_grad():
            logits = model(**call, position_ids=place.to(model.device)).logits.cpu()
        found.append((logits, pruning.kept_by_layer))
    (want, want_kept), (got, kept) = found
    assert all(torch.equal(a, b) for at in want_kept for a, b in zip(kept[at], want_kept[at], strict=True))
    assert torch.equal(got.isnan(), want.isnan())
    assert relative_error(got.nan_to_num(), want.nan_to_num()) <= 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_flash_attention_generates_what_sdpa_does(method: topv.Method) -> None:
    if not is_flash_attn_2_available():
        pytest.skip("flash-attn is not installed")
    inputs = on_gpu(prompt(BATCH, dtype=torch.bfloat16))
    answers = []
    for backend in ("sdpa", "flash_attention_2"):
        model: Any = tiny_llava(backend=backend, dtype=torch.bfloat16).cuda()
        with topv.prune(model, method), torch.no_grad():
            answers.append(model(**inputs, logits_to_keep=1).logits.float())
    assert relative_error(answers[1], answers[0]) <= 5e-2


@pytest.mark.parametrize("method", [*METHODS, *STAGED])
def test_layers_never_wait_for_the_device(method: topv.Method) -> None:
    """From the first decoder layer to the last, nothing synchronises: the layout was read before any of them ran."""
    model = tiny_llava().cuda()
    inputs = on_gpu(prompt([[3, "image", 4]]))
    layers = model.model.language_model.layers
    with topv.prune(model, method), torch.no_grad():
        model(**inputs)
        handles = [
            layers[0].register_forward_pre_hook(lambda *_: torch.cuda.set_sync_debug_mode("error")),
            layers[-1].register_forward_hook(lambda *_: torch.cuda.set_sync_debug_mode("default")),
        ]
        try:
            model(**inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            for handle in handles:
                handle.remove()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_raise(value: float) -> None:
    model = tiny_llava().cuda()
    inputs = on_gpu(prompt([[3, "image", 4]]))
    inputs["pixel_values"][0, 0, 0, 0] = value
    with topv.prune(model, topv.TopV()), torch.no_grad(), pytest.raises(topv.EvidenceError, match="NaN or infinity"):
        model(**inputs)
