"""States of tiles, packed as LLaVA-NeXT and LLaVA-OneVision pack their features."""

from __future__ import annotations

import torch

from ...layout import Picture

__all__ = ["thumbnail_and_grid"]


def thumbnail_and_grid(
    states: torch.Tensor, picture: Picture, size: tuple[int, int], pinpoints: list[list[int]], edge: int
) -> list[torch.Tensor]:
    """The states of an image's thumbnail (n, D), and of its tiles put together (m, D) without what pads them.

    Args:
        states: (tiles, patches, D) without class tokens, the thumbnail first.
        picture: the image's two grids.
        size: height and width of the image.
        pinpoints: the sizes to which images are scaled.
        edge: height and width of a tile in pixels.
    """
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    down, across = get_anyres_image_grid_shape(size, pinpoints, edge)
    side = picture.parts[0].rows_and_columns[0]
    tiles = states[1 : 1 + down * across].view(down, across, side, side, -1)
    whole = unpad_image(tiles.permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3), size)
    shape = picture.parts[1].rows_and_columns
    if whole.shape[1:] != shape:
        # LLaVA-OneVision scales large images down.
        whole = torch.nn.functional.interpolate(whole[None], list(shape), mode="bilinear")[0]
    return [states[0], whole.flatten(1, 2).transpose(0, 1)]
