"""LLaVA-NeXT and LLaVA-OneVision: a thumbnail, then all tiles as one grid whose rows end in a newline."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from ..errors import LayoutError
from ..layout import Part, Picture
from .family import Family
from .pictures import Pictures
from .squares import held
from .tower import without_class_token

__all__ = ["LlavaNext", "LlavaNextPictures", "LlavaNextVideo", "LlavaOnevision", "LlavaOnevisionPictures"]


class LlavaNextPictures(Pictures):
    """Where LLaVA-NeXT's visual tokens sit."""

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture] | None:
        if not held(inputs, "image", "pixel_values"):
            return []
        sizes = inputs.get("image_sizes")
        if sizes is None:
            raise LayoutError(
                "images came without image_sizes, which their grids follow. Pass what the processor gave."
            )
        return [self._tiled((int(height), int(width))) for height, width in torch.as_tensor(sizes).tolist()]

    @property
    def _side(self) -> int:
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size)

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns that are left of an image's tiles when what pads them is cut off."""
        # The model's own arithmetic, on a tensor without contents, so that roundings agree.
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

        pinpoints = [list(pinpoint) for pinpoint in self.config.image_grid_pinpoints]
        down, across = get_anyres_image_grid_shape(size, pinpoints, self.config.vision_config.image_size)
        cells = torch.empty(1, down * self._side, across * self._side, device="meta")
        _, rows, columns = unpad_image(cells, size).shape
        return rows, columns

    def _tiled(self, size: tuple[int, int]) -> Picture:
        """An image of this height and width, as thumbnail and tiles."""
        base = self._side**2
        rows, columns = self._grid(size)
        positions = base + torch.arange(rows * (columns + 1), device="cpu").view(rows, columns + 1)[:, :-1].flatten()
        thumbnail = Part(torch.arange(base, device="cpu"), (self._side, self._side), "thumbnail")
        return Picture(base + rows * (columns + 1), (thumbnail, Part(positions, (rows, columns))))


class LlavaNextVideoPictures(LlavaNextPictures):
    """Where LLaVA-NeXT-Video's visual tokens sit: frames are pooled, and stand one after another."""

    newlines = 0
    """Placeholders behind a video's last frame."""

    def videos(self, inputs: Mapping[str, Any]) -> Sequence[Picture] | None:
        side = self._frame_side
        pixels = inputs.get("pixel_values_videos")
        if pixels is not None:
            counts = [pixels.shape[1]] * pixels.shape[0]
        else:
            encoded = (inputs.get("mm_encoder_outputs") or {}).get("video")
            counts = [] if encoded is None else [len(video) // side**2 for video in encoded.pooler_output]
        videos = [Picture.stacked([(side, side)] * frames, ["frame"] * frames) for frames in counts]
        return [Picture(video.tokens + self.newlines, video.parts) for video in videos]

    @property
    def _frame_side(self) -> int:
        return int(self._side // self.config.spatial_pool_stride)


class LlavaOnevisionPictures(LlavaNextVideoPictures):
    """Where LLaVA-OneVision's visual tokens sit: large images are scaled down again, and several in one sample are not
    tiled."""

    newlines = 1

    def images(self, inputs: Mapping[str, Any]) -> Sequence[Picture] | None:
        pictures = super().images(inputs)
        per_sample = inputs.get("batch_num_images")
        if not pictures or per_sample is None:
            return pictures
        alone = [count == 1 for count in torch.as_tensor(per_sample).tolist() for _ in range(count)]
        whole = Picture.filled((self._side, self._side))
        whole = Picture(whole.tokens + self.newlines, whole.parts)
        return [picture if tiled else whole for picture, tiled in zip(pictures, alone, strict=True)]

    @property
    def _frame_side(self) -> int:
        return math.ceil(self._side / 2)

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        rows, columns = super()._grid(size)
        most = int(self.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * columns / (most * self._side**2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


class LlavaNext(LlavaNextPictures, Family):
    """`LlavaNextForConditionalGeneration`."""

    def pool_tower(self, kind: str, states: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        if kind != "image":
            return super().pool_tower(kind, states, inputs)
        strategy = inputs.get("vision_feature_select_strategy") or self.config.vision_feature_select_strategy
        patches, pack = without_class_token(states, strategy), cast(Any, self.multimodal).pack_image_features
        pictures = [int(count) for count in self._tiles_of(inputs)]
        options: dict[str, Any] = {"image_newline": patches.new_zeros(patches.shape[-1])}
        accepted = inspect.signature(pack).parameters
        known = {
            "vision_feature_select_strategy": strategy,
            "vision_aspect_ratio": inputs.get("vision_aspect_ratio") or getattr(self.config, "vision_aspect_ratio", ""),
        }
        options |= {name: value for name, value in known.items() if name in accepted}
        packed, _ = pack(patches.split(pictures), inputs["image_sizes"], **options)
        return torch.cat(list(packed))

    def _tiles_of(self, inputs: Mapping[str, Any]) -> Sequence[int]:
        """How many tiles the tower is given of each image, the thumbnail included."""
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        edge = self.config.vision_config.image_size
        return [image_size_to_num_patches(s, self.config.image_grid_pinpoints, edge) for s in inputs["image_sizes"]]


class LlavaNextVideo(LlavaNextVideoPictures, LlavaNext):
    """`LlavaNextVideoForConditionalGeneration`."""


class LlavaOnevision(LlavaOnevisionPictures, LlavaNextVideo):
    """`LlavaOnevisionForConditionalGeneration`."""

    def _tiles_of(self, inputs: Mapping[str, Any]) -> Sequence[int]:
        counts, per_sample = super()._tiles_of(inputs), inputs.get("batch_num_images")
        if per_sample is None:
            return counts
        alone = [count == 1 for count in torch.as_tensor(per_sample).tolist() for _ in range(count)]
        return [count if tiled else 1 for count, tiled in zip(counts, alone, strict=True)]
