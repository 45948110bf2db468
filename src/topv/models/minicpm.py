"""MiniCPM-V 4.6: an overview of each image, and of a large one slices in detail, each between marks of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..errors import LayoutError
from ..layout import Picture
from .family import Family
from .runs import runs

__all__ = ["MiniCpmV"]


class MiniCpmV(Family):
    """`MiniCPMV4_6ForConditionalGeneration`, whose calls tell the patches of each crop in `target_sizes`."""

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture]:
        pictures = []
        for crops in self._crops(inputs, "target_sizes", self.image_ids, together=False):
            kinds = ["thumbnail", *["tile"] * (len(crops) - 1)] if len(crops) > 1 else ["image"]
            pictures.append(Picture.stacked([shape for shape, _ in crops], kinds))
        return pictures

    def videos(self, inputs: Mapping[str, Any]) -> Sequence[Picture]:
        return [
            Picture.stacked([shape for shape, _ in crops], ["frame" if whole else "tile" for _, whole in crops])
            for crops in self._crops(inputs, "target_sizes_videos", self.video_ids, together=True)
        ]

    def _stride(self, inputs: Mapping[str, Any]) -> int:
        """Patches that meet in one token, in height and in width."""
        mode = inputs.get("downsample_mode") or self.config.downsample_mode
        window: int = 1 if mode == "4x" else self.config.vision_config.window_kernel_size[0]
        merged: int = self.config.merge_kernel_size[0] ** self.config.merger_times
        return window * merged

    def _crops(
        self, inputs: Mapping[str, Any], name: str, ids: frozenset[int], *, together: bool
    ) -> list[list[tuple[tuple[int, int], bool]]]:
        """The crops of each picture: the shape of its grid, and whether it shows the whole image or frame.

        The call does not say which crops belong together, but the prompt does: the mark before its first crop opens
        an overview, and any other mark a slice of the image before. Where pictures go `together`, as frames do, an
        overview with nothing but marks before it goes on with the video.
        """
        sizes = inputs.get(name)
        if sizes is None:
            return []
        stride = self._stride(inputs)
        shapes = [(height // stride, width // stride) for height, width in torch.as_tensor(sizes).tolist()]
        crops = _crops_in(torch.as_tensor(inputs["input_ids"]).cpu(), ids)
        if [rows * columns for rows, columns in shapes] != [crop.length for crop in crops]:
            raise LayoutError(
                f"{name} tells of crops of {[rows * columns for rows, columns in shapes]} tokens, but the prompts hold "
                f"runs of {[crop.length for crop in crops]} placeholders. Build the inputs with the model's processor, "
                "with one downsample_mode for prompt and model, and without truncation."
            )
        pictures: list[list[tuple[tuple[int, int], bool]]] = []
        for shape, crop in zip(shapes, crops, strict=True):
            whole = crop.mark == crops[0].mark
            # Two marks, of the end of a crop and of the start of the next, part frames of one video.
            follows = crop.gap is not None and crop.gap <= 2
            if pictures and (not whole or (together and follows)):
                pictures[-1].append((shape, whole))
            else:
                pictures.append([(shape, whole)])
        return pictures


class _Crop(NamedTuple):
    """Where a crop stands: how many placeholders it takes, the token before it, and how far behind the crop before it
    starts; None where there is no such token or crop in the prompt."""

    length: int
    mark: int | None
    gap: int | None


def _crops_in(input_ids: torch.Tensor, ids: frozenset[int]) -> list[_Crop]:
    """The runs of the tokens `ids` in the prompts (B, T), row by row."""
    marks = torch.isin(input_ids, torch.tensor(sorted(ids), device=input_ids.device))
    found: list[_Crop] = []
    for row, own in zip(input_ids.tolist(), marks, strict=True):
        before: int | None = None
        for start, end in runs(own):
            gap = None if before is None else start - before
            found.append(_Crop(end - start, row[start - 1] if start else None, gap))
            before = end
    return found
