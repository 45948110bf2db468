"""GLM-5 Next: attention layers pool neighbouring keys, and choose pools by what is in them."""

from __future__ import annotations

from .family import Family

__all__ = ["Glm5Next"]


class Glm5Next(Family):
    """`Glm5NextForConditionalGeneration`. Its pools are runs of the tokens that a layer sees, as a convolution's are,
    and no layer reads positions."""

    def mixes_neighbours(self, layer: int) -> bool:
        return self.keeps_keys(layer) or super().mixes_neighbours(layer)

    def masks_itself(self, layer: int) -> bool:
        return True
