"""InternVL in its original format answers as the same weights do in transformers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import topv

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: `make test-vllm` runs these", allow_module_level=True)

from serve.engines import Case, ask, engine
from serve.internvl_chat import IMAGES, save_original


@pytest.mark.parametrize("keep", [0.5, 0.2])
def test_as_transformers(keep: float, tmp_path: Path) -> None:
    from vllm.transformers_utils.processors.internvl import InternVLImageProcessor

    model, processor = save_original(tmp_path)
    generator = np.random.default_rng(0)
    sizes = ((32, 32), (64, 32), (40, 90))
    images = [Image.fromarray(generator.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    text = "user <image> what is this ? assistant"
    tokenizer = processor.tokenizer
    preprocess = InternVLImageProcessor(image_size=32, **IMAGES)
    with engine(tmp_path / "original", {"keep": keep}, trust_remote_code=True) as held:
        found = ask(held, [Case([image], text) for image in images], [None] * len(images))
    for image, answer in zip(images, found, strict=True):
        pixels = preprocess(images=[image])["pixel_values_flat"]
        marks = "<img>" + "<IMG_CONTEXT>" * 16 * len(pixels) + "</img>"
        ids = tokenizer(text.replace("<image>", marks), return_tensors="pt")["input_ids"]
        method = topv.TopV(stage="encoder", keep=keep)
        with topv.prune(model, method) as pruning, torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=pixels,
                max_new_tokens=8,
                eos_token_id=len(tokenizer),
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        new = out.sequences[0, ids.shape[1] :]
        logprobs = torch.stack(out.logits)[:, 0].log_softmax(-1).gather(1, new[:, None]).squeeze(1)
        report = pruning.report()
        assert answer.prompt == ids.shape[1] - report.visual_tokens + report.kept_tokens
        assert answer.tokens == new.tolist()
        torch.testing.assert_close(answer.logprobs, logprobs, atol=2e-4, rtol=0)
