"""Llama 4: an image is one square tile, or rows of them and then the whole made smaller; some layers scale queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ..errors import LayoutError
from ..layout import Picture
from .decoder import Handle, ShortLayer
from .family import Family
from .runs import runs, tiled

__all__ = ["Llama4"]


class Llama4(Family):
    """`Llama4ForConditionalGeneration`. The token that ends an image tells one image's tiles from the next one's."""

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture]:
        ids = inputs["input_ids"].cpu()
        side = self._side
        pictures = []
        for row, marks in zip(ids.tolist(), self.placeholders(ids), strict=True):
            tiles = 0
            for start, end in runs(marks):
                if end - start != side**2:
                    raise LayoutError(
                        f"{end - start} image placeholder tokens stand in a row from column {start}, where a tile has "
                        f"{side} x {side}. Build the prompt with the model's processor, without truncation."
                    )
                tiles += 1
                if row[end : end + 1] == [self.config.eoi_token_index]:
                    pictures.append(tiled([(side, side)] * tiles))
                    tiles = 0
            if tiles:
                raise LayoutError(
                    f"no token {self.config.eoi_token_index} (eoi_token_index) ends the last image of a prompt. Build "
                    "it with the model's processor, without truncation."
                )
        return pictures

    def corrections(self, short: Callable[[int], ShortLayer | None]) -> Sequence[Handle]:
        """Layers without rotary positions scale queries by how far into the prompt they stand, counted in slots."""
        hooks = []
        for index, layer in enumerate(self.layers):
            attention: Any = layer.self_attn
            if attention.attn_temperature_tuning and not attention.use_rope:
                hook = partial(_rescale, attention, partial(short, index))
                hooks.append(attention.q_proj.register_forward_hook(hook))
        return hooks

    @property
    def _side(self) -> int:
        """Tokens along the side of a tile."""
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size * vision.pixel_shuffle_ratio)


def _rescale(
    attention: Any, short: Callable[[], ShortLayer | None], module: Any, args: Any, queries: torch.Tensor
) -> torch.Tensor | None:
    """Queries (B, Q, H d) that the layer's own scale will bring to the scale of their columns."""
    now = short()
    if now is None:
        return None
    # What the layer will ask its cache as well, a moment later.
    past = 0 if now.cache is None else now.cache.get_seq_length(attention.layer_idx)
    slots = torch.arange(queries.shape[1], device=queries.device) + past
    ratio = _scale(attention, now.queries(queries.device)) / _scale(attention, slots)
    return (queries * ratio.unsqueeze(2)).to(queries.dtype)


def _scale(attention: Any, positions: torch.Tensor) -> torch.Tensor:
    steps = torch.floor((positions.float() + 1.0) / attention.floor_scale)
    scale: torch.Tensor = torch.log1p(steps) * attention.attn_scale + 1.0
    return scale
