"""Phi-4-multimodal, which is not in the image-text-to-text mapping: exact, and its tokens where they belong."""

from __future__ import annotations

import pytest
import torch

from tools.probe.probe import probe
from tools.probe.recipes.phi4_multimodal import CROP, SIDE, Phi4Multimodal
from topv.models import family_of


def test_exact() -> None:
    outcome = probe(Phi4Multimodal())
    assert outcome.family == "Phi4Multimodal"
    assert {cell for column, cell in outcome.cells.items() if column not in ("sdpa", "video")} == {"yes"}, outcome.notes
    # transformers' own sdpa path of the tower attends causally where no patch is padding.
    assert outcome.cells["sdpa"] in ("yes", "-")


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 0), (0, 5), (2, 6), (1, 3)])
def test_a_bright_cell_is_where_the_layout_says(row: int, column: int) -> None:
    recipe = Phi4Multimodal()
    torch.manual_seed(0)
    model = recipe.build()
    model.set_attn_implementation("eager")
    for name, module in model.named_modules():
        if "img_processor" in name and name.endswith("out_proj") and isinstance(module, torch.nn.Linear):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    inputs = recipe.prompt(model, [[3, "wide", 4]])
    layout = family_of(model).layout(family_of(model).placeholders(inputs["input_ids"]), inputs)
    assert [(grid.kind, grid.rows_and_columns) for grid in layout.grids] == [
        ("image", (SIDE, 2 * SIDE)),
        ("thumbnail", (SIDE, SIDE)),
    ]
    cell = CROP // SIDE
    tile, within = column // SIDE, column % SIDE
    bright = inputs["image_pixel_values"].clone()
    bright[0, 1 + tile, :, row * cell : (row + 1) * cell, within * cell : (within + 1) * cell] += 3
    change = embedded(model, inputs | {"image_pixel_values": bright}) - embedded(model, inputs)
    lit = int(change.norm(dim=-1)[0].argmax())
    assert lit == int(layout.grids[0].columns[row * 2 * SIDE + column])


def embedded(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What enters the first decoder layer."""
    seen: list[torch.Tensor] = []
    layer = family_of(model).layers[0]
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        handle.remove()
    return seen[0]
