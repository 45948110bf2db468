"""A left-padded batch on models with M-RoPE: every sample fares as it does alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import topv
from tools.probe.recipes import recipes

SAMPLES: list[list[int | str]] = [
    [9, "wide", 5],
    [2, "image", 3, "image", 4],
    [6],
    [3, "image", 1, "wide", 2, "image", 8],
]
TIE = 1e-5


def generated(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor | None]]:
    with torch.no_grad(), topv.prune(model, topv.TopV(keep=0.4)) as pruning:
        out = model.generate(
            **inputs,
            max_new_tokens=4,
            min_new_tokens=4,
            suppress_tokens=list(range(32)),
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return torch.stack(out.logits, 1), pruning.kept_positions, pruning.importance


def alone(both: dict[str, Any], row: int) -> dict[str, Any]:
    """One sample of the batch, with its own share of patches and grids."""
    real = both["attention_mask"][row].bool()
    images = [sum(isinstance(part, str) for part in sample) for sample in SAMPLES]
    first, last = sum(images[:row]), sum(images[: row + 1])
    one = {name: both[name][row : row + 1, real] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    if last > first:
        grids = both["image_grid_thw"]
        patches = grids.prod(1).cumsum(0).tolist()
        start = patches[first - 1] if first else 0
        one["image_grid_thw"] = grids[first:last]
        one["pixel_values"] = both["pixel_values"][start : patches[last - 1]]
    return one


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_samples_with_different_images_equal_themselves_alone(model_type: str) -> None:
    recipe = recipes()[model_type]
    torch.manual_seed(0)
    model = recipe.build()
    both = recipe.prompt(model, SAMPLES)
    logits, kept, _ = generated(model, both)
    for row in range(len(SAMPLES)):
        own_logits, own_kept, own_importance = generated(model, alone(both, row))
        padding = int((both["attention_mask"][row] == 0).sum())
        if not torch.equal(kept[row] - padding, own_kept[0]):
            differing = set((kept[row] - padding).tolist()) ^ set(own_kept[0].tolist())
            visual = (alone(both, row)["input_ids"][0] == model.config.image_token_id).nonzero().squeeze(1).tolist()
            scores = [own_importance[0][visual.index(column)] for column in differing]  # type: ignore[index]
            assert max(scores) - min(scores) < TIE, "other tokens were kept, and not by a tie"
            continue
        assert (logits[row] - own_logits[0]).abs().max() / own_logits.abs().max() <= 1e-4
