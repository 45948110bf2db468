"""What a preset is: a model's shapes, and the picture that its prompt holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import InputError

__all__ = ["Picture", "Preset"]


@dataclass(frozen=True)
class Picture:
    """The picture in a sample's prompt, as the model's processor would cut it.

    Attributes:
        kind: "square" where every picture is scaled to one size, "tiles" for tiles and a thumbnail, "patches" where the
            number of patches follows the picture's size.
        pixels: height and width, of a tile where there are tiles.
        tiles: number of tiles, the thumbnail not counted.
    """

    kind: str
    pixels: tuple[int, int]
    tiles: int = 1

    @property
    def views(self) -> int:
        """Tiles and the thumbnail that goes with more than one."""
        return self.tiles + (self.tiles > 1)


@dataclass(frozen=True)
class Preset:
    """A model's shapes, and the picture that its prompt holds.

    Attributes:
        name: its name on the command line.
        config: makes the transformers configuration, given the number of decoder layers or None for the model's own.
        picture: the picture of a sample unless another one is asked for.
        parameters: the published number of parameters; None for models that nobody published.
    """

    name: str
    config: Callable[[int | None], Any]
    picture: Picture
    parameters: int | None = None

    def with_picture(self, *, tiles: int | None = None, pixels: tuple[int, int] | None = None) -> Picture:
        """The preset's picture in another size.

        Args:
            tiles: number of tiles, the thumbnail not counted.
            pixels: height and width.

        Raises:
            InputError: when the model's processor would not cut a picture so.
        """
        own = self.picture
        if tiles is not None and own.kind != "tiles":
            raise InputError(f"tiles={tiles}: {self.name} cuts no tiles; the InternVL2 presets do.")
        if tiles is not None and tiles < 1:
            raise InputError(f"tiles={tiles}: expected at least 1.")
        if pixels is not None and own.kind != "patches":
            raise InputError(
                f"a picture of {pixels[0]} x {pixels[1]} pixels: {self.name} scales every picture to "
                f"{own.pixels[0]} x {own.pixels[1]}; the Qwen presets take them as they are."
            )
        if pixels is not None:
            vision = self.config(None).vision_config
            step = vision.patch_size * vision.spatial_merge_size
            if min(pixels) < step or any(side % step for side in pixels):
                raise InputError(
                    f"a picture of {pixels[0]} x {pixels[1]} pixels: {self.name} rounds sides to multiples of {step}, "
                    f"so expected such, for example {step * 24} x {step * 24}."
                )
        return Picture(own.kind, pixels or own.pixels, tiles or own.tiles)
