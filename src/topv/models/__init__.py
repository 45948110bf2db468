"""What each model family needs beyond the generic rule."""

from .family import Family
from .registry import FAMILIES, family_of

__all__ = ["FAMILIES", "Family", "family_of"]
