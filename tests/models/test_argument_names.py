"""Pictures reach a family under each name and shape that releases of transformers have given to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import topv
from architectures import recipe_of
from tools.probe.probe import probe
from tools.probe.recipe import takes
from topv.errors import LayoutError
from topv.models.registry import family_of

RENAMED = ["fuyu", "gemma4", "gemma4_unified", "glm5_next", "granite4_vision", "qwen4_exp", "video_llava", "vipllava"]
"""Architectures whose recipes name arguments, or settings, as the installed transformers does."""


@pytest.mark.parametrize("model_type", RENAMED)
def test_pictures_are_pruned_exactly(model_type: str) -> None:
    recipe = recipe_of(model_type)
    cells = {"eager": "yes", "generate": "yes"} | ({"video": "yes"} if recipe.video else {})
    outcome = probe(recipe, tuple(cells))
    assert outcome.cells == cells, outcome.notes


@pytest.mark.parametrize("model_type", RENAMED)
def test_models_overlook_no_argument_of_a_recipe(model_type: str) -> None:
    """Models swallow arguments that they do not know, and so would answer as if they had seen a picture."""
    recipe = recipe_of(model_type)
    model = recipe.build()
    inputs = recipe.prompt(model, [[3, "image", *(["video"] if recipe.video else []), 2]])
    assert [name for name in inputs if not takes(model, name)] == []


@pytest.mark.filterwarnings("ignore:`pixel_values_images` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["pixel_values", "pixel_values_images"])
def test_video_llava_takes_images_by_the_names_that_its_model_looks_at(name: str) -> None:
    recipe = recipe_of("video_llava")
    torch.manual_seed(0)
    base = recipe.build().model
    inputs = recipe.prompt(base, [["image", 2]])
    pixels = inputs.pop("pixel_values", None)
    inputs[name] = inputs.pop("pixel_values_images") if pixels is None else pixels

    def states(**changed: Any) -> torch.Tensor:
        with torch.no_grad():
            out: torch.Tensor = base(**inputs | changed).last_hidden_state
        return out

    looked_at = not torch.equal(states(), states(**{name: -inputs[name]}))
    assert looked_at or name == "pixel_values", "every release up to now takes the older name"
    family = family_of(base)
    with topv.prune(base, topv.TopV(keep=0.5)) as pruning:
        if looked_at:
            states()
            assert len(pruning.kept_positions[0]) == 8
        else:
            with pytest.raises(LayoutError, match="pixel_values_images and does not look at pixel_values"):
                family.layout(family.placeholders(inputs["input_ids"]), inputs)


@pytest.mark.filterwarnings("ignore:`pixel_values_images` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["pixel_values", "pixel_values_images"])
def test_video_llava_generates_from_images_of_either_name(name: str) -> None:
    recipe = recipe_of("video_llava")
    torch.manual_seed(0)
    model = recipe.build()
    if not takes(model, name):
        pytest.skip(f"this transformers' Video-LLaVA has no {name}")
    inputs = recipe.prompt(model, [[4, "image", 2]])
    pixels = inputs.pop("pixel_values", None)
    inputs[name] = inputs.pop("pixel_values_images") if pixels is None else pixels
    with topv.prune(model, topv.TopV(keep=0.5)) as pruning:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert len(pruning.kept_positions[0]) == 8


def test_gemma4_videos_stacked_and_in_a_row_are_laid_out_alike() -> None:
    recipe = recipe_of("gemma4")
    model = recipe.build()
    inputs = recipe.prompt(model, [["video", 2], [3, "video"]])
    inputs.pop("num_frames_per_video", None)
    family = family_of(model)
    placeholders = family.placeholders(inputs["input_ids"])
    places, pixels = inputs["video_position_ids"], inputs["pixel_values_videos"]
    row = {"pixel_values_videos": pixels.flatten(0, -3), "video_position_ids": places.flatten(0, -3)}
    stacked = {name: frames.unflatten(0, (2, 2)) for name, frames in row.items()}
    layouts = [
        family.layout(placeholders, inputs | row | {"num_frames_per_video": torch.tensor([2, 2])}),
        family.layout(placeholders, inputs | stacked),
    ]
    for layout in layouts:
        found = [(grid.sample, grid.image, grid.kind, grid.rows_and_columns) for grid in layout.grids]
        assert found == [(sample, 0, "frame", (3, 4)) for sample in (0, 0, 1, 1)]
    with pytest.raises(LayoutError, match="without num_frames_per_video"):
        family.layout(placeholders, inputs | row)
