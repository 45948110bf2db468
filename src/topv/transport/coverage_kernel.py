# mypy: ignore-errors
"""The Triton kernel of ``fused_coverage.py``. Importing this module imports triton."""

# No `from __future__ import annotations`: triton reads the annotation tl.constexpr itself.
import triton
import triton.language as tl


@triton.jit
def open_sources(
    price, supplier, first, near_out, values_out, n, count,
    UNPAID: tl.constexpr, PAID: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Open `count` sources one after another, each for the target that pays most: what targets pay in the end, and what
    the target that asked for each opened source paid (PAID for the others), int32. Programs: grid."""
    grid = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK_N)
    inside = place < n
    own = tl.load(supplier + grid * n + place, mask=inside, other=-1).to(tl.int32)
    near = tl.where(inside, UNPAID, PAID)
    values = tl.where(inside, PAID, 0)
    target = tl.load(first + grid).to(tl.int32)
    for step in range(count):
        if step > 0:
            target = tl.argmax(near, 0)
        value = tl.max(near, 0)
        source = tl.load(supplier + grid * n + target).to(tl.int32)
        if value == PAID:
            source = tl.min(tl.where(values == PAID, place, BLOCK_N), 0)
        row = tl.load(price + (grid * n + source) * n + place, mask=inside, other=0)
        near = tl.minimum(near, row)
        near = tl.where(own == source, PAID, near)
        values = tl.where(place == source, tl.maximum(value, 0), values)
    tl.store(near_out + grid * n + place, near, mask=inside)
    tl.store(values_out + grid * n + place, values, mask=inside)
