"""The fonts that scenes are written in: subsets that travel with the package, never the system's."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

__all__ = ["HELD_OUT_FONTS", "TRAIN_FONTS", "cap_height", "load_font"]

FOLDER = Path(__file__).parent / "fonts"
TRAIN_FONTS = (
    "sans-bold.ttf",
    "serif-bold.ttf",
    "mono-bold.ttf",
    "sans.ttf",
    "humanist-bold.ttf",
    "comic-bold.otf",
    "typewriter-bold.otf",
    "grotesque-bold.ttf",
    "open-semibold.ttf",
    "gothic-bold.otf",
)
HELD_OUT_FONTS = ("rounded-bold.ttf", "geometric-semibold.otf", "condensed-bold.ttf")


@lru_cache(maxsize=512)
def load_font(name: str, pixels: int) -> ImageFont.FreeTypeFont:
    """A packaged font at a size in pixels, with the layout engine that every machine has."""
    path = FOLDER / name
    if not path.is_file():
        known = ", ".join(TRAIN_FONTS + HELD_OUT_FONTS)
        raise FileNotFoundError(f"No packaged font {name!r}; expected one of {known}.")
    return ImageFont.truetype(path, pixels, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=64)
def cap_height(name: str) -> float:
    """Height of a capital letter as a share of the font's size."""
    top, bottom = load_font(name, 200).getbbox("H")[1::2]
    return (bottom - top) / 200
