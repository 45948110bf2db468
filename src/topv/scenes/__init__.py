"""Scenes: pictures and clips drawn from seeds, with questions whose answers are known exactly.

What the bundled models are trained and asked on. Importing this package imports neither torch nor transformers.
"""

from .clips import CLIP_TASKS, Clip, ClipQuestion, draw_clip
from .geometry import SHIPPED, Geometry
from .questions import TASKS, Question
from .scene import SPLITS, Scene, draw_scene, scenes
from .views import Tiles, View, read_view

__all__ = [
    "CLIP_TASKS",
    "SHIPPED",
    "SPLITS",
    "TASKS",
    "Clip",
    "ClipQuestion",
    "Geometry",
    "Question",
    "Scene",
    "Tiles",
    "View",
    "draw_clip",
    "draw_scene",
    "read_view",
    "scenes",
]
