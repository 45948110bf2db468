"""Pictures are laid out by the configuration alone as by the family of a whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from architectures import recipe_of
from topv.errors import UnsupportedError
from topv.layout import VisualLayout
from topv.models import family_of
from topv.models.llava import LlavaPictures
from topv.models.llava_next import LlavaNextPictures, LlavaOnevisionPictures
from topv.models.patch_grids import PatchPictures
from topv.models.pictures import Pictures

RULES = {
    "llava": LlavaPictures,
    "llava_next": LlavaNextPictures,
    "llava_onevision": LlavaOnevisionPictures,
    "qwen2_5_vl": PatchPictures,
    "qwen3_vl": PatchPictures,
}


def told(layout: VisualLayout) -> list[tuple[Any, ...]]:
    return [(g.sample, g.columns.tolist(), g.rows_and_columns, g.image, g.kind) for g in layout.grids]


@pytest.mark.parametrize("name", RULES)
def test_no_model_is_needed(name: str) -> None:
    recipe = recipe_of(name)
    torch.manual_seed(0)
    model = recipe.build()
    inputs = recipe.prompt(model, [[3, "image", 4], [5, "image"]])
    family, rules = family_of(model), RULES[name](model.config)
    placeholders = rules.placeholders(inputs["input_ids"])
    assert placeholders.any()
    assert torch.equal(placeholders, family.placeholders(inputs["input_ids"]))
    assert told(rules.layout(placeholders, inputs)) == told(family.layout(placeholders, inputs))


def test_errors_name_what_there_is() -> None:
    model = recipe_of("llava_next").build()
    with pytest.raises(UnsupportedError, match=f"^{type(model).__name__} has no one grid size"):
        family_of(model).fixed_grid()
    with pytest.raises(UnsupportedError, match=f"^{type(model.config).__name__} has no one grid size"):
        LlavaNextPictures(model.config).fixed_grid()
    with pytest.raises(UnsupportedError, match=r"^Tiny has no one grid size"):
        Pictures(model.config, "Tiny").fixed_grid()
