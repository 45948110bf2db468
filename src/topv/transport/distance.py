r"""Distances between the sources and the targets of one grid, a block at a time.

:math:`\|s_i - t_j\|^2` is expanded to :math:`\|s_i\|^2 + \|t_j\|^2 - 2 \langle s_i, t_j \rangle`, so that BLAS does
the work and nothing of size N x N x D exists. The expansion cancels when two tokens are close together and far from
the origin, so the common centre of all tokens is taken off first, which leaves every difference as it was.

How wrong is it in float32? With u = 2^-24, a sum of D products in any order is off by at most D u / (1 - D u) of
:math:`\|s_i\| \|t_j\|`, a squared norm by as much of itself, the additions by a few u of the norms. So, since
:math:`2 \|s_i\| \|t_j\| \le \|s_i\|^2 + \|t_j\|^2`,

.. math::
    |\widehat{d^2} - d^2| \le (2 D + 16) \, u \, (\|s_i\|^2 + \|t_j\|^2), \qquad
    \text{typically } \sqrt{D} \, u \text{ in place of } 2 D u

(roundings are unbiased and nearly independent [1]_). That is small beside :math:`d^2` itself unless the tokens are
close. Hence, on a CPU: multiply in float32, then take every pair with

.. math::
    \widehat{d^2} < \tau \, (\|s_i\|^2 + \|t_j\|^2) + \omega, \qquad \tau = 2^{-6}

(for tokens of equal length: a cosine above 0.98 after centring) and do it again, subtracting first. A block
with too many such pairs is multiplied in float64 as a whole. What is not near is right to
:math:`\sqrt{D} u / (2 \tau)` of itself, 1e-4 for D = 4096 where it just missed the threshold, and to 1e-7 where tokens
are as far apart as most are. :math:`\omega` is 0 unless tokens are normalised: dividing by the length rounds each
component by u, which centring does not take off, so then distances below 2^-8 (of at most 2) are done again too.
Accelerators, where looking at values would make the host wait and where float64 can be 64 times slower, multiply in
float32 and leave it there.

References:
    .. [1] N. J. Higham, T. Mary. A New Approach to Probabilistic Rounding Error Analysis. SIAM J. Sci. Comput., 2019.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Distances", "Precision", "slices"]

Precision = Literal["repaired", "single", "double"]
"""float32 with near pairs done again (looks at values); float32; float64."""

NEAR = 2.0**-6
"""tau: a pair whose square is below this share of its norms' squares is done again."""

NEAR_DIRECTIONS = 2.0**-16
"""omega, for normalised tokens."""

REPAIRED_SHARE = 64
"""A block with more near pairs than one in so many is multiplied in float64, which is then cheaper."""

TOKEN_BYTES = 2**22
"""Tokens are converted so many bytes at a time, on either side."""

BLOCK_ENTRIES = 2**19
"""Distances are made this many at a time, where the tokens are so narrow that TOKEN_BYTES would allow more."""

PAIR_ENTRIES = 2**17
"""Near pairs are subtracted this many entries at a time, so that they stay in the cache."""


def slices(total: int, size: int, start: int = 0) -> Iterator[slice]:
    """[start, start + total) in pieces of ``size``, the last one shorter."""
    return (slice(low, min(low + size, start + total)) for low in range(start, start + total, size))


class Distances:
    """Pairwise L2 distances of one grid. Holds its tokens as given, no copy of them, two vectors per side, and blocks.

    Args:
        source: (N, D), any floating dtypes; converted a block at a time.
        target: as `source`.
        normalize: L2-normalise each token first; a zero token stays zero.
        precision: "repaired" for float32 with near pairs done again, or "single" or "double" throughout.
    """

    def __init__(self, source: Tensor, target: Tensor, *, normalize: bool, precision: Precision) -> None:
        self.tokens = (source, target)
        self.normalize, self.precision = normalize, precision
        self.dtype = torch.float64 if precision == "double" else torch.float32
        self.held: dict[str, Tensor] = {}
        self.origin: tuple[Distances, Tensor | slice] | None = None
        self.rows_at_once = max(1, TOKEN_BYTES // (self.dtype.itemsize * source.shape[1]))
        self.powers = self._powers()
        statistics = [self._statistics(side) for side in (0, 1)]
        self.weights = [weights for weights, _ in statistics]
        self.centre = (statistics[0][1] + statistics[1][1]) / 2

    def at(self, which: Tensor | slice) -> Distances:
        """The same between some of the sources and all targets, on the same scale, from the same centre."""
        some = copy.copy(self)
        some.__dict__.pop("_in_double", None)
        some.origin = self, which
        some.tokens = self.tokens[0][which], self.tokens[1]
        some.powers = self.powers[0][which], self.powers[1]
        some.weights = [self.weights[0][which], self.weights[1]]
        return some

    def write(self, rows: slice, out: Tensor) -> None:
        """Write the distances of the sources in ``rows`` to all targets to ``out``, (rows, N), float32."""
        for some in slices(rows.stop - rows.start, self.rows_at_once, rows.start):
            s, a = self._prepared(0, some)
            width = max(1, min(self.rows_at_once, BLOCK_ENTRIES // len(s)))
            for columns in slices(len(self.tokens[1]), width):
                self._write_block(some, columns, s, a, out[some.start - rows.start : some.stop - rows.start, columns])

    def _write_block(self, rows: slice, columns: slice, s: Tensor, a: Tensor, out: Tensor) -> None:
        t, b = self._prepared(1, columns)
        if self.precision == "double":
            out.copy_(torch.addmm(b, s, t.T, alpha=-2.0).add_(a[:, None]).clamp_min_(0.0).sqrt_())
            return
        torch.addmm(b, s, t.T, alpha=-2.0, out=out)
        out.add_(a[:, None])
        if self.precision == "repaired":
            floor = NEAR_DIRECTIONS if self.normalize else 0.0
            below = self._scratch("below", out.shape, torch.float32)
            torch.add(a.mul(NEAR).add_(floor)[:, None], b.mul_(NEAR), out=below)
            near = torch.lt(out, below, out=self._scratch("near", out.shape, torch.bool)).nonzero()
            if len(near) > min(out.shape) + out.numel() // REPAIRED_SHARE:
                exact = self._in_double
                exact._write_block(rows, columns, *exact._prepared(0, rows), out)
                return
            self._repair(near, rows.start, columns.start, out)
        else:
            out.clamp_min_(0.0)  # repaired blocks need none: what could be negative was near
        out.sqrt_()

    def _repair(self, near: Tensor, row: int, column: int, out: Tensor) -> None:
        """Write the squared distances of the pairs ``near``, (K, 2), to ``out``, whose corner is (row, column)."""
        width = self.tokens[0].shape[1]
        for part in slices(len(near), max(1, PAIR_ENTRIES // width)):
            i, j = near[part].unbind(1)
            s, t = (
                torch.index_select(tokens, 0, index, out=self._scratch(name, (len(index), width), tokens.dtype))
                for name, tokens, index in (("s", self.tokens[0], i + row), ("t", self.tokens[1], j + column))
            )
            exact = self._scratch("difference", (len(s), width), torch.float64)
            if self.normalize:
                # |s / |s| - t / |t|| = |s - t |s| / |t|| / |s|; in float64 the squares of float32 are in range.
                length_s, length_t = (
                    torch.linalg.vector_norm(x, dim=1, dtype=torch.float64).clamp_min_(1e-300) for x in (s, t)
                )
                difference = torch.mul(t, (length_s / length_t)[:, None], out=exact).sub_(s)
                scale = length_s.reciprocal_()
            else:
                difference = exact.copy_(s).sub_(t)
                scale = self.powers[0][i + row]
            distance = torch.linalg.vector_norm(difference, dim=1).mul_(scale)
            out[i, j] = distance.square_().to(out.dtype)

    @cached_property
    def _in_double(self) -> Distances:
        if self.origin is not None:
            whole, which = self.origin
            return whole._in_double.at(which)
        return Distances(*self.tokens, normalize=self.normalize, precision="double")

    def _powers(self) -> tuple[Tensor, Tensor]:
        """Powers of two, (N,) per side, that keep squares in range: per token if its length is to go anyway."""
        source, target = (
            torch.cat([_largest(tokens[part]) for part in slices(len(tokens), self.rows_at_once)]).to(self.dtype)
            for tokens in self.tokens
        )
        if not self.normalize:
            source = target = torch.maximum(source.amax(), target.amax()).expand(len(source))
        return _inverse_power(source), _inverse_power(target)

    def _statistics(self, side: int) -> tuple[Tensor, Tensor]:
        """What each token is multiplied by, (N,), and the mean of the tokens after that, (D,)."""
        tokens, powers = self.tokens[side], self.powers[side]
        total = torch.zeros(tokens.shape[1], dtype=self.dtype, device=tokens.device)
        if not self.normalize:
            for part in slices(len(tokens), self.rows_at_once):
                total += self._scaled(side, part, powers).sum(0)
            return powers, total / len(tokens)
        weights = torch.empty_like(powers)
        for part in slices(len(tokens), self.rows_at_once):
            scaled = self._scaled(side, part, powers)
            inverse = torch.linalg.vector_norm(scaled, dim=1).clamp_min_(1e-30).reciprocal_()
            total += torch.mv(scaled.T, inverse)
            # Only a token below 1e-38 meets the limit, and infinity times its zeros would be NaN.
            weights[part] = inverse.mul_(powers[part]).clamp_max_(torch.finfo(self.dtype).max)
        return weights, total / len(tokens)

    def _prepared(self, side: int, part: slice) -> tuple[Tensor, Tensor]:
        """Centred tokens, (part, D), and their squared lengths."""
        tokens = self._scaled(side, part, self.weights[side]).sub_(self.centre)
        return tokens, torch.linalg.vector_norm(tokens, dim=1).square_()

    def _scaled(self, side: int, part: slice, weights: Tensor) -> Tensor:
        tokens = self.tokens[side][part]
        out = self._scratch(f"tokens {side}", tokens.shape, self.dtype)
        if tokens.dtype == out.dtype:
            return torch.mul(tokens, weights[part, None], out=out)
        return out.copy_(tokens).mul_(weights[part, None])  # a product of two dtypes would convert them elsewhere first

    def _scratch(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory that is taken again by the next call under that name. Blocks that come and go by the thousand would
        leave the allocator of a CPU with holes that add up to several times what is held."""
        size = math.prod(shape)
        held = self.held.get(name)
        if held is None or held.numel() < size:
            held = self.held[name] = torch.empty(size, dtype=dtype, device=self.tokens[0].device)
        return held[:size].view(shape)


def _largest(tokens: Tensor) -> Tensor:
    """max |x| of each row, without a copy of them."""
    return torch.maximum(tokens.amax(1), tokens.amin(1).neg_())


def _inverse_power(largest: Tensor) -> Tensor:
    return torch.exp2(-torch.frexp(largest).exponent.clamp(-126, 126).to(largest.dtype))
