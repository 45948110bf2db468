"""Where the tokens that stay of an image are: each keeps the position that it has in the unpruned prompt.

vLLM numbers a prompt's tokens one after another, except where a model takes several position rows (M-RoPE): there it
asks the model, and asks again once an image is encoded. Pruned models of every family use that way. A chosen token
carries its place in the image as four more channels of its embedding, which are taken off before the decoder.

Rows of the positions (3, N) of families with one-dimensional positions:

    0   the position: what the decoder is given
    1   where the image begins, for a token of an image; else row 0
    2   where the image ends, for a token of an image, so that it differs from row 1; else row 0

and of families with M-RoPE: frame, row and column, as always.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .settings import TOKENS

__all__ = ["CHANNELS", "GridPositions", "LinearPositions", "write_places"]

CHANNELS = 4
_DIGIT = 128
"""Places are written in digits below this, which bfloat16 holds exactly."""
_HALF = _DIGIT * _DIGIT


def write_places(rows: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Embeddings (K, D) with two integers below 128^2 each: (K, D + 4)."""
    digits = [first // _DIGIT, first % _DIGIT, second // _DIGIT, second % _DIGIT]
    return torch.cat([rows, torch.stack(digits, dim=1).to(rows.dtype)], dim=1)


def _read_places(embeddings: Sequence[torch.Tensor], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    digits = torch.cat([rows[:, -CHANNELS:] for rows in embeddings]).to(device).long()
    return digits[:, 0] * _DIGIT + digits[:, 1], digits[:, 2] * _DIGIT + digits[:, 3]


def _in_window(marks: torch.Tensor, computed: int, count: int) -> torch.Tensor:
    """The columns of the next `count` marked tokens, from `computed` on."""
    columns = marks.nonzero().squeeze(1)
    return columns[columns >= computed][:count]


class LinearPositions:
    """For models whose tokens have one position each. Stands before a model class of vLLM."""

    supports_mrope = True
    supports_multimodal_pruning = True
    topv_last_position: int | None = None

    def forward(
        self,
        input_ids: Any,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Run the decoder on the first row of the positions (3, tokens)."""
        own = positions[0]
        if self.topv_last_position is not None:
            own = own.clamp(max=self.topv_last_position)
        return super().forward(  # type: ignore[misc]
            input_ids, own, intermediate_tensors, inputs_embeds, **kwargs
        )

    def topv_write(self, rows: torch.Tensor, kept: torch.Tensor, picture: Any) -> torch.Tensor:
        """An image's chosen rows with their places."""
        return write_places(rows[kept], kept // _HALF, kept % _HALF)

    def get_mrope_input_positions(self, input_tokens: Sequence[int], mm_features: Sequence[Any]) -> Any:
        """Positions (3, N) before images are encoded, and how far the next one is from N."""
        positions = torch.empty(3, len(input_tokens), dtype=torch.long)
        column = position = 0
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            place = feature.mm_position
            embeds = _embeds(place)
            first = place.offset + int(embeds[0])
            positions[:, column:first] = torch.arange(position, position + first - column)
            position += first - column
            column = first + len(embeds)
            whole = int(feature.data[TOKENS].data[0])
            positions[:, first:column] = torch.tensor([[position], [position], [position + whole]])
            position += whole
        positions[:, column:] = torch.arange(position, position + len(input_tokens) - column)
        return positions, _next(positions) - len(input_tokens)

    def recompute_mrope_positions(
        self,
        input_ids: Any,
        multimodal_embeddings: Sequence[torch.Tensor],
        mrope_positions: torch.Tensor,
        num_computed_tokens: int,
    ) -> Any:
        """The embeddings without their places, and the positions (3, N) with those of the tokens that they are for."""
        delta = _next(mrope_positions) - mrope_positions.shape[1]
        if not multimodal_embeddings:
            return [], mrope_positions, delta
        high, low = _read_places(multimodal_embeddings, mrope_positions.device)
        columns = _in_window(mrope_positions[1] != mrope_positions[2], num_computed_tokens, len(low))
        positions = mrope_positions.clone()
        positions[0, columns] = positions[1, columns] + (high * _HALF + low).to(positions.dtype)
        return [rows[:, :-CHANNELS] for rows in multimodal_embeddings], positions, delta


class GridPositions:
    """For models with M-RoPE. Stands before a model class of vLLM."""

    config: Any

    def topv_write(self, rows: torch.Tensor, kept: torch.Tensor, picture: Any) -> torch.Tensor:
        """An image's chosen rows with their places."""
        columns = picture.parts[0].rows_and_columns[1]
        return write_places(rows[kept], kept // columns, kept % columns)

    def get_mrope_input_positions(self, input_tokens: Sequence[int], mm_features: Sequence[Any]) -> Any:
        """Positions (3, N) before images are encoded, and how far the next one is from N."""
        merge = self.config.vision_config.spatial_merge_size
        positions = torch.empty(3, len(input_tokens), dtype=torch.long)
        column = position = 0
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            first, length = feature.mm_position.offset, feature.mm_position.length
            positions[:, column:first] = torch.arange(position, position + first - column)
            position += first - column
            column = first + length
            positions[:, first:column] = position
            _, height, width = feature.data["image_grid_thw"].data.tolist()
            position += max(height // merge, width // merge)
        positions[:, column:] = torch.arange(position, position + len(input_tokens) - column)
        return positions, int(positions.max()) + 1 - len(input_tokens)

    def recompute_mrope_positions(
        self,
        input_ids: Any,
        multimodal_embeddings: Sequence[torch.Tensor],
        mrope_positions: torch.Tensor,
        num_computed_tokens: int,
    ) -> Any:
        """The embeddings without their places, and the positions (3, N) with those of the tokens that they are for."""
        delta = int(mrope_positions.max()) + 1 - mrope_positions.shape[1]
        if not multimodal_embeddings:
            return [], mrope_positions, delta
        row, column = _read_places(multimodal_embeddings, mrope_positions.device)
        marks = torch.as_tensor(input_ids, device=mrope_positions.device) == self.config.image_token_id
        columns = _in_window(marks, num_computed_tokens, len(row))
        positions = mrope_positions.clone()
        positions[1, columns] = positions[0, columns] + row.to(positions.dtype)
        positions[2, columns] = positions[0, columns] + column.to(positions.dtype)
        return [rows[:, :-CHANNELS] for rows in multimodal_embeddings], positions, delta


def _embeds(place: Any) -> torch.Tensor:
    """Which of a placeholder's tokens an embedding stands in for, as offsets, one after another."""
    if place.is_embed is None:
        return torch.arange(place.length)
    return torch.as_tensor(place.is_embed).nonzero().squeeze(1)


def _next(positions: torch.Tensor) -> int:
    """The position behind a prompt, which may end in an image."""
    return max(int(positions[0].max()) + 1, int(positions[2].max()))
