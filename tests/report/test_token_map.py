"""Pictures of kept tokens, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from topv.errors import InputError
from topv.report import draw_heat_map, draw_token_map, enlarge, outline_token, seen_image
from topv.report.token_map import CHOSEN, RECOVERED

CELL = 20


class Processor:
    image_mean = (0.5, 0.4, 0.3)
    image_std = (0.2, 0.25, 0.3)
    rescale_factor = 1 / 255


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels, "RGB")


def cell(image: Image.Image, row: int, column: int) -> np.ndarray:
    pixels = np.asarray(image).astype(int)
    return pixels[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]


def test_kept_cells_are_untouched_and_pruned_ones_dim_and_grey():
    image = noise(2 * CELL, 3 * CELL)
    drawn = draw_token_map(image, (2, 3), kept=[0, 5])
    for row, column in ((0, 0), (1, 2)):
        assert (cell(drawn, row, column) == cell(image, row, column)).all()
    for row, column in ((0, 1), (0, 2), (1, 0), (1, 1)):
        pruned, before = cell(drawn, row, column), cell(image, row, column)
        assert (pruned == pruned[..., :1]).all()
        assert pruned.std() < 0.5 * before.std()
        assert pruned.max() < 130


def test_recovered_cells_are_clear_with_an_outline():
    image = noise(2 * CELL, 2 * CELL)
    drawn = draw_token_map(image, (2, 2), kept=[1, 2], recovered=[2])
    outlined = cell(drawn, 1, 0)
    border = np.concatenate([outlined[0], outlined[-1], outlined[:, 0], outlined[:, -1]])
    assert (border == RECOVERED).all()
    assert (outlined[2:-2, 2:-2] == cell(image, 1, 0)[2:-2, 2:-2]).all()
    assert (cell(drawn, 0, 1) == cell(image, 0, 1)).all()


def test_one_token_is_outlined_and_the_rest_left_alone():
    image = noise(3 * CELL, 3 * CELL)
    outlined = outline_token(image, (3, 3), 4)
    changed = (np.asarray(outlined) != np.asarray(image)).any(-1)
    assert (np.asarray(outlined)[changed] == CHOSEN).all()
    rows, columns = changed.nonzero()
    assert {rows.min(), columns.min()} == {CELL - 1}
    assert {rows.max(), columns.max()} == {2 * CELL}
    assert not changed[CELL + 3 : 2 * CELL - 3, CELL + 3 : 2 * CELL - 3].any()
    with pytest.raises(InputError, match="cell 9 is outside"):
        outline_token(image, (3, 3), 9)


def test_everything_kept_is_the_image_itself():
    image = noise(30, 30)
    assert draw_token_map(image, (3, 3), kept=range(9)).tobytes() == image.tobytes()


def test_cells_need_not_be_whole_pixels():
    drawn = np.asarray(draw_token_map(Image.new("RGB", (10, 7), "white"), (2, 3), kept=[1]))
    white = (drawn == 255).all(-1)
    assert white[:4, 3:7].all()
    assert white.sum() == 4 * 4


def test_the_heat_map_is_darkest_where_nothing_matters():
    image = Image.new("RGB", (4 * CELL, CELL), "gray")
    drawn = draw_heat_map(image, (1, 4), [0.0, 1.0, 2.0, 3.0])
    levels = [cell(drawn, 0, column).mean() for column in range(4)]
    assert levels == sorted(levels)
    assert levels[3] > levels[0] + 80


def test_constant_and_unjudged_importance():
    image = Image.new("RGB", (2 * CELL, CELL), "gray")
    same = draw_heat_map(image, (1, 2), [1.0, 1.0])
    assert (cell(same, 0, 0) == cell(same, 0, 1)).all()
    unjudged = cell(draw_heat_map(image, (1, 2), [float("nan"), 1.0]), 0, 0)
    assert (unjudged == unjudged[..., :1]).all()
    draw_heat_map(image, (1, 2), [float("nan")] * 2)


def test_the_normalisation_is_undone():
    image = noise(12, 8)
    pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (Processor.image_mean, Processor.image_std))
    assert seen_image((pixels - mean) / std, Processor()).tobytes() == image.tobytes()


def test_a_centre_crop_is_seen_as_such():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = noise(40, 60)
    processor = CLIPImageProcessorPil(
        do_resize=False, do_center_crop=True, crop_size={"height": 20, "width": 20}, return_tensors="pt"
    )
    pixels = processor(images=image, return_tensors="pt")["pixel_values"][0]
    assert seen_image(pixels, processor).tobytes() == image.crop((20, 10, 40, 30)).tobytes()


def test_small_images_are_enlarged_by_whole_factors():
    image = noise(24, 24)
    large = enlarge(image, (6, 6))
    assert large.size == (504, 504)
    assert enlarge(large, (6, 6)) is large
    assert enlarge(Image.new("RGB", (336, 336)), (24, 24)).width % 336 == 0


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda image: draw_token_map(image, (2, 2), [4]), "0 .. 3"),
        (lambda image: draw_token_map(image, (2, 2), [-1]), "0 .. 3"),
        (lambda image: draw_token_map(image, (2, 2), [0], [1]), "recovered"),
        (lambda image: draw_heat_map(image, (2, 2), [0.0]), "1 importance values"),
        (lambda image: seen_image(torch.zeros(1, 3, 4, 4), Processor()), "(1, 3, 4, 4)"),
    ],
)
def test_bad_input(call, part):
    with pytest.raises(InputError) as error:
        call(noise(8, 8))
    assert part in str(error.value)
