"""Each visual token lies where its family says: a bright block in a picture changes the tokens that cover it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from architectures import recipe_of
from needs import need
from tools.probe.recipe import takes
from topv.errors import LayoutError
from topv.layout import VisualLayout
from topv.models.registry import family_of

Box = tuple[float, float, float, float]
"""Top, left, bottom and right, of a picture whose sides are 1."""
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
BLOCKS = [(0.06, 0.06), (0.06, 0.81), (0.56, 0.19), (0.81, 0.69)]
"""Top left corners of an eighth by an eighth of a picture, off the diagonal too."""


def picture(height: int, width: int, block: tuple[float, float] | None) -> np.ndarray:
    """A grey picture (h, w, 3), with a bright block or without."""
    pixels = np.full((height, width, 3), 90, dtype=np.uint8)
    if block is not None:
        top, left = round(block[0] * height), round(block[1] * width)
        pixels[top : top + max(1, height // 8), left : left + max(1, width // 8)] = 255
    return pixels


def build(model_type: str) -> Any:
    """The recipe's model, with a tower in which no patch sees another."""
    torch.manual_seed(0)
    model = recipe_of(model_type).build()
    for name, parameter in model.named_parameters():
        tower = "vision" in name and "projector" not in name
        if tower and any(f".{part}." in name for part in ("out_proj", "o_proj")):
            parameter.data.zero_()
    return model


class Entered(Exception):
    """Says that the decoder has been called."""


def decoder_input(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """What the decoder gets for a prompt (B, T, d): the model's own way from pixels to prompt columns."""

    def keep(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        raise Entered(kwargs["inputs_embeds"])

    handle = family_of(model).language_model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**inputs)
    except Entered as entered:
        embedded: torch.Tensor = entered.args[0]
        return embedded
    finally:
        handle.remove()
    raise AssertionError("the decoder was not called")


def layout_of(model: Any, inputs: dict[str, Any]) -> VisualLayout:
    family = family_of(model)
    return family.layout(family.placeholders(inputs["input_ids"]), inputs)


def prompt(*rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """Left-padded ids and their mask."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def check(
    model: Any,
    call: Callable[[tuple[float, float] | None], dict[str, Any]],
    block: tuple[float, float],
    boxes: Sequence[Box | None],
    kinds: Sequence[str],
) -> None:
    """The cells that change when the block appears are those that cover it.

    Args:
        call: the inputs of a call whose picture has the block, or has not.
        boxes: for each grid, in order, which part of that picture it shows; None for grids of other pictures.
    """
    plain, marked = call(None), call(block)
    layout = layout_of(model, marked)
    assert [grid.kind for grid in layout.grids] == list(kinds)
    assert len(layout.grids) == len(boxes)
    change = (decoder_input(model, marked) - decoder_input(model, plain)).abs().amax(-1)
    most = float(change.max())
    assert most > 0
    centre = block[0] + 1 / 16, block[1] + 1 / 16
    seen = 0
    for grid, box in zip(layout.grids, boxes, strict=True):
        rows, columns = grid.rows_and_columns
        cells = change[grid.sample, grid.columns].view(rows, columns)
        top, left, bottom, right = box or WHOLE
        row = (centre[0] - top) / (bottom - top) * rows
        column = (centre[1] - left) / (right - left) * columns
        if box is None or not (0 <= row < rows and 0 <= column < columns):
            # A resized block can bleed into the edge of the next tile.
            assert box is not None or float(cells.max()) == 0
            continue
        seen += 1
        strongest = divmod(int(cells.argmax()), columns)
        height, width = 1 / 16 / (bottom - top) * rows + 0.6, 1 / 16 / (right - left) * columns + 0.6
        assert abs(strongest[0] + 0.5 - row) <= height, (strongest, row, column)
        assert abs(strongest[1] + 0.5 - column) <= width, (strongest, row, column)
        # Farther away than the block and its blurred edge reach, nothing changes.
        far = ((torch.arange(rows) + 0.5 - row).abs() > height + 1)[:, None] | (
            (torch.arange(columns) + 0.5 - column).abs() > width + 1
        )
        assert float(cells[far].max() if far.any() else 0) <= 0.05 * most
    assert seen
    assert float(change[~family_of(model).placeholders(marked["input_ids"])].max()) == 0


def tile_boxes(rows: int, columns: int) -> list[Box | None]:
    """What each of rows x columns tiles shows, and then the whole."""
    boxes: list[Box | None] = [
        (row / rows, column / columns, (row + 1) / rows, (column + 1) / columns)
        for row in range(rows)
        for column in range(columns)
    ]
    return [*boxes, WHOLE] if rows * columns > 1 else [WHOLE]


def tile_kinds(count: int) -> list[str]:
    return ["image"] if count == 1 else ["tile"] * (count - 1) + ["thumbnail"]


def patches_of(image: torch.Tensor, patch: int) -> torch.Tensor:
    """Patches of (3, h, w) in raster order, each as rows x columns x channels: (N, patch * patch * 3)."""
    _, height, width = image.shape
    cut = image.view(3, height // patch, patch, width // patch, patch)
    return cut.permute(1, 3, 2, 4, 0).reshape(-1, patch * patch * 3)


def as_tensor(pixels: np.ndarray, size: tuple[int, int] | None = None) -> torch.Tensor:
    """(3, h, w) about zero, resized."""
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
    if size is not None:
        image = torch.nn.functional.interpolate(image[None], size, mode="area")[0]
    return image


def cut(image: torch.Tensor, side: int) -> list[torch.Tensor]:
    """Square tiles of (3, h, w), row by row."""
    return [
        image[:, top : top + side, left : left + side]
        for top in range(0, image.shape[1], side)
        for left in range(0, image.shape[2], side)
    ]


def tile_tokens(rows: int, columns: int, tokens: int) -> list[int]:
    """An image as the processors of Idefics 3 and SmolVLM write it."""
    ids: list[int] = []
    for row in range(rows if rows * columns > 1 else 0):
        for column in range(columns):
            ids += [5, 20 + row * columns + column, *[6] * tokens]
        ids.append(10)
    return [*ids, *([11] if ids else []), 5, 12, *[6] * tokens, 5]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("size", [(48, 48), (24, 48), (48, 16), (24, 24)])
@pytest.mark.parametrize("model_type", ["idefics3", "smolvlm"])
def test_idefics3(model_type: str, size: tuple[int, int], block: tuple[float, float]) -> None:
    if model_type == "idefics3":
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil as Processor
    else:
        from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil as Processor
    edge = max(size)
    processor = Processor(size={"longest_edge": edge}, max_image_size={"longest_edge": 24}, return_row_col_info=True)

    def call(block: tuple[float, float] | None) -> dict[str, Any]:
        images = [[picture(40, 40, None)], [picture(*size, block), picture(*size, None)]]
        made = processor(images, return_tensors="pt")
        ids = [
            [token for rows, columns in zip(*own, strict=True) for token in [*tile_tokens(rows, columns, 16), 40]]
            for own in zip(made.pop("rows"), made.pop("cols"), strict=True)
        ]
        return {**prompt(*ids), **made}

    shape = -(-size[0] // 24), -(-size[1] // 24)
    square = [1, 1] if edge == 24 else [2, 2]
    boxes = tile_boxes(*shape)
    others: list[Box | None] = [None] * len(tile_boxes(*square))
    kinds = tile_kinds(len(others)) + tile_kinds(len(boxes)) * 2
    check(build(model_type), call, block, [*others, *boxes, *[None] * len(boxes)], kinds)


@pytest.mark.parametrize("block", BLOCKS)
def test_smolvlm_frames(block: tuple[float, float]) -> None:
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    processor = SmolVLMImageProcessorPil(
        size={"longest_edge": 24}, max_image_size={"longest_edge": 24}, do_image_splitting=False
    )

    def call(block: tuple[float, float] | None) -> dict[str, Any]:
        frames = [[picture(24, 24, None), picture(24, 24, block), picture(24, 24, None)]]
        ids = [token for frame in range(3) for token in [40 + frame, *tile_tokens(1, 1, 16)]]
        return {**prompt(ids), **processor(frames, return_tensors="pt")}

    # A frame of a video is an image to the model.
    check(build("smolvlm"), call, block, [None, WHOLE, None], ["image"] * 3)


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_granite_docling(shape: tuple[int, int], block: tuple[float, float], fine: bool) -> None:
    model = build("granite_docling")
    from transformers.models.granite_docling.image_processing_pil_granite_docling import GraniteDoclingImageProcessorPil

    processor = GraniteDoclingImageProcessorPil(size={"height": 32, "width": 32}, max_patches=4, fine_route=fine)
    tokens = 64 if fine else 16

    def call(block: tuple[float, float] | None) -> dict[str, Any]:
        images = [[picture(32, 32, None), picture(32 * shape[0], 32 * shape[1], block), picture(32, 32, None)]]
        made = processor(images, return_tensors="pt")
        assert made.pop("rows")[0][1] == shape[0]
        assert made.pop("cols")[0][1] == shape[1]
        single = [5, 20, *[6] * tokens, 10]
        ids = tile_tokens(*shape, tokens) if shape != (1, 1) else single
        return {**prompt([40, *single, *ids, 41, *single]), **made}

    boxes = tile_boxes(*shape)
    check(model, call, block, [None, *boxes, None], ["image", *tile_kinds(len(boxes)), "image"])


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("size", "crops"), [((24, 24), 0), ((48, 24), 0), ((24, 60), 3), ((48, 24), 2)])
def test_gemma3(size: tuple[int, int], crops: int, block: tuple[float, float]) -> None:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    processor = Gemma3ImageProcessorPil(
        size={"height": 24, "width": 24},
        do_pan_and_scan=crops > 0,
        pan_and_scan_min_crop_size=8,
        pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )

    def call(block: tuple[float, float] | None) -> dict[str, Any]:
        made = processor([picture(*size, block), picture(20, 20, None)], return_tensors="pt")
        assert made["num_crops"].tolist() == [crops, 0]
        image = [5, *[6] * 16, 7]
        return {**prompt([*image * (1 + crops), 40], [*image, 41]), "pixel_values": made["pixel_values"]}

    # A picture's crops follow it.
    down, across = (1, crops) if size[1] > size[0] else (crops, 1)
    boxes = [WHOLE, *(tile_boxes(down, across)[:crops] if crops else []), None]
    check(build("gemma3"), call, block, boxes, ["image"] * len(boxes))


@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("size", [(64, 64), (48, 96), (96, 40)])
def test_gemma4(size: tuple[int, int], block: tuple[float, float], video: bool) -> None:
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    processor = Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70)
    check_gemma4("gemma4", processor, size, block, video)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("size", [(64, 64), (48, 96), (96, 40)])
def test_gemma4_unified(size: tuple[int, int], block: tuple[float, float]) -> None:
    need("torchvision")
    from transformers.models.gemma4_unified.image_processing_gemma4_unified import Gemma4UnifiedImageProcessor

    processor = Gemma4UnifiedImageProcessor(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70)
    check_gemma4("gemma4_unified", processor, size, block, False)


def check_gemma4(
    model_type: str, processor: Any, size: tuple[int, int], block: tuple[float, float], video: bool
) -> None:
    def call(block: tuple[float, float] | None) -> dict[str, Any]:
        other = size if video else (32, 40)
        made = processor([picture(*size, block), picture(*other, None)], return_tensors="pt")
        counts = made.pop("num_soft_tokens_per_image").tolist()
        ids = [token for count in counts for token in [40, 5, *[8 if video else 6] * count, 7]]
        if not video:
            return {**prompt(ids), **made}
        # Frames are packed as images are, and counted.
        renamed = {"pixel_values_videos": made["pixel_values"], "video_position_ids": made["image_position_ids"]}
        if takes(model, "num_frames_per_video"):
            return {**prompt(ids), **renamed, "num_frames_per_video": torch.tensor([2])}
        # Older releases of transformers stack videos of equally many frames.
        return {**prompt(ids), **{name: frames[None] for name, frames in renamed.items()}}

    model = build(model_type)
    check(model, call, block, [WHOLE, None], ["frame" if video else "image"] * 2)


@pytest.mark.parametrize("backend", ["by hand", "processor"])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1), (2, 2)])
def test_llama4(shape: tuple[int, int], block: tuple[float, float], backend: str) -> None:
    rows, columns = shape
    boxes = tile_boxes(rows, columns)

    def pixels(block: tuple[float, float] | None) -> torch.Tensor:
        images = [picture(24 * rows, 24 * columns, block), picture(24, 24, None)]
        if backend == "by hand":
            tiles = cut(as_tensor(images[0]), 24)
            whole = [as_tensor(images[0], (24, 24))] if len(tiles) > 1 else []
            return torch.stack([*tiles, *whole, as_tensor(images[1])])
        need("torchvision")
        from transformers.models.llama4.image_processing_llama4 import Llama4ImageProcessor

        made = Llama4ImageProcessor(size={"height": 24, "width": 24}, max_patches=4)(images, return_tensors="pt")
        assert made["aspect_ratios"].tolist() == [[rows, columns], [1, 1]]
        return made["pixel_values"].float()

    def call(block: tuple[float, float] | None) -> dict[str, Any]:
        tile = [6] * 16
        ids = [5]
        for _ in range(rows if rows * columns > 1 else 0):
            ids += [*([*tile, 10] * columns)[:-1], 11]
        ids += [12, *tile, 7]
        return {**prompt([*ids, 5, 12, *tile, 7, 40]), "pixel_values": pixels(block)}

    check(build("llama4"), call, block, [*boxes, None], [*tile_kinds(len(boxes)), "image"])


@pytest.mark.parametrize("backend", ["by hand", "processor"])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1), (2, 2)])
def test_lfm2_vl(shape: tuple[int, int], block: tuple[float, float], backend: str) -> None:
    rows, columns = shape
    boxes = tile_boxes(rows, columns)
    whole = {(1, 1): (24, 40), (1, 2): (24, 48), (3, 1): (56, 16), (2, 2): (32, 32)}[shape]

    def by_hand(images: list[np.ndarray]) -> dict[str, torch.Tensor]:
        tiles = cut(as_tensor(images[0]), 32) if rows * columns > 1 else []
        grids = [*tiles, as_tensor(images[0], whole), as_tensor(images[1])]
        pixels, mask = torch.zeros(len(grids), 80, 48), torch.zeros(len(grids), 80, dtype=torch.int32)
        for at, grid in enumerate(grids):
            own = patches_of(grid, 4)
            pixels[at, : len(own)], mask[at, : len(own)] = own, 1
        shapes = torch.tensor([[grid.shape[1] // 4, grid.shape[2] // 4] for grid in grids])
        return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}

    def made(block: tuple[float, float] | None) -> dict[str, torch.Tensor]:
        size = (32 * rows, 32 * columns) if rows * columns > 1 else (24, 40)
        images = [picture(*size, block), picture(16, 32, None)]
        if backend == "by hand":
            return by_hand(images)
        need("torchvision")
        from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

        processor = Lfm2VlImageProcessor(
            tile_size=32,
            encoder_patch_size=4,
            min_tiles=2,
            max_tiles=4,
            min_image_tokens=4,
            max_image_tokens=20,
            max_pixels_tolerance=1.5,
            return_row_col_info=True,
        )
        result = processor([[image] for image in images], return_tensors="pt")
        assert [int(result.pop(name)[0]) for name in ("image_rows", "image_cols")] == [rows, columns]
        result.pop("image_sizes")
        return dict(result)

    def call(block: tuple[float, float] | None) -> dict[str, Any]:
        pixels = made(block)
        counts = [(h // 2) * (w // 2) for h, w in pixels["spatial_shapes"].tolist()]
        ids = [5]
        for at, count in enumerate(counts[:-1]):
            ids += [*([20 + at] if len(boxes) > 1 else []), *[6] * count]
        return {**prompt([*ids, 7, 5, *[6] * counts[-1], 7, 40]), **pixels}

    check(build("lfm2_vl"), call, block, [*boxes, None], [*tile_kinds(len(boxes)), "image"])


@pytest.mark.parametrize("backend", ["by hand", "processor"])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1), (2, 2)])
def test_molmo2(shape: tuple[int, int], block: tuple[float, float], backend: str) -> None:
    recipe: Any = recipe_of("molmo2")

    def made(block: tuple[float, float] | None) -> dict[str, torch.Tensor]:
        images = [picture(24, 24, None), picture(24 * shape[0], 24 * shape[1], block)]
        if backend == "processor":
            need("torchvision")
            from transformers.models.molmo2.image_processing_molmo2 import Molmo2ImageProcessor

            processor = Molmo2ImageProcessor(
                size={"height": 24, "width": 24},
                patch_size=3,
                max_crops=4,
                overlap_margins=[1, 1],
            )
            return dict(processor(images, return_tensors="pt"))
        pixels, pooling, grids = [], [], []
        for image, part in zip(images, [(1, 1), shape], strict=True):
            for crops, own in (((1, 1), [as_tensor(image, (24, 24))]), (part, cut(as_tensor(image), 24))):
                pooling.append(recipe._pooling(*crops, 64 * len(pixels)))
                pixels += [patches_of(crop, 3) for crop in own]
            grids.append([4, 4, 4 * part[0], 4 * part[1]])
        return {
            "pixel_values": torch.stack(pixels),
            "image_token_pooling": torch.cat(pooling),
            "image_grids": torch.tensor(grids),
        }

    def call(block: tuple[float, float] | None) -> dict[str, Any]:
        pixels = made(block)
        ids: list[int] = []
        for small_rows, small_columns, rows, columns in pixels["image_grids"].tolist():
            small, whole = [*[6] * small_columns, 10] * small_rows, [*[6] * columns, 10] * rows
            ids += [13, *small, 7, 5, *whole, 7]
        return {**prompt([40, *ids]), **pixels}

    check(build("molmo2"), call, block, [None, None, WHOLE, WHOLE], ["thumbnail", "image"] * 2)


@pytest.mark.parametrize("block", BLOCKS)
def test_molmo2_frames(block: tuple[float, float]) -> None:
    recipe: Any = recipe_of("molmo2")

    def call(block: tuple[float, float] | None) -> dict[str, Any]:
        frames = [picture(24, 24, None), picture(24, 24, block), picture(24, 24, None)]
        pixels = {
            "pixel_values_videos": torch.stack([patches_of(as_tensor(frame), 3) for frame in frames]),
            "video_token_pooling": recipe._pooling(3, 1, 0),
            "video_grids": torch.tensor([[3, 4, 4]]),
        }
        return {**prompt([40, 14, *[6] * 16, 15] * 3), **pixels}

    check(build("molmo2"), call, block, [None, WHOLE, None], ["frame"] * 3)


def test_idefics2_has_no_places() -> None:
    torch.manual_seed(0)
    recipe = recipe_of("idefics2")
    model = recipe.build()
    layout = layout_of(model, recipe.prompt(model, [[4, "image", 6], [2, "image", 3, "image", 2]]))
    assert [(grid.sample, grid.image, grid.tokens, grid.spatial) for grid in layout.grids] == [
        (0, 0, 16, False),
        (1, 0, 16, False),
        (1, 1, 16, False),
    ]


@pytest.mark.parametrize("model_type", ["gemma3", "gemma4", "idefics2", "idefics3", "lfm2_vl", "llama4", "molmo2"])
def test_missing_placeholders_are_told(model_type: str) -> None:
    torch.manual_seed(0)
    recipe = recipe_of(model_type)
    model = recipe.build()
    inputs = recipe.prompt(model, [[4, "image", 6]])
    family = family_of(model)
    first = int(family.placeholders(inputs["input_ids"])[0].nonzero()[0])
    inputs["input_ids"][0, first] = 40
    with pytest.raises(LayoutError):
        layout_of(model, inputs)
