"""How many visual tokens stay: the one place where the budget K is decided.

Everything here is integer arithmetic on Python numbers, with nothing imported but the standard library, so
that any other program (a serving engine that must reserve slots before it sees a token) gets the same K to
the token."""

from __future__ import annotations

import math
from fractions import Fraction
from numbers import Integral, Real

__all__ = ["keep_count", "recovered_count", "validate_keep"]


def validate_keep(keep: float | int) -> float | int:
    r"""Check a budget before any grid is known; return it as a plain ``float`` (ratio) or ``int`` (count).

    Args:
        keep: a float is the share of a grid's tokens to keep, in (0, 1]; an int is a number of tokens, at least 1. The
            type decides: ``1.0`` keeps everything, ``1`` keeps one token.

    Raises:
        TypeError: if ``keep`` is neither (a bool or a string, for instance).
        ValueError: if it is outside its range, NaN or infinite.

    Examples:
        >>> validate_keep(0.5), validate_keep(64)
        (0.5, 64)
        >>> validate_keep(50.0)
        Traceback (most recent call last):
            ...
        ValueError: keep=50.0 is a float: a ratio must be in (0, 1]; pass 0.5 for 50 %, the int 50 for 50 tokens
    """
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise TypeError(
            f"keep={keep!r} is of type {type(keep).__name__}; expected a float ratio in (0, 1] or an int "
            "number of tokens, such as keep=0.5 or keep=64"
        )
    if isinstance(keep, Integral):
        count = int(keep)
        if count < 1:
            raise ValueError(
                f"keep={count} is an int: a number of tokens must be at least 1; pass a "
                "larger count, or a float in (0, 1] for a ratio"
            )
        return count
    ratio = float(keep)
    if 0.0 < ratio <= 1.0:
        return ratio
    message = f"keep={ratio!r} is a float: a ratio must be in (0, 1]"
    if math.isfinite(ratio) and ratio > 1.0:
        share = f"pass {ratio / 100!r} for {ratio:g} %, " if ratio <= 100 else "pass "
        message += f"; {share}the int {int(ratio)} for {int(ratio)} tokens"
    else:
        message += "; the smallest budget is one token per grid: keep=1"
    raise ValueError(message)


def keep_count(n: int, keep: float | int) -> int:
    r"""Number of tokens K kept out of a grid of n.

    .. math::
        K = \max(1, \lfloor \mathrm{keep} \cdot n + 1/2 \rfloor)

    for a ratio, and K = keep for a count. A ratio is taken at its *decimal* value: the shortest decimal that
    names the float, which is what was typed and what JSON and YAML carry (``0.7`` means 7/10, although the
    nearest binary number is a little below it). With keep = p / q in lowest terms, K = max(1, (2 p n + q) //
    (2 q)): integers only, no rounding mode or float width to agree upon.

    Args:
        n: tokens in the grid, at least 1.
        keep: ratio in (0, 1] or count in 1 .. n; see :func:`validate_keep`.

    Returns:
        K, with 1 <= K <= n.

    Examples:
        >>> keep_count(576, 0.5), keep_count(577, 0.5), keep_count(576, 64)
        (288, 289, 64)
        >>> keep_count(576, 1.0), keep_count(576, 1), keep_count(576, 1e-6)
        (576, 1, 1)
        >>> keep_count(5, 0.7)  # 3.5 rounds up, though the float 0.7 is a little below 7/10
        4
        >>> keep_count(4, 5)
        Traceback (most recent call last):
            ...
        ValueError: keep=5 tokens of a grid of n=4; expected a count in 1 .. 4: lower it, or pass a float ratio
    """
    n = _grid_size(n)
    keep = validate_keep(keep)
    if isinstance(keep, int):
        if keep > n:
            raise ValueError(
                f"keep={keep} tokens of a grid of n={n}; expected a count in 1 .. {n}: lower it, or pass a float ratio"
            )
        return keep
    ratio = _decimal(keep)
    p, q = ratio.numerator, ratio.denominator
    return max(1, (2 * p * n + q) // (2 * q))


def recovered_count(kept: int, n: int, recovery: float) -> int:
    r"""How many of the K kept tokens are recovered: taken evenly from the pruned ones, not by importance.

    Recovery is *inside* the budget: :math:`r = \lfloor \mathrm{recovery} \cdot K \rfloor` tokens come back
    from the n - (K - r) that importance leaves out, and K stays K. Rounding down keeps at least one token
    chosen by importance.

    Args:
        kept: K, from :func:`keep_count`.
        n: tokens in the grid.
        recovery: share of K in [0, 1), at its decimal value as in :func:`keep_count`.

    Returns:
        r, with 0 <= r < K; 0 when K = n, since then nothing was pruned.

    Examples:
        >>> recovered_count(288, 576, 0.25), recovered_count(288, 576, 0.0), recovered_count(576, 576, 0.25)
        (72, 0, 0)
    """
    n = _grid_size(n)
    if isinstance(kept, bool) or not isinstance(kept, Integral) or not 1 <= kept <= n:
        raise ValueError(f"kept={kept!r}; expected an int in 1 .. n={n}: take it from keep_count(n, keep)")
    if isinstance(recovery, bool) or not isinstance(recovery, Real):
        raise TypeError(f"recovery={recovery!r} is of type {type(recovery).__name__}; expected a float in [0, 1)")
    if not 0.0 <= recovery < 1.0:
        raise ValueError(
            f"recovery={recovery!r}; expected the share of the kept tokens that is recovered, in [0, 1): 0 "
            "turns recovery off"
        )
    if kept == n:
        return 0
    share = _decimal(float(recovery))
    return int(kept) * share.numerator // share.denominator


def _decimal(value: float) -> Fraction:
    """The shortest decimal that names ``value``, exactly."""
    return Fraction(repr(value))


def _grid_size(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
        raise ValueError(
            f"n={n!r}; expected the grid's number of tokens, an int of at least 1: an empty grid has no budget"
        )
    return int(n)
