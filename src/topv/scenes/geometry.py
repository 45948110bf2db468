"""The size of a scene and the patch grid that the vision tower lays over it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SHIPPED", "Geometry"]


@dataclass(frozen=True)
class Geometry:
    """A square image of ``size`` pixels cut into patches of ``patch`` pixels.

    >>> Geometry(168, 14).grid
    12
    """

    size: int = 168
    patch: int = 14

    def __post_init__(self) -> None:
        if self.patch < 1 or self.size < 1 or self.size % self.patch:
            raise ValueError(
                f"Image size {self.size} with patch {self.patch}: expected positive numbers with the size a"
                f" multiple of the patch. Choose a size such as {max(1, self.size // max(1, self.patch))} patches."
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.size // self.patch

    def cell(self, point: tuple[float, float]) -> tuple[int, int]:
        """Row and column of the patch that holds a point (x, y); points beyond an edge count as on it.

        >>> Geometry(168, 14).cell((30.0, 200.0))
        (11, 2)
        """
        x, y = (min(self.grid - 1, int(value) // self.patch) for value in point)
        return y, x

    def scaled(self, pixels: float) -> int:
        """A length that was chosen on the shipped 168-pixel canvas, on this one."""
        return max(1, round(pixels * self.size / 168))


SHIPPED = Geometry()
