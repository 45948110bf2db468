"""Do the grids of Qwen's and GLM's families tell truly which token looks at which place of a picture?

A bright block moves over an image of one colour. The family's own image processor cuts it up, and a vision tower
whose attention is switched off sees every patch by itself: so the tokens that change are those at the block.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.minicpmv4_6 import modeling_minicpmv4_6

from needs import need
from tools.probe.recipes import recipes
from topv.errors import LayoutError
from topv.layout import Grid, VisualLayout
from topv.models.family import Family
from topv.models.registry import family_of

SMALL = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 40000}}


@dataclass
class Case:
    """An architecture with its image processor.

    Attributes:
        processor: "module:Class" among the models of transformers.
        settings: arguments that make the processor fit the recipe's model.
        cell: side in pixels of what one token covers.
        torchvision: whether the processor needs that package.
    """

    model_type: str
    processor: str = "qwen2_vl.image_processing_pil_qwen2_vl:Qwen2VLImageProcessorPil"
    settings: dict[str, Any] = field(default_factory=lambda: dict(SMALL))
    cell: int = 8
    torchvision: bool = False

    def __str__(self) -> str:
        return self.model_type


GLM4V = "glm4v.image_processing_pil_glm4v:Glm4vImageProcessorPil"
GLM46V = "glm46v.image_processing_pil_glm46v:Glm46VImageProcessorPil"
CASES = [
    Case("qwen2_vl"),
    Case("qwen2_5_vl"),
    Case("qwen3_vl"),
    Case("qwen3_vl_moe"),
    Case("qwen3_5"),
    Case("qwen3_5_moe"),
    Case("glm4v", GLM4V),
    Case("glm4v_moe", GLM4V),
    Case("glm46v", GLM46V),
    Case("glm_ocr", GLM46V),
    Case("paddleocr_vl", "paddleocr_vl.image_processing_pil_paddleocr_vl:PaddleOCRVLImageProcessorPil"),
    Case(
        "video_llama_3",
        "video_llama_3.image_processing_pil_video_llama_3:VideoLlama3ImageProcessorPil",
        SMALL | {"merge_size": 1},
        cell=4,
    ),
    Case(
        "kimi_k25",
        "kimi_k25.image_processing_kimi_k25:Kimi_K25ImageProcessor",
        {"patch_size": 4, "merge_size": 2},
        torchvision=True,
    ),
]
VIDEO_CASES = [case for case in CASES if recipes()[case.model_type].video]

PLACES = [(0, 0), (0, 5), (2, 0), (1, 4), (2, 6)]
"""Cells of a grid of at least 3 x 7, none of them on its diagonal but the first."""


def local_model(model_type: str) -> Any:
    """The recipe's model, its vision tower without attention."""
    torch.manual_seed(0)
    model = recipes()[model_type].build()
    for name, child in model.model.named_children():
        for module in child.modules() if name != "language_model" else ():
            if "Attention" in type(module).__name__:
                for projection in ("proj", "out_proj", "o_proj"):
                    if hasattr(module, projection):
                        torch.nn.init.zeros_(getattr(module, projection).weight)
    return model


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {}


def model_of(case: Case, models: dict[str, Any]) -> Any:
    if case.model_type not in models:
        models[case.model_type] = local_model(case.model_type)
    return models[case.model_type]


def processor_of(case: Case, **settings: Any) -> Any:
    if case.torchvision:
        need("torchvision")
    module, _, name = case.processor.partition(":")
    return getattr(importlib.import_module(f"transformers.models.{module}"), name)(**(case.settings | settings))


def canvas(shape: tuple[int, int], block: tuple[int, int] | None, cell: int) -> Image.Image:
    """A grey image of `shape` cells, with the cell at `block` (row, column) in orange."""
    pixels = np.full((shape[0] * cell, shape[1] * cell, 3), 90, np.uint8)
    if block is not None:
        row, column = block
        pixels[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = (255, 180, 20)
    return Image.fromarray(pixels)


def prompt(model: Any, recipe: Any, tokens: Sequence[Sequence[int]], pixels: dict[str, Any]) -> dict[str, Any]:
    """One sample: text, and the pictures with text between them."""
    row = [40, 41]
    for number, own in enumerate(tokens):
        row += [*own, 42 + number, 60]
    ids = torch.tensor([row])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
    return inputs | recipe.extra(model, inputs)


def with_grids(recipe: Any, grids: Sequence[Sequence[int]], kind: str) -> tuple[Any, list[list[int]]]:
    """The recipe's ids for pictures of the given grids of patches."""
    recipe, tokens = copy.copy(recipe), []
    for grid in grids:
        recipe.grids = {kind: tuple(grid)}
        tokens.append(recipe.tokens(kind))
    return recipe, tokens


def image_prompt(model: Any, case: Case, images: Sequence[Image.Image]) -> dict[str, Any]:
    pixels = dict(processor_of(case)(list(images), return_tensors="pt"))
    recipe, tokens = with_grids(recipes()[case.model_type], pixels["image_grid_thw"].tolist(), "image")
    return prompt(model, recipe, tokens, pixels)


def video_prompt(
    model: Any, case: Case, videos: Sequence[Sequence[Image.Image]], dropped: tuple[int, ...] = (), **settings: Any
) -> dict[str, Any]:
    """Every frame as the image processor cuts it up, in the order in which a video's frames come."""
    recipe = copy.copy(recipes()[case.model_type])
    recipe.dropped = dropped
    processor = processor_of(case, merge_size=2, **settings)
    patches, rows, tokens = [], [], []
    for frames in videos:
        cut = processor(list(frames), return_tensors="pt")
        _, height, width = cut["image_grid_thw"][0].tolist()
        patches.append(cut["pixel_values"])
        if case.model_type == "kimi_k25":
            recipe.chunks, grids = len(frames), [(1, height, width)] * len(frames)
        else:
            grids = [(len(frames), height, width)]
        rows += grids
        tokens += with_grids(recipe, grids[:1], "video")[1]
    pixels = {"pixel_values_videos": torch.cat(patches), "video_grid_thw": torch.tensor(rows)}
    return prompt(model, recipe, tokens, pixels | recipe.along(rows, True))


def embedded(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """What enters the decoder at each column of the prompt: (T, D)."""
    seen: list[torch.Tensor] = []
    decoder = model.model.language_model
    hook = decoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        hook.remove()
    return seen[0][0]


def layout_of(model: Any, inputs: dict[str, Any]) -> tuple[Family, VisualLayout]:
    family = family_of(model)
    return family, family.layout(family.placeholders(inputs["input_ids"]), inputs)


def change(model: Any, blank: dict[str, Any], marked: dict[str, Any]) -> torch.Tensor:
    """How much each column of the prompt changes with the block: (T,)."""
    return (embedded(model, marked) - embedded(model, blank)).abs().amax(1)


def cells(grid: Grid, changes: torch.Tensor) -> list[tuple[int, int]]:
    """The cells of a grid that change at all."""
    columns = grid.rows_and_columns[1]
    found = (changes[grid.columns] > 1e-3 * changes.max()).nonzero().flatten().tolist()
    return [divmod(cell, columns) for cell in found]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("shape", [(7, 7), (3, 8), (8, 7)], ids=str)
def test_an_image(case: Case, shape: tuple[int, int], models: dict[str, Any]) -> None:
    model = model_of(case, models)
    blank = image_prompt(model, case, [canvas(shape, None, case.cell)])
    _, layout = layout_of(model, blank)
    (grid,) = layout.grids
    assert (grid.rows_and_columns, grid.kind, grid.spatial) == (shape, "image", True)
    for place in PLACES:
        marked = image_prompt(model, case, [canvas(shape, place, case.cell)])
        assert cells(grid, change(model, blank, marked)) == [place]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_several_images(case: Case, models: dict[str, Any]) -> None:
    model = model_of(case, models)
    shapes = [(3, 8), (7, 7), (7, 3)]
    places = [(2, 6), (1, 5), (6, 1)]
    blank = image_prompt(model, case, [canvas(shape, None, case.cell) for shape in shapes])
    _, layout = layout_of(model, blank)
    assert [grid.rows_and_columns for grid in layout.grids] == shapes
    assert [grid.image for grid in layout.grids] == [0, 1, 2]
    for number, place in enumerate(places):
        marks = [place if other == number else None for other in range(3)]
        images = [canvas(shape, mark, case.cell) for shape, mark in zip(shapes, marks, strict=True)]
        changes = change(model, blank, image_prompt(model, case, images))
        assert [cells(grid, changes) for grid in layout.grids] == [[mark] if mark else [] for mark in marks]


@pytest.mark.parametrize("case", VIDEO_CASES, ids=str)
def test_videos(case: Case, models: dict[str, Any]) -> None:
    model = model_of(case, models)
    shapes = [(3, 5), (4, 3)]
    lengths = [3, 2]

    def inputs(marked: tuple[int, int] | None, place: tuple[int, int] | None) -> dict[str, Any]:
        frames = [
            [canvas(shape, place if (number, frame) == marked else None, 8) for frame in range(length)]
            for number, (shape, length) in enumerate(zip(shapes, lengths, strict=True))
        ]
        return video_prompt(model, case, frames)

    blank = inputs(None, None)
    _, layout = layout_of(model, blank)
    order = [(number, frame) for number, length in enumerate(lengths) for frame in range(length)]
    assert [grid.rows_and_columns for grid in layout.grids] == [shapes[number] for number, _ in order]
    assert {grid.kind for grid in layout.grids} == {"frame"}
    for marked, place in [((0, 1), (1, 4)), ((0, 2), (2, 0)), ((1, 0), (3, 1)), ((1, 1), (0, 2))]:
        changes = change(model, blank, inputs(marked, place))
        assert [cells(grid, changes) for grid in layout.grids] == [[place] if at == marked else [] for at in order]


VIDEO_PROCESSORS = {
    "qwen2_vl": "qwen2_vl.video_processing_qwen2_vl:Qwen2VLVideoProcessor",
    "qwen3_vl": "qwen3_vl.video_processing_qwen3_vl:Qwen3VLVideoProcessor",
    "glm4v": "glm4v.video_processing_glm4v:Glm4vVideoProcessor",
    "glm46v": "glm46v.video_processing_glm46v:Glm46VVideoProcessor",
    "video_llama_3": "video_llama_3.video_processing_video_llama_3:VideoLlama3VideoProcessor",
}


@pytest.mark.parametrize("model_type", VIDEO_PROCESSORS)
def test_video_processors_cut_up_frames_as_images(model_type: str) -> None:
    """So that the videos of the tests above, which the image processors cut up, are what these would make."""
    need("torchvision")
    case = next(case for case in CASES if case.model_type == model_type)
    recipe = recipes()[model_type]
    frames = [canvas((4, 3), place, 8) for place in [(0, 2), (3, 1), (1, 1)]]
    module, _, name = VIDEO_PROCESSORS[model_type].partition(":")
    processor = getattr(importlib.import_module(f"transformers.models.{module}"), name)(
        patch_size=4,
        temporal_patch_size=recipe.frames_per_patch,  # type: ignore[attr-defined]
        merge_size=2,
        size={"shortest_edge": 64, "longest_edge": 400000},
        do_sample_frames=False,
        do_normalize=False,
    )
    video = np.stack([np.asarray(frame) for frame in frames for _ in range(recipe.frames_per_patch)])  # type: ignore[attr-defined]
    metadata = {"fps": 1.0, "total_num_frames": len(video), "frames_indices": list(range(len(video)))}
    cut = processor([video], video_metadata=[metadata], return_tensors="pt")
    own = video_prompt(local_model(model_type), case, [frames], do_normalize=False)
    torch.testing.assert_close(cut["pixel_values_videos"], own["pixel_values_videos"], atol=1e-5, rtol=0)
    assert cut["video_grid_thw"].tolist() == own["video_grid_thw"].tolist()


def test_tokens_left_out_of_a_video(models: dict[str, Any]) -> None:
    case = next(case for case in CASES if case.model_type == "video_llama_3")
    model = model_of(case, models)
    # Of three frames of 3 x 5 tokens the last lacks the second and the seventh.
    dropped = (31, 36)

    def inputs(frame: int, place: tuple[int, int] | None) -> dict[str, Any]:
        frames = [canvas((3, 5), place if at == frame else None, 8) for at in range(3)]
        return video_prompt(model, case, [frames], dropped)

    blank = inputs(0, None)
    _, layout = layout_of(model, blank)
    assert [grid.rows_and_columns for grid in layout.grids] == [(3, 5), (3, 5), (1, 13)]
    assert [grid.spatial for grid in layout.grids] == [True, True, False]
    assert cells(layout.grids[1], change(model, blank, inputs(1, (2, 1)))) == [(2, 1)]
    # The last cell of the raster is the last token that is left.
    assert cells(layout.grids[2], change(model, blank, inputs(2, (2, 4)))) == [(0, 12)]


merges_each_crop = pytest.mark.skipif(
    hasattr(modeling_minicpmv4_6, "get_vision_merged_shape"),
    reason="this transformers' MiniCPM-V 4.6 merges the patches of every crop in the shape of the first",
)


@pytest.mark.parametrize(
    ("mode", "slices", "overview"),
    [
        pytest.param("16x", (2, 3), (48, 80), marks=merges_each_crop),
        ("4x", (2, 3), (48, 80)),
        # All crops have one shape.
        ("16x", (2, 2), (64, 64)),
    ],
)
def test_an_overview_and_slices(mode: str, slices: tuple[int, int], overview: tuple[int, int]) -> None:
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

    cell = 16 if mode == "16x" else 8
    model = local_model("minicpmv4_6")
    processor = MiniCPMV4_6ImageProcessorPil(patch_size=4, scale_resolution=64, downsample_mode=mode)
    height, width = slices[0] * 64, slices[1] * 64
    tiles = slices[0] * slices[1]

    def inputs(place: tuple[int, int] | None) -> dict[str, Any]:
        # A small image, which stays whole, before one that becomes slices of 64 x 64 pixels.
        images = [canvas((64 // cell, 64 // cell), None, cell), canvas((height // cell, width // cell), place, cell)]
        cut = processor(images, return_tensors="pt")
        assert cut["num_patches_per_image"] == [1, 1 + tiles]
        assert list(cut["grids"][1]) == list(slices)
        recipe, tokens, start = copy.copy(recipes()["minicpmv4_6"]), [], 0
        recipe.stride = cell // 4
        for crops in cut["num_patches_per_image"]:
            recipe.crops = {"image": cut["target_sizes"][start : start + crops].tolist()}
            tokens.append(recipe.tokens("image"))
            start += crops
        pixels = {"pixel_values": cut["pixel_values"], "target_sizes": cut["target_sizes"], "downsample_mode": mode}
        return prompt(model, recipe, tokens, pixels)

    blank = inputs(None)
    _, layout = layout_of(model, blank)
    side = 64 // cell
    assert [grid.kind for grid in layout.grids] == ["image", "thumbnail", *["tile"] * tiles]
    assert [grid.image for grid in layout.grids] == [0, *[1] * (1 + tiles)]
    assert [grid.rows_and_columns for grid in layout.grids] == [
        (side, side),
        (overview[0] // cell, overview[1] // cell),
        *[(side, side)] * tiles,
    ]
    rows, columns = layout.grids[1].rows_and_columns
    for row, column in [(0, 0), (4, 5), (1, 6), (6, 10), (7, 0), (0, 11)]:
        if column * 16 >= width:
            continue
        # Places are in cells of 16 pixels.
        place = (row * 16 // cell, column * 16 // cell)
        changes = change(model, blank, inputs(place))
        found = [cells(grid, changes) for grid in (layout.grids[0], *layout.grids[2:])]
        tile = row // 4 * slices[1] + column // 4
        expected: list[list[tuple[int, int]]] = [[] for _ in range(1 + tiles)]
        expected[1 + tile] = [(place[0] % side, place[1] % side)]
        assert found == expected
        # The overview is a smaller copy, whose pixels blend: the most changes in a cell that the block reaches into.
        top, bottom = place[0] * cell * rows // height, (((place[0] + 1) * cell - 1) * rows) // height
        left, right = place[1] * cell * columns // width, (((place[1] + 1) * cell - 1) * columns) // width
        at = divmod(int(changes[layout.grids[1].columns].argmax()), columns)
        assert top <= at[0] <= bottom
        assert left <= at[1] <= right


def test_frames_of_several_crops() -> None:
    recipe = recipes()["minicpmv4_6"]
    model = recipe.build()
    inputs = recipe.prompt(model, [["video", "video", 3, "wide"], [2, "video"]])
    _, layout = layout_of(model, inputs)
    found = [(grid.sample, grid.image, grid.kind, grid.rows_and_columns) for grid in layout.grids]
    frames = [(sample, image, "frame", (2, 4)) for sample, image in [(0, 0), (0, 0), (0, 1), (0, 1)]]
    wide = [(0, 2, "thumbnail", (2, 5)), *[(0, 2, "tile", (2, 3))] * 4]
    assert found == [*frames, *wide, (1, 0, "frame", (2, 4)), (1, 0, "frame", (2, 4))]
    inputs["target_sizes"] = inputs["target_sizes"][:-1]
    with pytest.raises(LayoutError, match="target_sizes tells of crops"):
        layout_of(model, inputs)


def test_images_and_videos_that_share_a_placeholder() -> None:
    recipe = recipes()["glm4v"]
    model = recipe.build()
    inputs = recipe.prompt(model, [["video", 2, "image"], ["wide", "video"]])
    _, layout = layout_of(model, inputs)
    found = [(grid.sample, grid.image, grid.kind, grid.rows_and_columns) for grid in layout.grids]
    first = [*[(0, 0, "frame", (2, 3))] * 3, (0, 1, "image", (4, 4))]
    assert found == [*first, (1, 0, "image", (3, 7)), *[(1, 1, "frame", (2, 3))] * 3]
    del inputs["image_grid_thw"]
    with pytest.raises(LayoutError, match="without image_grid_thw"):
        layout_of(model, inputs)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_recipe(case: Case, models: dict[str, Any]) -> None:
    """Every picture of a batch in prompt order, whatever order its arguments are in."""
    recipe, model = recipes()[case.model_type], model_of(case, models)
    samples: list[list[int | str]] = [[3, "wide", 2, "image"], [2, "image", 1]]
    _, layout = layout_of(model, recipe.prompt(model, samples))
    merge = 1 if case.model_type == "video_llama_3" else 2
    shapes = [(grid.sample, grid.rows_and_columns) for grid in layout.grids]
    grids = {kind: (height // merge, width // merge) for kind, (_, height, width) in recipe.grids.items()}  # type: ignore[attr-defined]
    assert shapes == [(0, grids["wide"]), (0, grids["image"]), (1, grids["image"])]
