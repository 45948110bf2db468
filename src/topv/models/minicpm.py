"""MiniCPM-V 4.6: an overview of each image, and of a large one slices in detail, each between marks of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import LayoutError
from ..layout import Picture
from .family import Family

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
        runs = _runs(torch.as_tensor(inputs["input_ids"]).tolist(), ids)
        if [rows * columns for rows, columns in shapes] != [run.length for run in runs]:
            raise LayoutError(
                f"{name} tells of crops of {[rows * columns for rows, columns in shapes]} tokens, but the prompts hold "
                f"runs of {[run.length for run in runs]} placeholders. Build the inputs with the model's processor, "
                "with one downsample_mode for prompt and model, and without truncation."
            )
        pictures: list[list[tuple[tuple[int, int], bool]]] = []
        for shape, run in zip(shapes, runs, strict=True):
            whole = run.mark == runs[0].mark
            # Two marks, of the end of a crop and of the start of the next, part frames of one video.
            follows = run.gap is not None and run.gap <= 2
            if pictures and (not whole or (together and follows)):
                pictures[-1].append((shape, whole))
            else:
                pictures.append([(shape, whole)])
        return pictures


class _Run:
    """An unbroken run of placeholders: its length, the token before it, and how far behind the last run it starts."""

    def __init__(self, mark: int | None, gap: int | None) -> None:
        self.length = 0
        self.mark = mark
        self.gap = gap


def _runs(rows: Sequence[Sequence[int]], ids: frozenset[int]) -> list[_Run]:
    runs: list[_Run] = []
    for row in rows:
        end: int | None = None
        for at, token in enumerate(row):
            if token in ids:
                if end != at:
                    runs.append(_Run(row[at - 1] if at else None, None if end is None else at - end))
                runs[-1].length += 1
                end = at + 1
    return runs
