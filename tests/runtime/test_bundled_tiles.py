"""The trained tiled model: four tiles and a thumbnail, each pruned by itself or all together, exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import topv
from topv.models import family_of
from topv.scenes import draw_scene, read_view
from topv.verify.reference import masked_logits, relative_error


@pytest.fixture(scope="module")
def tiled() -> tuple[Any, dict[str, Any], str]:
    model, processor = topv.load_mini(tiled=True)
    model.set_attn_implementation("eager")
    scene = draw_scene(3, "test", read_view(model.config, processor).geometry)
    question = next(q for q in scene.questions if q.task == "recognition")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.prompt}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=[scene.image], text=[text], return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert answer == question.answer
    return model, dict(inputs), question.answer


@pytest.mark.parametrize("budget", ["grid", "image"])
@pytest.mark.parametrize("keep", [0.5, 0.25])
def test_pruned_equals_masked(tiled: Any, keep: float, budget: Any) -> None:
    model, inputs, _ = tiled
    with torch.no_grad(), topv.prune(model, topv.TopV(keep=keep, budget=budget)) as pruning:
        out = model(**inputs)
    grids = pruning.results.plan.layout.grids
    assert [grid.kind for grid in grids] == ["tile"] * 4 + ["thumbnail"]
    assert pruning.report().kept_tokens == round(keep * 80)
    visual = torch.zeros(inputs["input_ids"].shape[1], dtype=torch.bool)
    for grid in grids:
        visual[grid.columns] = True
    want = masked_logits(model, family_of(model), inputs, pruning.kept_positions[0], visual, 2)
    stays = ~visual
    stays[pruning.kept_positions[0]] = True
    assert relative_error(out.logits[:, stays], want[:, stays]) <= 1e-5


def test_keeping_everything_is_bit_identical(tiled: Any) -> None:
    model, inputs, _ = tiled
    with torch.no_grad():
        want = model(**inputs).logits
        with topv.prune(model, topv.TopV(keep=1.0)):
            assert torch.equal(model(**inputs).logits, want)
