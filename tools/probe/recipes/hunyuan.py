"""Tencent's architectures, whose images have a placeholder for the end of each row."""

from __future__ import annotations

from typing import Any

import torch

from ..recipe import Recipe
from .glm import EXPERTS, LATENT, PLAIN_TOWER
from .patch_grids import DECODER, PatchGridRecipe

__all__ = ["RECIPES"]


class HunYuanVL(PatchGridRecipe):
    """An image's placeholders also stand for a start, for the end of each row, and for an end."""

    model_type = "hunyuan_vl"
    video = False
    frames_per_patch = 1

    def config(self) -> Any:
        from transformers import HunYuanVLConfig

        rope = {
            "rope_type": "dynamic",
            "rope_theta": 10000.0,
            "factor": 1.0,
            "alpha": 4.0,
            "mrope_section": [1, 1, 1, 1],
        }
        text = DECODER | {"head_dim": 8, "rope_parameters": rope}
        vision = PLAIN_TOWER | {"max_image_size": 64, "out_hidden_size": 32}
        ids = {
            "image_token_id": self.image_id,
            "im_start_id": self.start[0],
            "im_end_id": self.end[0],
            "im_newline_id": 9,
        }
        return HunYuanVLConfig(text_config=text, vision_config=vision, **ids)

    def randomise(self, model: Any) -> None:
        super().randomise(model)
        merger = model.model.vision_tower.patch_merger
        with torch.no_grad():
            for vector in (merger.image_begin, merger.image_end, merger.image_newline, merger.image_sep):
                vector.normal_(0, 0.25)

    def tokens(self, kind: str) -> list[int]:
        _, height, width = self.grids[kind]
        return [*self.start, *[self.image_id] * (height // 2 * (width // 2 + 1) + 2), *self.end]


class HyV4Vl(PatchGridRecipe):
    """Each frame's rows end in a placeholder; layers carry several residual streams and attend to the best keys."""

    model_type = "hy_v4_vl"
    frames_per_patch = 1

    def config(self) -> Any:
        from transformers import HYV4VLConfig

        # With few heads scores tie at zero, and which of equal keys is chosen is nobody's to say.
        sparse = {"index_topk": 16, "index_head_dim": 8, "index_n_heads": 16, "qk_rope_head_dim": 8}
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        # The first, the second and the last layer choose keys for themselves.
        layers = {"indexer_types": ["full", "full", "full", "shared", "full"], "hc_mult": 2}
        text = DECODER | LATENT | EXPERTS | sparse | layers | {"rope_parameters": rope}
        vision = PLAIN_TOWER | {"max_image_size": 64, "out_hidden_size": 32}
        return HYV4VLConfig(
            text_config=text, vision_config=vision, image_token_id=self.image_id, video_token_id=self.video_id
        )

    def tokens(self, kind: str) -> list[int]:
        frames, height, width = self.grids[kind]
        own = self.video_id if kind == "video" else self.image_id
        return [*self.start, *[own] * (frames * (height // 2) * (width // 2 + 1)), *self.end]


RECIPES: tuple[Recipe, ...] = (HunYuanVL(), HyV4Vl())
