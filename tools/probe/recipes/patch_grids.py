"""What recipes share whose images come as rows of patches with a (frames, height, width) grid each: Qwen's way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..recipe import VOCABULARY, Pictures, Recipe

__all__ = ["DECODER", "MOE", "ROPE", "VISION", "PatchGridRecipe"]

DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
"""The decoder of every recipe here, but for its rotary positions."""

MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
"""A mixture of experts in place of an MLP."""

ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
"""Rotary positions of frame, row and column, for heads of width 8."""

VISION: dict[str, Any] = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 4}
"""A vision tower with 2 x 2 merging."""


class PatchGridRecipe(Recipe):
    """For models that take patches and a (frames, height, width) grid of patches per picture.

    Attributes:
        grids: the grid of patches of each kind of picture.
        merge: patches that meet in a token, in height and in width.
        patch, frames_per_patch: a patch's side, and the frames that it spans.
        start, end: ids around an image's placeholders and around a video's.
        time: ids that a video's processor writes before each of its frames, which `start` and `end` then enclose;
            None where all frames stand between one `start` and one `end`.
        image_id, video_id: the placeholders.
    """

    wide = True
    video = True
    grids: Mapping[str, tuple[int, int, int]] = {"image": (1, 8, 8), "wide": (1, 6, 14), "video": (3, 4, 6)}
    merge: int = 2
    patch: int = 4
    frames_per_patch: int = 2
    start: tuple[int, ...] = (7,)
    end: tuple[int, ...] = (8,)
    time: tuple[int, ...] | None = None
    image_id: int = 5
    video_id: int = 6

    @property
    def ids(self) -> dict[str, int]:
        """The special ids as most configurations name them."""
        return {
            "image_token_id": self.image_id,
            "video_token_id": self.video_id,
            "vision_start_token_id": self.start[-1],
            "vision_end_token_id": self.end[0],
        }

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        inputs: dict[str, Any] = {}
        for is_video, suffix in ((False, ""), (True, "_videos")):
            grids = [grid for kind in kinds if (kind == "video") == is_video for grid in self.rows(kind)]
            if grids:
                inputs[f"pixel_values{suffix}"] = self.pixels(grids, is_video, generator)
                inputs["video_grid_thw" if is_video else "image_grid_thw"] = torch.tensor(grids)
                inputs |= self.along(grids, is_video)
        return Pictures(inputs, [self.tokens(kind) for kind in kinds])

    def rows(self, kind: str) -> list[tuple[int, int, int]]:
        """The rows of the argument with the grids that tell of one picture."""
        return [self.grids[kind]]

    def pixels(self, grids: Sequence[tuple[int, int, int]], is_video: bool, generator: torch.Generator) -> torch.Tensor:
        """The patches of all pictures one after another."""
        patches = sum(frames * height * width for frames, height, width in grids)
        return torch.randn(patches, 3 * self.frames_per_patch * self.patch**2, generator=generator)

    def along(self, grids: Sequence[tuple[int, int, int]], is_video: bool) -> dict[str, Any]:
        """What else comes with the pictures."""
        return {}

    def tokens(self, kind: str) -> list[int]:
        """The ids that stand for a picture in the prompt."""
        frames, height, width = self.grids[kind]
        frame = [self.video_id if kind == "video" else self.image_id] * (height * width // self.merge**2)
        if kind == "video" and self.time is not None:
            return frames * [*self.time, *self.start, *frame, *self.end]
        return [*self.start, *frames * frame, *self.end]

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        ids = inputs["input_ids"]
        return {"mm_token_type_ids": (ids == self.image_id).int() + 2 * (ids == self.video_id).int()}
