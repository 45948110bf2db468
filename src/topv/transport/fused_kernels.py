# mypy: ignore-errors
# ruff: noqa: SIM108  (a branch on a constexpr is chosen when the kernel is compiled: two statements say so)
"""The Triton kernels of ``fused.py``. Importing this module imports triton.

Shared conventions: program axes are given in each docstring; B grids, N tokens, all vectors over tokens in float64; a
mask keeps blocks, whose sizes are powers of two, inside N and D. Every reduction has one fixed order, and no program
reads another's output within a launch, so results do not depend on the batch or on timing.
"""

# No `from __future__ import annotations`: triton reads the annotation tl.constexpr itself.
import triton
import triton.language as tl


@triton.jit
def row_squares(
    source, target, squares, batch, n, d, source_batch, source_row, target_batch, target_row,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Squared length of each token, as it was given: squares[side, grid, token]. Programs: ROWS tokens, grid, side."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    grid = tl.program_id(1).to(tl.int64)
    side = tl.program_id(2)
    if side == 0:
        tokens = source + grid * source_batch + rows[:, None] * source_row
    else:
        tokens = target + grid * target_batch + rows[:, None] * target_row
    total = tl.zeros((ROWS, BLOCK_D), dtype=tl.float64)
    for start in range(0, d, BLOCK_D):
        place = start + tl.arange(0, BLOCK_D)
        mask = (rows < n)[:, None] & (place < d)[None, :]
        x = tl.load(tokens + place[None, :], mask=mask, other=0.0).to(tl.float64)
        total += x * x
    tl.store(squares + (side * batch + grid) * n + rows, tl.sum(total, 1), mask=rows < n)


@triton.jit
def _weights(squares, rows, n, NORMALIZE: tl.constexpr):
    """What each token is multiplied by: 1, or 1 over its length; any finite number for a zero token."""
    if NORMALIZE:
        square = tl.load(squares + rows, mask=rows < n, other=1.0)
        weights = 1.0 / tl.sqrt(tl.where(square > 0, square, 1.0))
    else:
        weights = tl.full(rows.shape, 1.0, dtype=tl.float64)
    return weights


@triton.jit
def centres(
    source, target, squares, centre, batch, n, d, source_batch, source_row, target_batch, target_row,
    NORMALIZE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Mean of all sources and targets, weighted: centre[grid, component]. Programs: block of components, grid."""
    place = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    grid = tl.program_id(1).to(tl.int64)
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for start in range(0, n, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        mask = (rows < n)[:, None] & (place < d)[None, :]
        s = tl.load(source + grid * source_batch + rows[:, None] * source_row + place[None, :], mask=mask, other=0.0)
        t = tl.load(target + grid * target_batch + rows[:, None] * target_row + place[None, :], mask=mask, other=0.0)
        of_source = _weights(squares + grid * n, rows, n, NORMALIZE).to(tl.float32)
        of_target = _weights(squares + (batch + grid) * n, rows, n, NORMALIZE).to(tl.float32)
        total += tl.sum(s * of_source[:, None] + t * of_target[:, None], 0)
    tl.store(centre + grid * d + place, total / (2 * n), mask=place < d)


@triton.jit
def distances(
    source, target, squares, centre, out, parts, batch, n, d, source_batch, source_row, target_batch, target_row,
    NORMALIZE: tl.constexpr, CENTRED: tl.constexpr, LARGEST: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Distances out[grid, i, j] of one tile, and their largest or their sum, parts[grid, tile]. Programs: tile of rows,
    tile of columns, grid.

    Not CENTRED (16-bit tokens): the tensor cores multiply the tokens as they are, products of two 16-bit numbers being
    exact in float32, and lengths come in afterwards. CENTRED (float32 tokens): normalised and centred first, three
    TF32 products for one. The sum over blocks of K keeps what each addition rounds off (Knuth's TwoSum)."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    grid = tl.program_id(2).to(tl.int64)
    of_source = _weights(squares + grid * n, rows, n, NORMALIZE)
    of_target = _weights(squares + (batch + grid) * n, columns, n, NORMALIZE)
    product = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    rounded = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    a = tl.zeros((BLOCK_M,), dtype=tl.float32)
    b = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for start in range(0, d, BLOCK_K):
        place = start + tl.arange(0, BLOCK_K)
        s = tl.load(
            source + grid * source_batch + rows[:, None] * source_row + place[None, :],
            mask=(rows < n)[:, None] & (place < d)[None, :],
            other=0.0,
        )
        t = tl.load(
            target + grid * target_batch + columns[None, :] * target_row + place[:, None],
            mask=(columns < n)[None, :] & (place < d)[:, None],
            other=0.0,
        )
        if CENTRED:
            c = tl.load(centre + grid * d + place, mask=place < d, other=0.0)
            s = s * of_source.to(tl.float32)[:, None] - c[None, :]
            t = t * of_target.to(tl.float32)[None, :] - c[:, None]
            a += tl.sum(s * s, 1)
            b += tl.sum(t * t, 0)
            block = tl.dot(s, t, input_precision="tf32x3")
        elif INTERPRETED:  # the interpreter multiplies the bit patterns of bfloat16
            block = tl.dot(s.to(tl.float32), t.to(tl.float32))
        else:
            block = tl.dot(s, t)
        total = product + block
        virtual = total - product
        rounded += (product - (total - virtual)) + (block - virtual)
        product = total
    inner = product.to(tl.float64) + rounded.to(tl.float64)
    if CENTRED:
        square = a.to(tl.float64)[:, None] + b.to(tl.float64)[None, :] - 2.0 * inner
    else:
        lengths_s = tl.load(squares + grid * n + rows, mask=rows < n, other=0.0) * of_source * of_source
        lengths_t = tl.load(squares + (batch + grid) * n + columns, mask=columns < n, other=0.0) * of_target * of_target
        square = lengths_s[:, None] + lengths_t[None, :] - 2.0 * inner * of_source[:, None] * of_target[None, :]
    distance = tl.sqrt(tl.maximum(square, 0.0)).to(tl.float32)
    mask = (rows < n)[:, None] & (columns < n)[None, :]
    tl.store(out + grid * n * n + rows[:, None] * n + columns[None, :], distance, mask=mask)
    distance = tl.where(mask, distance, 0.0)
    tiles = tl.num_programs(0) * tl.num_programs(1)
    tile = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    if LARGEST:
        tl.store(parts + grid * tiles + tile, tl.max(tl.max(distance, 1), 0).to(tl.float64))
    else:
        tl.store(parts + grid * tiles + tile, tl.sum(tl.sum(distance.to(tl.float64), 1), 0))


@triton.jit
def _central(cells, place, n, BLOCK_N: tl.constexpr):
    """E of the cells at ``place``, and the largest distance from the centre that it is to be divided by."""
    every = tl.arange(0, BLOCK_N)
    h = tl.load(cells + 2 * every, mask=every < n, other=float("inf"))
    w = tl.load(cells + 2 * every + 1, mask=every < n, other=float("inf"))
    middle_h = (tl.min(h, 0) + tl.max(tl.where(every < n, h, float("-inf")), 0)) / 2
    middle_w = (tl.min(w, 0) + tl.max(tl.where(every < n, w, float("-inf")), 0)) / 2
    h = tl.where(every < n, h - middle_h, 0.0)
    w = tl.where(every < n, w - middle_w, 0.0)
    furthest = tl.sqrt(tl.max(h * h + w * w, 0))
    h = tl.load(cells + 2 * place, mask=place < n, other=0.0) - middle_h
    w = tl.load(cells + 2 * place + 1, mask=place < n, other=0.0) - middle_w
    return tl.sqrt(h * h + w * w) / tl.where(furthest > 0, furthest, 1.0)


@triton.jit
def iterate(
    distance, parts, cells, q, level, p, largest_parts, total_parts, value,
    n, tiles, cells_batch, alpha, beta, gamma, per_sigma, per_eps, damping,
    FEATURES: tl.constexpr, LARGEST: tl.constexpr, SPACE: tl.constexpr, CENTRAL: tl.constexpr,
    SCALING: tl.constexpr, FIRST: tl.constexpr, SUPPLY: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Half an iteration: p of the program's rows from q, and those rows' share of every column's sum. With SUPPLY,
    instead, what each row supplies given p and q. Programs: ROWS * STEPS rows, grid.

    SCALING sums K = exp(-C / eps), else logarithms with the largest exponent taken out: see ``kernel.py``. The level
    taken out of p there is -damping * max q, above which p lies by at most twice the range."""
    grid = tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, BLOCK_N)
    inside = columns < n
    if FEATURES:
        tile = tl.arange(0, BLOCK_T)
        found = tl.load(parts + grid * tiles + tile, mask=tile < tiles, other=0.0)
        if LARGEST:
            whole = tl.max(found, 0)
        else:
            whole = tl.sum(found, 0) / n / n
        factor = (alpha / tl.where(whole > 0, whole, 1.0)).to(tl.float32)
    cells += grid * cells_batch
    if SPACE:
        column_h = tl.load(cells + 2 * columns, mask=inside, other=0.0) * per_sigma
        column_w = tl.load(cells + 2 * columns + 1, mask=inside, other=0.0) * per_sigma
    if FIRST:
        held = tl.zeros((BLOCK_N,), dtype=tl.float64)
    else:
        held = tl.load(q + grid * n + columns, mask=inside, other=0.0)
    top = tl.max(tl.where(inside, held, float("-inf")), 0)
    bottom = -damping * top
    factors = tl.exp(held - top)
    largest = tl.full((BLOCK_N,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_N,), dtype=tl.float64)
    for step in range(STEPS):
        rows = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        mask = (rows < n)[:, None] & inside[None, :]
        cost = tl.zeros((ROWS, BLOCK_N), dtype=tl.float32)
        if FEATURES:
            at = distance + grid * n * n + rows[:, None] * n + columns[None, :]
            cost += tl.load(at, mask=mask, other=0.0) * factor
        if SPACE:
            row_h = tl.load(cells + 2 * rows, mask=rows < n, other=0.0) * per_sigma
            row_w = tl.load(cells + 2 * rows + 1, mask=rows < n, other=0.0) * per_sigma
            h = row_h[:, None] - column_h[None, :]
            w = row_w[:, None] - column_w[None, :]
            cost += beta * (1.0 - tl.exp(-0.5 * (h * h + w * w)))
        if CENTRAL:
            cost += gamma * _central(cells, rows, n, BLOCK_N)[:, None]
        exponents = tl.maximum(-cost * per_eps, -4e37)
        if SCALING:
            kernel = tl.where(mask, tl.exp(exponents), 0.0).to(tl.float64)
            received = tl.log(tl.maximum(tl.sum(kernel * factors[None, :], 1) / n, 1e-300)) + top
        else:
            shifted = tl.where(inside[None, :], exponents + held.to(tl.float32)[None, :], float("-inf"))
            highest = tl.max(shifted, 1)
            terms = tl.exp(shifted - highest[:, None]).to(tl.float64)
            received = tl.log(tl.sum(terms, 1) / n) + highest.to(tl.float64)
        if SUPPLY:
            mine = tl.load(p + grid * n + rows, mask=rows < n, other=0.0)
            tl.store(value + grid * n + rows, tl.exp(mine + received), mask=rows < n)
        else:
            mine = -damping * received
            tl.store(p + grid * n + rows, mine, mask=rows < n)
            if SCALING:
                total += tl.sum(kernel * tl.where(rows < n, tl.exp(mine - bottom), 0.0)[:, None], 0)
            else:
                shifted = tl.where((rows < n)[:, None], exponents + mine.to(tl.float32)[:, None], float("-inf"))
                highest = tl.maximum(largest, tl.max(shifted, 0))
                total = total * tl.exp(largest - highest).to(tl.float64)
                total += tl.sum(tl.exp(shifted - highest[None, :]).to(tl.float64), 0)
                largest = highest
    if not SUPPLY:
        place = (grid * tl.num_programs(0) + tl.program_id(0)) * n + columns
        tl.store(total_parts + place, total, mask=inside)
        if SCALING:
            tl.store(level + grid, bottom)
        else:
            tl.store(largest_parts + place, largest, mask=inside)


@triton.jit
def columns(
    q, level, largest_parts, total_parts, n, count,
    SCALING: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """q from the shares that ``iterate`` left, ``count`` per column. Programs: block of columns, grid."""
    place = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    grid = tl.program_id(1).to(tl.int64)
    part = tl.arange(0, BLOCK_P)
    at = (grid * count + part[:, None]) * n + place[None, :]
    mask = (part < count)[:, None] & (place < n)[None, :]
    total = tl.load(total_parts + at, mask=mask, other=0.0)
    if SCALING:
        logarithm = tl.log(tl.maximum(tl.sum(total, 0) / n, 1e-300)) + tl.load(level + grid)
    else:
        largest = tl.load(largest_parts + at, mask=mask, other=float("-inf"))
        highest = tl.maximum(tl.max(largest, 0), -1e38)  # finite where the block lies outside the grid
        total = total * tl.exp(largest - highest[None, :]).to(tl.float64)
        logarithm = tl.log(tl.maximum(tl.sum(total, 0) / n, 1e-300)) + highest.to(tl.float64)
    tl.store(q + grid * n + place, -logarithm, mask=place < n)


@triton.jit
def finish(
    value, cells, out, n, cells_batch, gamma,
    STANDARDISE: tl.constexpr, CENTRAL: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Importance, float32: see ``standardise`` and ``subtract_central``; or only 1/N of the value. Programs: grid."""
    grid = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK_N)
    inside = place < n
    x = tl.load(value + grid * n + place, mask=inside, other=0.0)
    if STANDARDISE:
        size = tl.max(tl.abs(x), 0)
        x = tl.where(inside, x - tl.sum(x, 0) / n, 0.0)
        largest = tl.max(tl.abs(x), 0)
        flat = largest <= 5e-8 * size
        x = x / tl.where(flat, 1.0, largest)
        spread = tl.sqrt(tl.sum(x * x, 0) / n)
        x = tl.where(flat, 0.0, x / tl.where(flat, 1.0, spread))
        if CENTRAL:
            x -= gamma * _central(cells + grid * cells_batch, place, n, BLOCK_N)
    else:
        x = x / n
    tl.store(out + grid * n + place, x.to(tl.float32), mask=inside)
