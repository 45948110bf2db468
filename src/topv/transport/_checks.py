"""Argument checks shared by this package. All but ``check_finite`` look at shapes and Python numbers only."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor


def check_finite(**tensors: Tensor) -> None:
    """Raise if any of the named tensors holds NaN or infinity.

    The functions of this package never look at values: on a GPU that would make the host wait. Call this
    once, where waiting is acceptable, on what enters them.

    Raises:
        ValueError: names each offending tensor, how many of its entries are not finite, and the index of the first.

    Examples:
        >>> import torch
        >>> check_finite(source=torch.ones(2, 3))
        >>> check_finite(source=torch.ones(2), target=torch.tensor([[1.0, float("nan")]]))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: target has 1 of 2 entries NaN or infinite, first at (0, 1); expected ...
    """
    flags = {name: torch.isfinite(tensor).all() for name, tensor in tensors.items()}
    if all(bool(flag) for flag in flags.values()):
        return
    found = []
    for name, flag in flags.items():
        if not bool(flag):
            bad = (~torch.isfinite(tensors[name])).nonzero()
            first = tuple(bad[0].tolist())
            found.append(f"{name} has {len(bad)} of {tensors[name].numel()} entries NaN or infinite, first at {first}")
    raise ValueError(
        "; ".join(found)
        + "; expected finite values: look upstream for an overflow (float16 above 65504) or a bad input"
    )


def require_number(name: str, value: float, expected: str, *, low: float, strict: bool, inf: bool) -> None:
    """A real number in [low, inf) (or, strict, above low; or, with inf, infinity too)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r} is of type {type(value).__name__}; expected {expected}")
    number = float(value)
    inside = number > low if strict else number >= low
    if not inside or (math.isinf(number) and not inf):
        raise ValueError(f"{name}={value!r}; expected {expected}")


def require_coordinates(coordinates: Tensor, batch: int | None = None, n: int | None = None) -> None:
    shape = tuple(coordinates.shape)
    fits = coordinates.dim() in (2, 3) and shape[-1] == 2 and not coordinates.is_complex()
    if fits and n is not None:
        fits = shape[-2] == n and (coordinates.dim() == 2 or shape[0] == batch)
    if not fits:
        want = "(N, 2) or (B, N, 2)" if n is None else f"({n}, 2) or ({batch}, {n}, 2)"
        raise ValueError(
            f"coordinates has shape {shape} and dtype {coordinates.dtype}; expected {want}: the (h, w) cell "
            "of each token, shared by all grids or one set per grid"
        )
