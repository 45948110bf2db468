"""What questions give away by themselves: the unpruned model answers them about another scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..scenes import Geometry, draw_clip, draw_scene
from .configurations import Configuration
from .examples import Example

__all__ = ["IMAGE_BLIND", "blind_examples"]

IMAGE_BLIND = Configuration("image-blind", None, None)
"""The unpruned model, for `blind_examples`."""


def blind_examples(examples: Sequence[Example], split: str, geometry: Geometry) -> list[Example]:
    """The same questions about the picture, or the clip, that is drawn from the next seed.

    Another scene rather than an empty picture, on which models that have never seen one write nonsense: what is right
    here is likely in any scene.

    Args:
        examples: questions about bundled scenes.
        split: the split of their scenes.
        geometry: size of the scenes.
    """
    return [_about_another(example, split, geometry) for example in examples]


def _about_another(example: Example, split: str, geometry: Geometry) -> Example:
    if not example.frames:
        return replace(example, image=draw_scene(example.scene + 1, split, geometry).image)
    frames = draw_clip(example.scene + 1, split, len(example.frames), geometry).frames
    return replace(example, image=frames[0], frames=frames)
