"""The bundled, trained model is pruned as exactly as the random one."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import topv
from exactness_settings import BACKENDS, KEEPS, methods, uncompiled
from reference import generated_reference, relative_error
from topv.scenes import draw_scene


@functools.lru_cache(maxsize=3)
def bundled(backend: str) -> tuple[Any, Any]:
    model, processor = topv.load_mini()
    model.set_attn_implementation(backend)
    return model, processor


def batch(processor: Any, images_per_sample: list[int]) -> Any:
    """A left-padded batch of questions about zero, one or two built-in pictures."""
    texts, images = [], []
    for index, count in enumerate(images_per_sample):
        scene = draw_scene(index, "test")
        content = [{"type": "image"}] * count + [{"type": "text", "text": scene.questions[index].prompt}]
        texts.append(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
        images += [draw_scene(10 * index + number, "test").image for number in range(count)]
    return processor(images=images, text=texts, padding=True, return_tensors="pt")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("samples", [[1], [1, 2, 0, 1]], ids=["single", "batch"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_generation_equals_masked_model_step_by_step(backend: str, samples: list[int]) -> None:
    model, processor = bundled(backend)
    reference, _ = bundled("eager" if backend == "flex_attention" else backend)
    inputs = batch(processor, samples)
    for keep in KEEPS:
        for method in [*methods(keep), topv.VTW()]:
            with uncompiled(), topv.prune(model, method) as pruning:
                out = model.generate(
                    **inputs,
                    max_new_tokens=16,
                    min_new_tokens=16,
                    do_sample=False,
                    return_dict_in_generate=True,
                    output_logits=True,
                )
            want = generated_reference(
                reference, inputs, out.sequences, positions=pruning.kept_positions, layer=pruning.layer
            )
            assert relative_error(torch.stack(out.logits, 1), want) <= 1e-5, method


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("samples", [[1], [1, 2, 0, 1]], ids=["single", "batch"])
def test_keeping_everything_is_bit_identical(backend: str, samples: list[int]) -> None:
    model, processor = bundled(backend)
    inputs = batch(processor, samples)
    with torch.no_grad():
        want = model(**inputs).logits
        for method in methods(1.0):
            with topv.prune(model, method):
                assert torch.equal(model(**inputs).logits, want), method
        assert torch.equal(model(**inputs).logits, want)
