"""Do the grids of LLaVA's, InternVL's and their like's families tell truly which token looks at which place?

A bright block is set into an image of one colour. The family's own image processor cuts it up, and a vision tower whose
attention is switched off sees every patch by itself: so the tokens that change are those at the block.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tools.probe.recipes import recipes
from topv.errors import LayoutError
from topv.layout import VisualLayout
from topv.models.registry import family_of

IMAGE, VIDEO = 5, 8
BLOCKS = [(0.0, 0.5, 0.5, 1.0), (0.5, 0.0, 1.0, 0.4), (0.15, 0.0, 0.6, 1.0)]
"""Top, left, bottom and right of a block, as parts of an image's height and width."""

Size = tuple[int, int]
Box = tuple[float, float, float, float]
"""Top, left, bottom and right in pixels of the original."""


@dataclass
class Shot:
    """What a processor makes of some pictures, and where in them each grid ought to look.

    Attributes:
        inputs: the call's arguments.
        tokens: the ids of the pictures in the prompt.
        features: the rows that fill the placeholders, in the order of the prompt.
        views: for each grid in prompt order, its kind, its picture (and frame), and the part of that which it shows.
    """

    inputs: dict[str, Any]
    tokens: list[int]
    features: torch.Tensor
    views: list[tuple[str, int, Box]]


def whole(size: Size) -> Box:
    return (0, 0, *size)


def square(size: Size, side: int) -> Box:
    """The square with this side on an image's centre."""
    top, left = (size[0] - side) / 2, (size[1] - side) / 2
    return top, left, top + side, left + side


def tiny(model_type: str) -> Any:
    """A recipe's model whose vision tower passes nothing from patch to patch."""
    torch.manual_seed(0)
    model = recipes()[model_type].build()
    names = ("out_proj", "o_proj", "projection_layer")
    for name, module in model.named_modules():
        if "language_model" not in name and name.endswith(names) and isinstance(module, torch.nn.Linear):
            torch.nn.init.zeros_(module.weight)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    return model


def painted(sizes: Sequence[Size], lit: int | None, block: Box = (0, 0, 0, 0)) -> list[np.ndarray]:
    """Images of one colour, number `lit` with a block in another."""
    images = [np.full((*size, 3), 60, dtype=np.uint8) for size in sizes]
    if lit is not None:
        top, left, bottom, right = pixels(sizes[lit], block)
        images[lit][int(top) : int(bottom), int(left) : int(right)] = (250, 220, 30)
    return images


def pixels(size: Size, block: Box) -> Box:
    return block[0] * size[0], block[1] * size[1], block[2] * size[0], block[3] * size[1]


def flat(features: Any) -> torch.Tensor:
    """A model's features as rows."""
    features = features.pooler_output
    parts = [features] if isinstance(features, torch.Tensor) else list(features)
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def laid_out(model: Any, shot: Shot) -> tuple[VisualLayout, torch.Tensor]:
    """The layout of a prompt with text around the pictures, and which placeholder each of its columns is."""
    ids = torch.tensor([[40, *shot.tokens, 41]])
    family = family_of(model)
    placeholders = family.placeholders(ids)
    assert int(placeholders.sum()) == len(shot.features)
    layout = family.layout(placeholders, {"input_ids": ids, **shot.inputs})
    return layout, placeholders[0].long().cumsum(0) - 1


def coverage(cells: tuple[int, int], view: Box, block: Box) -> torch.Tensor:
    """Which part of each cell of a grid that shows `view` lies in `block`: (h * w,)."""
    parts = []
    for axis in (0, 1):
        edges = torch.linspace(view[axis], view[axis + 2], cells[axis] + 1, dtype=torch.float64)
        low, high = edges[:-1].clamp(block[axis], block[axis + 2]), edges[1:].clamp(block[axis], block[axis + 2])
        parts.append((high - low) / (edges[1] - edges[0]))
    return (parts[0][:, None] * parts[1][None, :]).flatten()


def check(model: Any, shoot: Callable[[Any, Sequence[Size], Any], Shot], sizes: Sequence[Size], block: Box) -> None:
    """Light a block in each picture in turn: the cells inside it must change more than all that it does not touch."""
    plain = shoot(model, sizes, painted(sizes, None))
    layout, rank = laid_out(model, plain)
    assert [grid.kind for grid in layout.grids] == [kind for kind, _, _ in plain.views]
    for lit in range(len(sizes)):
        change = (shoot(model, sizes, painted(sizes, lit, block)).features - plain.features).norm(dim=1)
        covered = []
        for grid, (_, picture, view) in zip(layout.grids, plain.views, strict=True):
            inside = coverage(grid.rows_and_columns, view, pixels(sizes[lit], block))
            covered.append(inside if picture == lit else torch.zeros_like(inside))
        inside = torch.cat(covered)
        changes = torch.cat([change[rank[grid.columns]] for grid in layout.grids])
        assert bool((inside > 0.99).any())
        assert changes[inside > 0.99].min() > 2 * changes[inside < 1e-6].max()


def get(model: Any, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return flat(model.model.get_image_features(**inputs))


def filled(model: Any, tokens: Sequence[int], **inputs: Any) -> torch.Tensor:
    """What the decoder gets in place of the placeholders of a prompt.

    Releases of transformers differ in what the features of videos hold, but not in this.
    """
    family, ids, seen = family_of(model), torch.tensor([tokens]), []
    handle = family.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        with torch.no_grad():
            model(input_ids=ids, **inputs)
    finally:
        handle.remove()
    embedded: torch.Tensor = seen[0]
    return embedded[family.placeholders(ids)]


def plain_images(processor: Any, view: Callable[[Size], Box], **options: Any) -> Callable[..., Shot]:
    """Every image as one grid, each between tokens of its own."""

    def shoot(model: Any, sizes: Sequence[Size], images: Any) -> Shot:
        made = processor(images, return_tensors="pt", **options)
        inputs = {name: made[name] for name in ("pixel_values", "pixel_values_images", "image_sizes") if name in made}
        features = get(model, **inputs)
        if "image_sizes" in made:
            counts = [h * w // 64 for h, w in made["image_sizes"].tolist()]
        else:
            counts = [len(features) // len(sizes)] * len(sizes)
        tokens = [token for count in counts for token in [6, *[IMAGE] * count, 7]]
        return Shot(inputs, tokens, features, [("image", index, view(size)) for index, size in enumerate(sizes)])

    return shoot


CROPPED = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
FIXED = {
    "llava-crop": ("llava", "CLIPImageProcessorPil", CROPPED, lambda size: square(size, min(size))),
    "llava-pad": ("llava", "LlavaImageProcessorPil", CROPPED | {"do_pad": True}, lambda size: square(size, max(size))),
    "vipllava": ("vipllava", "CLIPImageProcessorPil", CROPPED, lambda size: square(size, min(size))),
    "paligemma": ("paligemma", "SiglipImageProcessorPil", {"size": {"height": 24, "width": 24}}, whole),
    "deepseek_vl": (
        "deepseek_vl",
        "DeepseekVLImageProcessorPil",
        {"size": {"height": 24, "width": 24}, "min_size": 4},
        lambda size: square(size, max(size)),
    ),
    "janus": (
        "janus",
        "JanusImageProcessorPil",
        {"size": {"height": 24, "width": 24}, "min_size": 4},
        lambda size: square(size, max(size)),
    ),
    "mistral3": (
        "mistral3",
        "PixtralImageProcessorPil",
        {"size": {"longest_edge": 64}, "patch_size": {"height": 8, "width": 8}},
        whole,
    ),
}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("sizes", [[(72, 72)], [(72, 84), (84, 72), (72, 72)]], ids=["one", "several"])
@pytest.mark.parametrize("name", FIXED)
def test_one_grid_per_image(name: str, sizes: Sequence[Size], block: Box) -> None:
    model_type, processor, settings, view = FIXED[name]
    check(tiny(model_type), plain_images(getattr(transformers, processor)(**settings), view), sizes, block)


def anyres_view(size: Size, pinpoint: Size, side: int, cells: int) -> Box:
    """The part of an image that is left of its tiles: all but what whole rows or columns of padding cut off it."""
    scale = min(pinpoint[0] / size[0], pinpoint[1] / size[1])
    view = [0.0, 0.0, float(size[0]), float(size[1])]
    for axis in (0, 1):
        scaled = min(round(size[axis] * scale + 0.49), pinpoint[axis])
        before = (pinpoint[axis] - scaled) // 2
        pixels_per_cell = side // cells
        across = pinpoint[axis] // pixels_per_cell
        cut = (across - int(round(size[axis] * scale / pixels_per_cell, 7))) // 2
        view[axis] = (cut * pixels_per_cell - before) / scale
        view[axis + 2] = ((across - cut) * pixels_per_cell - before) / scale
    return view[0], view[1], view[2], view[3]


PINPOINTS = {
    (64, 32): (32, 16),
    (30, 60): (16, 32),
    (60, 60): (32, 32),
    (64, 40): (32, 32),
    (40, 64): (32, 32),
    (28, 64): (16, 32),
}
"""Which of the recipes' pinpoints an image of this size takes."""


def anyres_images(model_type: str) -> Callable[..., Shot]:
    names = {"llava_onevision": "LlavaOnevisionImageProcessorPil"}
    name = names.get(model_type, "LlavaNextImageProcessorPil")
    settings: dict[str, Any] = (
        {"size": {"height": 16, "width": 16}}
        if model_type in names
        else {
            "size": {"shortest_edge": 16},
            "crop_size": {"height": 16, "width": 16},
        }
    )
    processor = getattr(transformers, name)(image_grid_pinpoints=[[32, 16], [16, 32], [32, 32]], **settings)

    def shoot(model: Any, sizes: Sequence[Size], images: Any) -> Shot:
        made = processor(images, return_tensors="pt")
        inputs = {"pixel_values": made["pixel_values"], "image_sizes": made["image_sizes"]}
        with torch.no_grad():
            features = model.model.get_image_features(**inputs).pooler_output
        tokens = [token for image in features for token in [6, *[IMAGE] * len(image), 7]]
        views = []
        for index, size in enumerate(sizes):
            views.append(("thumbnail", index, whole(size)))
            views.append(("image", index, anyres_view(size, PINPOINTS[size], 16, 4)))
        return Shot(inputs, tokens, torch.cat(list(features)), views)

    return shoot


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
    "sizes",
    [[(64, 32)], [(30, 60)], [(60, 60)], [(64, 40)], [(40, 64)], [(28, 64)], [(64, 32), (60, 60), (30, 60)]],
    ids=["tall", "wide", "square", "narrowed", "lowered", "padded", "several"],
)
@pytest.mark.parametrize("model_type", ["llava_next", "llava_next_video", "llava_onevision"])
def test_thumbnail_and_rows_of_tiles(model_type: str, sizes: Sequence[Size], block: Box) -> None:
    check(tiny(model_type), anyres_images(model_type), sizes, block)


@pytest.mark.parametrize("block", BLOCKS)
def test_onevision_scales_large_images_down(block: Box) -> None:
    model = tiny("llava_onevision")
    model.config.vision_aspect_ratio = "anyres_max_1"
    shoot = anyres_images("llava_onevision")
    layout, _ = laid_out(model, shoot(model, [(60, 60)], painted([(60, 60)], None)))
    assert [grid.rows_and_columns for grid in layout.grids] == [(4, 4), (4, 4)]
    check(model, shoot, [(60, 60)], block)


@pytest.mark.parametrize("block", BLOCKS)
def test_onevision_does_not_tile_several_images_of_one_sample(block: Box) -> None:
    processor = transformers.LlavaOnevisionImageProcessorPil(
        image_grid_pinpoints=[[32, 16], [16, 32], [32, 32]], size={"height": 16, "width": 16}
    )

    def shoot(model: Any, sizes: Sequence[Size], images: Any) -> Shot:
        made = processor([images], return_tensors="pt")
        inputs = {name: made[name] for name in ("pixel_values", "image_sizes", "batch_num_images")}
        features = get(model, **inputs)
        tokens = [token for _ in sizes for token in [6, *[IMAGE] * 17, 7]]
        views = [("image", index, square(size, max(size))) for index, size in enumerate(sizes)]
        return Shot(inputs, tokens, features, views)

    check(tiny("llava_onevision"), shoot, [(48, 64), (64, 64)], block)


def tile_views(index: int, size: Size, tiles: tuple[int, int]) -> list[tuple[str, int, Box]]:
    """The tiles of an image, row by row, and its thumbnail."""
    if tiles == (1, 1):
        return [("image", index, whole(size))]
    high, wide = size[0] / tiles[0], size[1] / tiles[1]
    places = [(row, column) for row in range(tiles[0]) for column in range(tiles[1])]
    views = [("tile", index, (row * high, col * wide, (row + 1) * high, (col + 1) * wide)) for row, col in places]
    return [*views, ("thumbnail", index, whole(size))]


TILES = {(40, 40): (1, 1), (60, 120): (1, 2), (120, 60): (2, 1), (80, 120): (2, 3)}
"""How many rows and columns of tiles the processor makes of an image of this size."""


def tiled_images(model_type: str) -> Callable[..., Shot]:
    processor = transformers.GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=6
    )

    def shoot(model: Any, sizes: Sequence[Size], images: Any) -> Shot:
        made = processor(images, return_tensors="pt")
        counts = [int(count) for count in made["num_patches"]]
        write = recipes()[model_type].write  # type: ignore[attr-defined]
        tokens = [token for count in counts for token in [33, *write(count), 34]]
        views = [view for index, size in enumerate(sizes) for view in tile_views(index, size, TILES[size])]
        inputs = {"pixel_values": made["pixel_values"]}
        return Shot(inputs, tokens, get(model, **inputs), views)

    return shoot


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
    "sizes",
    [[(40, 40)], [(60, 120)], [(120, 60)], [(80, 120)], [(60, 120), (40, 40), (120, 60)]],
    ids=["square", "wide", "tall", "six", "several"],
)
@pytest.mark.parametrize("model_type", ["internvl", "aya_vision"])
def test_tiles_and_thumbnail(model_type: str, sizes: Sequence[Size], block: Box) -> None:
    check(tiny(model_type), tiled_images(model_type), sizes, block)


def film(frames: int, per_frame: int, before: int, after: int, processor: Any, side: Callable[[Size], int]) -> Any:
    """An image, then a video of so many frames, of which each is a picture for the block.

    The processors of these families scale frames as they scale images.
    """

    def shoot(model: Any, sizes: Sequence[Size], images: Any) -> Shot:
        stills = processor(images, return_tensors="pt")["pixel_values"]
        stills = stills[:, 0] if stills.dim() == 5 else stills
        inputs = {"pixel_values_videos": stills[None]}
        assert len(sizes) == frames
        tokens = [VIDEO] * (frames * (before + per_frame) + after)
        features = filled(model, tokens, **inputs)
        views = [("frame", index, square(size, side(size))) for index, size in enumerate(sizes)]
        return Shot(inputs, tokens, features, views)

    return shoot


CROPPED_16 = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
FILMS = {
    "video_llava": (16, 1, 0, "CLIPImageProcessorPil", CROPPED_16),
    "llava_next_video": (4, 0, 0, "CLIPImageProcessorPil", CROPPED_16),
    "llava_onevision": (4, 0, 1, "SiglipImageProcessorPil", {"size": {"height": 16, "width": 16}}),
}


@pytest.mark.parametrize("block", [(0.0, 0.5, 0.5, 1.0), (0.5, 0.0, 1.0, 0.5), (0.5, 0.0, 1.0, 1.0)])
@pytest.mark.parametrize("model_type", FILMS)
def test_frames(model_type: str, block: Box) -> None:
    per_frame, before, after, name, settings = FILMS[model_type]
    shoot = film(3, per_frame, before, after, getattr(transformers, name)(**settings), min)
    check(tiny(model_type), shoot, [(64, 64)] * 3, block)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("sizes", [[(64, 64)], [(64, 80), (80, 64)]], ids=["one", "several"])
def test_video_llava_images(sizes: Sequence[Size], block: Box) -> None:
    processor = transformers.VideoLlavaImageProcessor(**CROPPED_16)
    # Releases that offer images under another name warn of the older one unless it is declined.
    declines = "return_legacy_image_output" in inspect.signature(processor.preprocess).parameters
    options = {"return_legacy_image_output": False} if declines else {}
    shoot = plain_images(processor, lambda size: square(size, min(size)), **options)
    check(tiny("video_llava"), shoot, sizes, block)


def test_internvl_frames_are_images() -> None:
    """A video's frames come as images of one tile, in runs of their own."""
    model = tiny("internvl")
    recipe = recipes()["internvl"]
    inputs = recipe.prompt(model, [["wide", 2, "video", 3], [4, "image"]])
    family = family_of(model)
    layout = family.layout(family.placeholders(inputs["input_ids"]), inputs)
    kinds = [(grid.sample, grid.image, grid.kind) for grid in layout.grids]
    wide = [(0, 0, "tile"), (0, 0, "tile"), (0, 0, "thumbnail")]
    assert kinds == [*wide, *[(0, frame, "image") for frame in (1, 2, 3)], (1, 0, "image")]


MIXED = {
    "llava_next_video": (["thumbnail", "image"], 4),
    "llava_onevision": (["thumbnail", "image"], 4),
    "video_llava": (["image"], 3),
}


@pytest.mark.parametrize("model_type", MIXED)
def test_images_and_videos_in_the_order_of_the_prompt(model_type: str) -> None:
    still, frames = MIXED[model_type]
    model = tiny(model_type)
    inputs = recipes()[model_type].prompt(model, [["video", 2, "image", 3], [4, "image", "video"]])
    family = family_of(model)
    layout = family.layout(family.placeholders(inputs["input_ids"]), inputs)
    film = ["frame"] * frames
    assert [(grid.sample, grid.kind) for grid in layout.grids] == [
        *[(0, kind) for kind in [*film, *still]],
        *[(1, kind) for kind in [*still, *film]],
    ]


@pytest.mark.parametrize("model_type", ["internvl", "aya_vision"])
def test_missing_tiles_are_told(model_type: str) -> None:
    model = tiny(model_type)
    inputs = recipes()[model_type].prompt(model, [["wide", 2], [4, "image"]])
    family = family_of(model)
    placeholders = family.placeholders(inputs["input_ids"])
    with pytest.raises(LayoutError, match="4 tiles, but pixel_values holds 3"):
        family.layout(placeholders, inputs | {"pixel_values": inputs["pixel_values"][:3]})
    inputs["input_ids"][1, -2] = 40
    with pytest.raises(LayoutError, match="take 16 each"):
        family.layout(family.placeholders(inputs["input_ids"]), inputs)


@pytest.mark.parametrize("model_type", ["llava_next", "mistral3"])
def test_images_without_sizes_are_told(model_type: str) -> None:
    model = tiny(model_type)
    inputs = recipes()[model_type].prompt(model, [["image", 2]])
    del inputs["image_sizes"]
    family = family_of(model)
    with pytest.raises(LayoutError, match="without image_sizes"):
        family.layout(family.placeholders(inputs["input_ids"]), inputs)
