"""LFM2-VL: an image is one grid of its own shape, or square tiles and then the whole in a grid of its own shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import LayoutError
from ..layout import Picture
from .family import Family
from .runs import runs, tiled

__all__ = ["Lfm2Vl"]


class Lfm2Vl(Family):
    """`Lfm2VlForConditionalGeneration` and `Lfm2VlModel`.

    The call holds the shape of every grid, but not which belong to one image. Between the grids of one image stands
    one token, which says what follows; between images stand at least two, which end the one and start the other.
    Where the processor was told to leave such tokens out, images that touch count as one. Of several grids the last
    is taken to be the whole, which the processor can leave out, too.
    """

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture]:
        if inputs.get("spatial_shapes") is None:
            raise LayoutError("images came without spatial_shapes. Pass all that the processor returned.")
        factor = self.config.downsample_factor
        shapes = [(-(-h // factor), -(-w // factor)) for h, w in torch.as_tensor(inputs["spatial_shapes"]).tolist()]
        ids = inputs["input_ids"].cpu()
        grids: list[list[tuple[int, int]]] = []
        at = 0
        for marks in self.placeholders(ids):
            before = None
            for start, end in runs(marks):
                if before is None or start - before > 1:
                    grids.append([])
                before, room = end, end - start
                while room > 0 and at < len(shapes):
                    grids[-1].append(shapes[at])
                    room -= shapes[at][0] * shapes[at][1]
                    at += 1
                if room:
                    raise LayoutError(
                        f"{end - start} image placeholder tokens stand in a row from column {start}, which is not the "
                        f"size of grids of the {len(shapes)} that came in spatial_shapes. Build the prompt with the "
                        "model's processor, without truncation."
                    )
        if at < len(shapes):
            raise LayoutError(
                f"the prompt has placeholders for {at} grids, but {len(shapes)} came in spatial_shapes. Build the "
                "prompt with the model's processor, without truncation."
            )
        return [tiled(own) for own in grids]
