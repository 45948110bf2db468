r"""Choosing a set of sources: the bottleneck of the transport cost that is left when only they may supply.

Close every source outside a set S, and let an open one supply as much as is asked of it. The cheapest plan then sends
each target to its cheapest open source, and the dearest target pays

.. math::
    c_\infty(S) = \max_j \, b_j \min_{i \in S} C_{ij}

the transport cost of order infinity (the bottleneck), or the k-centre problem of operations research. It is chosen for
greedily: of all targets the one that pays most gets its cheapest source opened. Where sources and targets are the same
tokens and C a metric, no efficient algorithm can promise less than what this one does, twice the least bottleneck
[1]_. A token close to a kept one is dropped, however important both are; a token like no other is kept.

C is rounded to 2^-20 of its grid's largest entry and counted in whole numbers, so that costs which differ by the
rounding of their products alone are equal, and ties are ties, whatever the batch.

A grid of up to 4,096 tokens keeps its N x N costs. In a larger one only some rows are there at a time: those of the
targets that pay most, which are the next to be asked for. When another is asked for, they are made anew.

References:
    .. [1] T. F. Gonzalez. Clustering to minimize the maximum intercluster distance. Theoretical Computer Science, 1985.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from .cost import Scale, central_distance, check_cost, precision_for, spatial_distance_between
from .distance import Distances, slices
from .fused_coverage import open_in_one_launch
from .sinkhorn import check_target_weights

__all__ = ["coverage"]

LEVELS = 2**20
"""Steps into which the largest cost of a grid is divided."""

MATRIX_TOKENS = 4096
"""Tokens of the largest grid whose costs are all in memory at once: 64 MiB."""

ROWS_AT_ONCE = 256
"""Rows of a larger grid that are in memory at a time."""

BATCH_ENTRIES = 2**26
"""Costs of as many grids as fit are in memory at a time on an accelerator."""

UNPAID = 2**30
"""What a target pays before any source is open: more than any cost."""

PAID = -1
"""What a target counts as paying whose cheapest source is open: it asks for nothing."""


@torch.no_grad()
def coverage(
    source: Tensor,
    target: Tensor,
    coordinates: Tensor,
    count: int,
    *,
    alpha: float,
    beta: float,
    gamma: float,
    sigma: float,
    normalize: bool = False,
    scale: Scale = "max",
    target_weights: Tensor | None = None,
) -> Tensor:
    """Scores whose ``count`` highest are the sources that the greedy choice opens; higher is kept first.

    The first to be opened is the cheapest source of the target that is dearest to supply on average. Where two targets
    pay the same, and where two sources are as cheap, the lower index goes first. Once every target has its cheapest
    source, the rest is chosen by index. On an accelerator the host waits for the device only in a grid of more than
    4,096 tokens.

    Args:
        source: (B, N, D).
        target: as `source`.
        coordinates: (N, 2) or (B, N, 2).
        count: how many sources to open in each grid, from 1 to N.
        alpha: as in :func:`cost_matrix`.
        beta: as in :func:`cost_matrix`.
        gamma: as in :func:`cost_matrix`.
        sigma: as in :func:`cost_matrix`.
        normalize: as in :func:`cost_matrix`.
        scale: as in :func:`cost_matrix`.
        target_weights: (N,) or (B, N), positive weights b; 1/N each without. Costs are counted in N b_j C_ij.

    Returns:
        (B, N), float32: of a source that was opened, what the target that asked for it paid just before, which for the
        first is set to twice the highest cost there can be. Of any other: what the target of its own position pays
        in the end, 0 if that has its cheapest source; always less than of one that was opened.

    Raises:
        ValueError: an argument does not fit; says which.

    Examples:
        Seven tokens in two heaps and one apart. One of each is chosen, before any second one.

        >>> import torch
        >>> tokens = torch.tensor([[[0.0], [0.1], [5.0], [5.1], [0.2], [5.2], [0.1], [9.0]]])
        >>> cells = torch.cartesian_prod(torch.arange(2), torch.arange(4))
        >>> score = coverage(tokens, tokens, cells, 3, alpha=1.0, beta=0.0, gamma=0.0, sigma=3.0)
        >>> score.topk(3).indices.tolist()
        [[7, 0, 2]]
    """
    check_cost(source, target, coordinates, alpha=alpha, beta=beta, gamma=gamma, sigma=sigma, scale=scale)
    batch, n, _ = source.shape
    if not 1 <= count <= n:
        raise ValueError(f"count={count}; expected from 1 to {n}, the number of tokens in a grid")
    if target_weights is not None:
        check_target_weights(target_weights, batch, n)
        target_weights = target_weights.to(source.device, torch.float32).expand(batch, n) * n

    def costs(grid: int) -> _Costs:
        cells = coordinates if coordinates.dim() == 2 else coordinates[grid]
        weights = None if target_weights is None else target_weights[grid]
        return _Costs(source[grid], target[grid], cells, weights, alpha, beta, gamma, sigma, normalize, scale)

    score = torch.empty(batch, n, dtype=torch.float32, device=source.device)
    on_host = source.device.type == "cpu" and not torch.compiler.is_compiling()
    with torch.autocast(source.device.type, enabled=False):
        if n > MATRIX_TOKENS:
            for grid in range(batch):
                made = costs(grid)
                sums, supplier = made.survey()
                score[grid] = _choose(_RowsOnDemand(made, supplier), sums, supplier, count) * made.unit
            return score
        for part in slices(batch, 1 if on_host else max(1, BATCH_ENTRIES // (n * n))):
            prices, units = zip(*(costs(grid).all_rows() for grid in range(batch)[part]), strict=True)
            if on_host:
                score[part] = _choose_among(prices[0], count) * units[0]
            else:
                score[part] = _choose_blindly(torch.stack(prices), count) * torch.stack(units)[:, None]
    return score


class _Costs:
    """N b_j C_ij of one grid in whole numbers, a few rows at a time."""

    def __init__(
        self,
        source: Tensor,
        target: Tensor,
        cells: Tensor,
        weights: Tensor | None,
        alpha: float,
        beta: float,
        gamma: float,
        sigma: float,
        normalize: bool,
        scale: Scale,
    ) -> None:
        self.n, self.device, self.cells, self.weights = len(source), source.device, cells, weights
        self.alpha, self.beta, self.sigma, self.scale = alpha, beta, sigma, scale
        self.pairs: Distances | None = None
        if alpha:
            self.pairs = Distances(source, target, normalize=normalize, precision=precision_for(source, target))
        self.central = central_distance(cells).mul_(gamma) if gamma else None
        self.places = beta + gamma

    def all_rows(self) -> tuple[Tensor, Tensor]:
        """All costs, int32 (N, N), and what one step is worth, float32 ()."""
        held = self._distances(slice(0, self.n), torch.empty(self.n, self.n, dtype=torch.float32, device=self.device))
        largest = held.amax()
        self._measure(largest, largest if self.scale == "max" else held.mean(1).mean())
        return self._priced(held, slice(0, self.n)).to(torch.int32), self.unit

    def survey(self) -> tuple[Tensor, Tensor]:
        """In two passes over all rows: the sum of each target's costs, int64 (N,), and its cheapest source, (N,)."""
        blocks = list(slices(self.n, ROWS_AT_ONCE))
        # Blocks given back one by one would be left between others and add up.
        self.held = torch.empty(ROWS_AT_ONCE, self.n, dtype=torch.float32, device=self.device)
        self.whole = torch.empty(ROWS_AT_ONCE, self.n, dtype=torch.int32, device=self.device)
        parts = torch.stack([torch.stack((d.amax(), d.mean(1).sum())) for d in map(self._held_distances, blocks)])
        largest = parts[:, 0].amax()
        self._measure(largest, largest if self.scale == "max" else parts[:, 1].sum() / self.n)
        sums = torch.zeros(self.n, dtype=torch.int64, device=self.device)
        least = torch.full((self.n,), UNPAID, dtype=torch.int32, device=self.device)
        supplier = torch.zeros(self.n, dtype=torch.int64, device=self.device)
        for block in blocks:
            rows = self.rows(block)
            sums += rows.sum(0)
            cheapest, place = rows.min(0)
            supplier = torch.where(cheapest < least, place + block.start, supplier)
            least = torch.minimum(least, cheapest)
        return sums, supplier

    def rows(self, which: Tensor | slice) -> Tensor:
        """The costs of up to ``ROWS_AT_ONCE`` sources: int32 (R, N), until the next call. Only after ``survey``."""
        price = self._priced(self._held_distances(which), which)
        return self.whole[: len(price)].copy_(price)

    def _held_distances(self, which: Tensor | slice) -> Tensor:
        return self._distances(which, self.held[: len(self.cells[which])])

    def _distances(self, which: Tensor | slice, out: Tensor) -> Tensor:
        if self.pairs is None:
            return out.zero_()
        self.pairs.at(which).write(slice(0, len(out)), out)
        return out

    def _measure(self, largest: Tensor, whole: Tensor) -> None:
        self.factor = self.alpha / torch.where(whole > 0, whole, 1.0)
        highest = largest * self.factor + self.places
        if self.weights is not None:
            highest = highest * self.weights.amax()
        self.unit = torch.where(highest > 0, highest, 1.0) / LEVELS

    def _priced(self, held: Tensor, which: Tensor | slice) -> Tensor:
        """Distances made into costs, in whole steps and in place."""
        held.mul_(self.factor)
        if self.beta:
            held.add_(spatial_distance_between(self.cells[which], self.cells, sigma=self.sigma), alpha=self.beta)
        if self.central is not None:
            held.add_(self.central[which, None])
        if self.weights is not None:
            held.mul_(self.weights)
        return held.div_(self.unit).round_()


class _RowsOnDemand:
    """Rows of a large grid's costs. The one asked for comes with those likely to be asked for next."""

    def __init__(self, costs: _Costs, supplier: Tensor) -> None:
        self.costs, self.supplier = costs, supplier
        self.place: dict[int, int] = {}
        self.held = torch.empty(0)

    def __call__(self, source: int, near: Tensor) -> Tensor:
        if source not in self.place:
            next_ones = self.supplier[near.topk(ROWS_AT_ONCE - 1).indices].tolist()
            self.place = {row: place for place, row in enumerate(dict.fromkeys([source, *next_ones]))}
            self.held = self.costs.rows(torch.tensor(list(self.place), device=near.device))
        return self.held[self.place[source]]


def _choose(rows: Callable[[int, Tensor], Tensor], sums: Tensor, supplier: Tensor, count: int) -> Tensor:
    """Scores in steps, int32 (N,), of one grid. The host looks at every choice.

    Args:
        rows: gives the costs of a source, int32 (N,), when told what each target pays.
        sums: int64 (N,), what each target would pay all sources together.
        supplier: int64 (N,), the cheapest source of each target.
        count: how many to open.
    """
    near = torch.full_like(supplier, UNPAID, dtype=torch.int32)
    opened: dict[int, int] = {}
    target, value = int(sums.argmax()), UNPAID
    while True:
        source = int(supplier[target])
        opened[source] = value
        torch.minimum(near, rows(source, near), out=near)
        near.masked_fill_(supplier == source, PAID)
        if len(opened) == count:
            break
        target = int(near.argmax())
        value = int(near[target])
        if value == PAID:
            rest = (source for source in range(len(near)) if source not in opened)
            opened.update(dict.fromkeys(itertools.islice(rest, count - len(opened)), 0))
            break
    places = torch.tensor(list(opened), device=near.device)
    values = torch.tensor(list(opened.values()), dtype=torch.int32, device=near.device)
    return near.clamp_min_(0).scatter_(0, places, _score(values))


def _choose_among(price: Tensor, count: int) -> Tensor:
    """The same for costs that are all there, int32 (N, N)."""
    return _choose(lambda source, near: price[source], price.sum(0), price.argmin(0), count)


def _choose_blindly(price: Tensor, count: int) -> Tensor:
    """The same for B grids at once, (B, N, N) -> (B, N), in shapes that no value decides."""
    batch, n, _ = price.shape
    supplier, target = price.argmin(1), price.sum(1).argmax(1, keepdim=True)
    found = open_in_one_launch(price, supplier, target, count, unpaid=UNPAID, paid=PAID)
    if found is not None:
        near, values = found
    else:
        near, values = price.new_full((batch, n), UNPAID), price.new_full((batch, n), PAID)
        for step in range(count):
            if step:
                target = near.argmax(1, keepdim=True)
            value = near.gather(1, target)
            spare = (values == PAID).int().argmax(1, keepdim=True)
            source = torch.where(value == PAID, spare, supplier.gather(1, target))
            near = torch.minimum(near, price.gather(1, source.unsqueeze(2).expand(-1, -1, n)).squeeze(1))
            near = near.masked_fill(supplier == source, PAID)
            values = values.scatter(1, source, value.clamp_min(0))
    return torch.where(values == PAID, near.clamp_min(0), _score(values))


def _score(values: Tensor) -> Tensor:
    """Above the highest that an unopened source can have."""
    return values.clamp_max(2 * LEVELS) + 1
