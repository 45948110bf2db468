"""How processors pack pictures of several sizes: patches in a row, patches in a padded list, tiles by sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ..recipe import Pictures, Recipe, takes

__all__ = [
    "AUDIO",
    "BOS_IMAGE",
    "BREAK",
    "EOS_IMAGE",
    "IMAGE",
    "SECOND",
    "VIDEO",
    "GridRecipe",
    "NestedRecipe",
    "PatchedRecipe",
    "token_types",
]

BOS_IMAGE, IMAGE, EOS_IMAGE, VIDEO, AUDIO = 5, 6, 7, 8, 9
BREAK, SECOND = 10, 11
"""Ids of the placeholders and of what stands around and between them."""


def token_types(input_ids: torch.Tensor) -> torch.Tensor:
    """1 for a token of an image, 2 for one of a video, 0 for text: int64 (B, T)."""
    return (input_ids == IMAGE).long() + 2 * (input_ids == VIDEO).long()


class GridRecipe(Recipe):
    """For models that take the patches of all pictures in a row, and each picture's size (frames, down, across).

    Attributes:
        grids: patches of a picture of each kind; those of a video are counted in pairs of frames.
        merge: patches along the side of one token.
        patch_numbers: numbers that the model takes of one patch.
        image_ends: ids before and after an image's tokens.
        video_ends: ids before and after a video's.
        before_frame, after_frame: ids before each frame's tokens, and between one frame's and the next's.
    """

    wide = True
    video = True
    grids: ClassVar[dict[str, tuple[int, int, int]]] = {"image": (1, 8, 6), "wide": (1, 6, 12), "video": (2, 6, 8)}
    merge: int = 2
    patch_numbers: int = 2 * 3 * 4 * 4
    image_ends: tuple[tuple[int, ...], tuple[int, ...]] = ((BOS_IMAGE,), (EOS_IMAGE,))
    video_ends: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    before_frame: tuple[int, ...] = ()
    after_frame: tuple[int, ...] = ()

    def picture_tokens(self, kind: str) -> list[int]:
        """The ids that stand for a picture in the prompt."""
        frames, rows, columns = self.grids[kind]
        count = rows * columns // self.merge**2
        if kind != "video":
            return [*self.image_ends[0], *[IMAGE] * count, *self.image_ends[1]]
        frame = [*self.before_frame, *[VIDEO] * count]
        ids = frame + [*self.after_frame, *frame] * (frames - 1)
        return [*self.video_ends[0], *ids, *self.video_ends[1]]

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        inputs: dict[str, Any] = {}
        for pixels, grid, video in (
            ("pixel_values", "image_grid_thw", False),
            ("pixel_values_videos", "video_grid_thw", True),
        ):
            own = [self.grids[kind] for kind in kinds if (kind == "video") == video]
            if own:
                inputs[grid] = torch.tensor(own)
                inputs[pixels] = torch.randn(int(inputs[grid].prod(1).sum()), self.patch_numbers, generator=generator)
        return Pictures(inputs, [self.picture_tokens(kind) for kind in kinds])


class PatchedRecipe(Recipe):
    """For models that take each picture's patches in a padded list and, beside it, their places (column, row).

    Attributes:
        patch: side of a patch in pixels.
        pool: patches along the side of one token.
        pooled: whether the model pools, or takes patches that already cover a whole token.
        grids: tokens down and across, of a picture of each kind.
        frames: frames of a video.
    """

    wide = True
    video = True
    patch: int = 4
    pool: int = 2
    pooled: bool = True
    grids: ClassVar[dict[str, tuple[int, int]]] = {"image": (4, 4), "wide": (3, 7), "video": (3, 4)}
    frames: int = 2

    def _patches(
        self, kinds: Sequence[str], generator: torch.Generator, frames: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        side = self.pool if self.pooled else 1
        width = 3 * (self.patch * self.pool // side) ** 2
        most = max(rows * columns for rows, columns in self.grids.values()) * side**2
        pixels = torch.zeros(len(kinds) * frames, most, width)
        places = torch.full((len(kinds) * frames, most, 2), -1)
        for at in range(len(kinds) * frames):
            rows, columns = (side * size for size in self.grids[kinds[at // frames]])
            count = rows * columns
            pixels[at, :count] = torch.rand(count, width, generator=generator)
            cells = torch.arange(count)
            places[at, :count] = torch.stack([cells % columns, cells // columns], dim=1)
        return pixels, places

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        inputs: dict[str, Any] = {}
        images = [kind for kind in kinds if kind != "video"]
        videos = [kind for kind in kinds if kind == "video"]
        if images:
            inputs["pixel_values"], inputs["image_position_ids"] = self._patches(images, generator, 1)
        if videos:
            pixels, places = self._patches(videos, generator, self.frames)
            inputs["pixel_values_videos"], inputs["video_position_ids"] = pixels, places
            if takes(model, "num_frames_per_video"):
                inputs["num_frames_per_video"] = torch.full((len(videos),), self.frames)
            else:
                # Older releases of transformers stack videos of equally many frames.
                for name in ("pixel_values_videos", "video_position_ids"):
                    inputs[name] = inputs[name].unflatten(0, (len(videos), self.frames))
        tokens = []
        for kind in kinds:
            rows, columns = self.grids[kind]
            if kind == "video":
                # The time of each frame is text between them.
                tokens.append([40, 41, BOS_IMAGE, *[VIDEO] * (rows * columns), EOS_IMAGE] * self.frames)
            else:
                tokens.append([BOS_IMAGE, *[IMAGE] * (rows * columns), EOS_IMAGE])
        return Pictures(inputs, tokens)

    def extra(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"mm_token_type_ids": token_types(inputs["input_ids"])}


class NestedRecipe(Recipe):
    """For models that take pixels as samples x tiles x channels x height x width, padded with empty tiles.

    Attributes:
        side: height and width of a tile.
        tiles: how many tiles a picture of each kind comes in.
        masks: name under which the model takes which pixels are real, if it does.
    """

    side: int = 24
    tiles: ClassVar[dict[str, int]]
    masks: str | None = "pixel_attention_mask"

    def picture_tokens(self, kind: str) -> list[int]:
        """The ids that stand for a picture in the prompt."""
        raise NotImplementedError

    def pictures(self, model: Any, kinds: Sequence[str], generator: torch.Generator) -> Pictures:
        count = sum(self.tiles[kind] for kind in kinds)
        pixels = torch.randn(count, 3, self.side, self.side, generator=generator)
        return Pictures({"pixel_values": pixels}, [self.picture_tokens(kind) for kind in kinds])

    def prompt(self, model: Any, samples: Sequence[Sequence[int | str]], *, seed: int = 0) -> dict[str, Any]:
        inputs = super().prompt(model, samples, seed=seed)
        if "pixel_values" not in inputs:
            return inputs
        pixels = inputs["pixel_values"]
        counts = [sum(self.tiles[part] for part in sample if isinstance(part, str)) for sample in samples]
        nested = pixels.new_zeros(len(samples), max(counts), *pixels.shape[1:])
        masks = torch.zeros(len(samples), max(counts), *pixels.shape[2:], dtype=torch.long)
        for at, (count, own) in enumerate(zip(counts, pixels.split(counts), strict=True)):
            nested[at, :count] = own
            masks[at, :count] = 1
        return inputs | {"pixel_values": nested} | ({self.masks: masks} if self.masks else {})
