"""Models that take patches of pictures with a (frames, height, width) grid of them each, as Qwen's do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import LayoutError
from ..layout import Part, Picture
from .family import Family
from .pictures import Pictures
from .tower import merged_patches

__all__ = ["ChunkedVideos", "CompressedVideos", "PatchGrids", "PatchPictures"]


class PatchPictures(Pictures):
    """Where visual tokens sit when a call carries `image_grid_thw` and `video_grid_thw`.

    Towers that look at the patches in the order of windows put the tokens back into raster order themselves.
    """

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture]:
        return [self._picture(grid, "image") for grid in self._grids(inputs, "image")]

    def videos(self, inputs: Mapping[str, Any]) -> Sequence[Picture]:
        return [self._picture(grid, "frame") for grid in self._grids(inputs, "video")]

    @property
    def merge(self) -> tuple[int, int]:
        """Patches that meet in one token, in height and in width."""
        size: int = self.config.vision_config.spatial_merge_size
        return size, size

    def _picture(self, grid: Sequence[int], kind: str) -> Picture:
        frames, height, width = grid
        shape = (height // self.merge[0], width // self.merge[1])
        return Picture.stacked([shape] * frames, ["frame" if frames > 1 else kind] * frames)

    def _grids(self, inputs: Mapping[str, Any], kind: str) -> list[list[int]]:
        """The rows of patches per frame, row and column that a call holds for its images or videos."""
        grids = inputs.get(f"{kind}_grid_thw")
        if grids is not None:
            rows: list[list[int]] = torch.as_tensor(grids).tolist()
            return rows
        encoded = inputs.get("mm_encoder_outputs") or {}
        pixels = "pixel_values" if kind == "image" else "pixel_values_videos"
        if inputs.get(pixels) is not None or encoded.get(kind) is not None:
            raise LayoutError(
                f"the {kind}s of this call came without {kind}_grid_thw, so the shapes of their grids are not known. "
                "Pass all that the processor returned."
            )
        return []


class PatchGrids(PatchPictures, Family):
    """Qwen-VL from 2 to 3.5, and others whose call carries such grids."""

    def pool_tower(self, kind: str, states: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        tower = getattr(self.multimodal, "visual", None)
        grids = inputs.get(f"{kind}_grid_thw")
        if tower is None or grids is None or self.merge[0] != self.merge[1] or not _merges_in_order(tower):
            return super().pool_tower(kind, states, inputs)
        return merged_patches(tower, states.flatten(0, -2), self.merge[0], torch.as_tensor(grids).cpu())


class CompressedVideos(PatchGrids):
    """VideoLLaMA 3: pictures say how many patches merge, and videos which tokens of a frame are left out."""

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture]:
        return self._merged(inputs, "image")

    def videos(self, inputs: Mapping[str, Any]) -> Sequence[Picture]:
        kept = inputs.get("video_compression_mask")
        pictures = self._merged(inputs, "video")
        if kept is None:
            return pictures
        masks = torch.as_tensor(kept).bool().cpu()
        if masks.numel() != (needed := sum(picture.tokens for picture in pictures)):
            raise LayoutError(
                f"video_compression_mask tells of {masks.numel()} tokens, but the grids have {needed}. "
                "Pass both as the processor returned them."
            )
        return [
            _kept(picture, mask)
            for picture, mask in zip(pictures, masks.split([picture.tokens for picture in pictures]), strict=True)
        ]

    def _merged(self, inputs: Mapping[str, Any], kind: str) -> list[Picture]:
        grids = self._grids(inputs, kind)
        sizes = inputs.get(f"{kind}_merge_sizes")
        if grids and sizes is None:
            raise LayoutError(f"the call lacks {kind}_merge_sizes. Pass all that the processor returned.")
        pictures = []
        for (frames, height, width), size in zip(grids, torch.as_tensor(sizes).tolist() if grids else [], strict=True):
            kinds = ["frame" if kind == "video" or frames > 1 else "image"] * frames
            pictures.append(Picture.stacked([(height // size, width // size)] * frames, kinds))
        return pictures


def _merges_in_order(tower: Any) -> bool:
    """Whether the patches that meet in a token stand side by side, as Qwen's processors put them."""
    return type(tower).__name__.startswith("Qwen") and hasattr(tower, "spatial_merge_size")


def _kept(picture: Picture, mask: torch.Tensor) -> Picture:
    """A video without the tokens that `mask` leaves out; what stays of a frame with gaps has no place."""
    position = mask.cumsum(0) - 1
    parts = []
    for part in picture.parts:
        own = part.positions[mask[part.positions]]
        if len(own) == len(part.positions):
            parts.append(Part(position[own], part.rows_and_columns, part.kind))
        elif len(own):
            parts.append(Part(position[own], (1, len(own)), part.kind, spatial=False))
    return Picture(int(mask.sum()), tuple(parts))


class ChunkedVideos(PatchGrids):
    """Kimi K2.5: all frames of a row of the grids, which in videos is a chunk of a few frames, share their tokens."""

    @property
    def merge(self) -> tuple[int, int]:
        height, width = self.config.vision_config.merge_kernel_size
        return height, width

    def _picture(self, grid: Sequence[int], kind: str) -> Picture:
        return super()._picture([1, *grid[1:]], kind)
