"""What is read for methods. New evidence is a field and a name here, and the place in the runtime that reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import unknown_name

__all__ = ["READINGS", "TARGETS", "Evidence"]

TARGETS = ("pre_norm", "attention", "post_norm", "mlp")
"""Where target tokens may be read in a decoder layer (the paper's positions 1 to 4): what enters the attention
module, what leaves it, what enters the MLP, what leaves it."""

READINGS: Mapping[str, str] = {
    "source": "source",
    **dict.fromkeys(TARGETS, "target"),
    # Of the last prompt token; the same, cut from the whole map; of the text tokens by `Method.raters`.
    **dict.fromkeys(("attention_row", "attention_map", "attention_raters"), "attention"),
    "text": "text",
    "encoder_source": "encoder_source",
    **{f"encoder_{target}": "encoder_target" for target in TARGETS},
    "encoder_weights": "encoder_attention",
}
"""What a method's `needs` may name, and the field of `Evidence` that holds it. What begins with "encoder_" is read in
the vision tower, the rest where tokens enter a decoder layer and inside it."""


@dataclass(frozen=True)
class Evidence:
    """What the runtime read for G grids of one shape, each with N visual tokens.

    Attributes:
        rows_and_columns: the grids' shape (h, w), h * w = N.
        coordinates: float32 (N, 2), each token's (row, column).
        images: for each grid its number among its sample's grids, so that a result need not depend on the batch.
        source: (G, N, D) visual tokens entering layer `layer - 1` (entering the decoder, where `layer` is 0), in the
            model's dtype, or None if not asked for.
        target: (G, N, D) the same tokens at the method's target position in that layer, or None.
        attention: float32 (G, N), the attention that the last prompt token, or the method's raters, pay to each visual
            token in that layer, averaged over heads, or None. 0 for tokens that an earlier pruning layer has dropped.
        encoder_source: (G, N, D') what enters the block of the vision tower whose output becomes visual tokens, pooled
            as the model pools its patches into tokens, or None.
        encoder_target: (G, N, D') the same at the method's target position in that block, or None.
        encoder_attention: float32 (G, N), the attention that each token's patches get in that block: from the class
            token where it has one, from all patches else; mean over heads and patches; or None.
        text: (G, M, D) the sample's text tokens where `source` is read, padded on the left with zeros, or None.
        text_mask: BoolTensor (G, M), false at padding, or None.
        previous: for each grid the number, among these G, of the grid in its place one frame earlier, -1 where there is
            none: in a video the frame before; among images the image before, of as many grids. None where unknown.
    """

    rows_and_columns: tuple[int, int]
    coordinates: torch.Tensor
    images: tuple[int, ...]
    source: torch.Tensor | None = None
    target: torch.Tensor | None = None
    attention: torch.Tensor | None = None
    encoder_source: torch.Tensor | None = None
    encoder_target: torch.Tensor | None = None
    encoder_attention: torch.Tensor | None = None
    text: torch.Tensor | None = None
    text_mask: torch.Tensor | None = None
    previous: tuple[int, ...] | None = None

    @classmethod
    def of_readings(
        cls,
        readings: Mapping[str, torch.Tensor | None],
        *,
        rows_and_columns: tuple[int, int],
        coordinates: torch.Tensor,
        images: tuple[int, ...],
        previous: tuple[int, ...] | None = None,
    ) -> Evidence:
        """The evidence of what was read, each piece in its field, so that a reader need not know the fields.

        Args:
            readings: what was read, by the names of `needs`, and "text_mask" beside "text"; None where it was not.
            rows_and_columns: as the attribute.
            coordinates: as the attribute.
            images: as the attribute.
            previous: as the attribute.

        Raises:
            ValueError: for an unknown name, or two readings of one field.
        """
        found: dict[str, Any] = {}
        owners: dict[str, str] = {}
        for name, value in readings.items():
            if name not in _FIELDS:
                raise unknown_name("reading", name, _FIELDS)
            if value is None:
                continue
            field = _FIELDS[name]
            if field in found:
                raise ValueError(
                    f"{owners[field]!r} and {name!r} are both read as evidence.{field}, of which there is one. Read "
                    "one of them."
                )
            found[field], owners[field] = value, name
        return cls(rows_and_columns, coordinates, images, **found, previous=previous)


_FIELDS = {**READINGS, "text_mask": "text_mask"}
