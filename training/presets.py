"""The models that can be trained and how: presets for two processor cores and for an accelerator."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from topv.scenes import Geometry, Tiles, View

__all__ = ["PRESETS", "Preset", "get_preset"]


@dataclass(frozen=True)
class Preset:
    """Sizes and schedule of one training.

    ``tiles`` is the number of tiles along each side of an image, 1 for an image shown whole.
    Times are shares: ``tower_share`` of the minutes given go to the vision tower alone. ``answer_tokens`` is
    the room for questions and answers behind each image, ``pages`` the number of pages of letters and diagrams that
    only the tower learns from in each step.
    ``compiled`` layers, where there is a C++ compiler, take about a minute to compile in a run and shorten every step.
    """

    name: str
    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_mlp: int
    text_width: int
    text_layers: int
    text_heads: int
    text_kv_heads: int
    text_mlp: int
    tower_batch: int
    joint_batch: int
    answer_tokens: int
    pages: int
    tower_share: float
    reading_share: float
    tower_rate: float
    text_rate: float
    joint_tower_rate: float
    workers: int
    warmup_steps: int = 100
    weight_decay: float = 0.03
    average: float = 0.99
    tiles: int = 1
    device: str = "cpu"
    compiled: bool = False

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.image_size, self.patch_size)

    @property
    def view(self) -> View:
        return View(self.geometry) if self.tiles == 1 else Tiles(self.geometry, self.tiles)

    def continued(self) -> Preset:
        """The schedule for going on from trained weights.

        Half the rates once everything is trained together, and half the time for the tower alone.
        """
        return replace(
            self,
            tower_share=self.tower_share / 2,
            reading_share=self.tower_share / 2,
            text_rate=self.text_rate / 2,
            joint_tower_rate=self.joint_tower_rate / 2,
        )

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


PRESETS = {
    "cpu": Preset(
        name="cpu", image_size=168, patch_size=14,
        vision_width=256, vision_layers=6, vision_heads=4, vision_mlp=768,
        text_width=256, text_layers=12, text_heads=4, text_kv_heads=2, text_mlp=512,
        tower_batch=24, joint_batch=16, answer_tokens=192, pages=12, tower_share=0.2, reading_share=0.35,
        tower_rate=1e-3, text_rate=2e-3, joint_tower_rate=1e-3, workers=2, compiled=True,
    ),
    "accelerator": Preset(
        name="accelerator", image_size=336, patch_size=14,
        vision_width=256, vision_layers=5, vision_heads=4, vision_mlp=768,
        text_width=256, text_layers=24, text_heads=4, text_kv_heads=2, text_mlp=384,
        tower_batch=256, joint_batch=128, answer_tokens=256, pages=64, tower_share=0.2, reading_share=0.35,
        tower_rate=1e-3, text_rate=2e-3, joint_tower_rate=1e-3, workers=14, device="cuda",
    ),
    "tiled": Preset(
        name="tiled", image_size=224, patch_size=14, tiles=2,
        vision_width=256, vision_layers=6, vision_heads=4, vision_mlp=768,
        text_width=256, text_layers=12, text_heads=4, text_kv_heads=2, text_mlp=512,
        tower_batch=12, joint_batch=16, answer_tokens=192, pages=6, tower_share=0.2, reading_share=0.35,
        tower_rate=1e-3, text_rate=2e-3, joint_tower_rate=1e-3, workers=2, compiled=True,
    ),
    "tiled-accelerator": Preset(
        name="tiled-accelerator", image_size=448, patch_size=14, tiles=2,
        vision_width=256, vision_layers=5, vision_heads=4, vision_mlp=768,
        text_width=256, text_layers=24, text_heads=4, text_kv_heads=2, text_mlp=384,
        tower_batch=128, joint_batch=128, answer_tokens=256, pages=32, tower_share=0.2, reading_share=0.35,
        tower_rate=1e-3, text_rate=2e-3, joint_tower_rate=1e-3, workers=14, device="cuda",
    ),
    "tiny": Preset(
        name="tiny", image_size=168, patch_size=14,
        vision_width=32, vision_layers=1, vision_heads=2, vision_mlp=32,
        text_width=32, text_layers=2, text_heads=2, text_kv_heads=1, text_mlp=32,
        tower_batch=2, joint_batch=2, answer_tokens=96, pages=2, tower_share=0.3, reading_share=0.6,
        tower_rate=1e-3, text_rate=2e-3, joint_tower_rate=1e-3, workers=1, warmup_steps=2,
    ),
    "tiny-tiled": Preset(
        name="tiny-tiled", image_size=168, patch_size=14, tiles=2,
        vision_width=32, vision_layers=1, vision_heads=2, vision_mlp=32,
        text_width=32, text_layers=2, text_heads=2, text_kv_heads=1, text_mlp=32,
        tower_batch=2, joint_batch=2, answer_tokens=96, pages=2, tower_share=0.3, reading_share=0.6,
        tower_rate=1e-3, text_rate=2e-3, joint_tower_rate=1e-3, workers=1, warmup_steps=2,
    ),
}  # fmt: skip
"""The tiny ones are for tests: they run every line of the trainer in seconds and learn nothing."""


def get_preset(name: str) -> Preset:
    """A preset by name."""
    if name not in PRESETS:
        raise ValueError(f"Unknown preset {name!r}; expected one of {', '.join(PRESETS)}.")
    return PRESETS[name]
