"""K is decided once, in integers; serving code that repeats the rule must get the same number."""

from __future__ import annotations

import decimal
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topv.budget import keep_count, recovered_count, validate_keep

SIZES = st.integers(1, 20_000)
RATIOS = st.floats(0.0, 1.0, exclude_min=True)


@settings(deadline=None)
@given(n=SIZES, keep=RATIOS)
def test_ratio_follows_the_decimal_rule(n: int, keep: float) -> None:
    # The same rule by another road: decimal arithmetic with enough digits to be exact for any float.
    with decimal.localcontext() as context:
        context.prec = 400
        exact = Decimal(repr(keep)) * n + Decimal("0.5")
        expected = int(exact.to_integral_value(rounding=decimal.ROUND_FLOOR))
    count = keep_count(n, keep)
    assert count == max(1, expected)
    assert 1 <= count <= n


@settings(deadline=None)
@given(n=SIZES, low=RATIOS, high=RATIOS)
def test_a_larger_ratio_never_keeps_fewer(n: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert keep_count(n, low) <= keep_count(n, high)


@settings(deadline=None)
@given(n=SIZES, data=st.data())
def test_a_count_is_itself(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, n))
    assert keep_count(n, count) == count


@pytest.mark.parametrize(
    ("n", "keep", "count"),
    [
        (576, 0.5, 288),
        (577, 0.5, 289),  # a half rounds up
        (576, 0.25, 144),
        (576, 0.1, 58),
        (5, 0.7, 4),  # 3.5 at the decimal value; the binary value of 0.7 is below it and would give 3
        (5, 0.1, 1),
        (25, 0.58, 15),  # 14.5, where 0.58 * 25 in floats is 14.499999999999998
        (576, 1.0, 576),
        (576, 1, 1),  # the type decides
        (1, 1, 1),
        (1, 0.001, 1),
        (16_384, 5e-324, 1),
    ],
)
def test_known_counts(n: int, keep: float | int, count: int) -> None:
    assert keep_count(n, keep) == count


def test_the_decimal_value_differs_from_the_binary_one_where_it_should() -> None:
    binary = math.floor(Fraction(0.7) * 5 + Fraction(1, 2))
    assert (binary, keep_count(5, 0.7)) == (3, 4)


def test_numpy_numbers_count_as_what_they_are() -> None:
    assert keep_count(10, np.float64(0.5)) == 5
    assert keep_count(10, np.int64(3)) == 3
    assert type(validate_keep(np.int64(3))) is int
    assert type(validate_keep(np.float32(0.5))) is float


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.0000001, 50.0, math.nan, math.inf, -math.inf, 0, -3])
def test_out_of_range_budgets_name_the_value_and_the_range(keep: float | int) -> None:
    with pytest.raises(ValueError, match=r"keep=.*must be (in \(0, 1\]|at least 1)") as error:
        validate_keep(keep)
    assert repr(keep) in str(error.value)


@pytest.mark.parametrize("keep", [True, False, "0.5", None, [0.5], 0.5 + 0j])
def test_other_types_are_refused(keep: object) -> None:
    with pytest.raises(TypeError, match="keep="):
        validate_keep(keep)  # type: ignore[arg-type]


def test_a_percentage_gets_the_likely_meaning() -> None:
    with pytest.raises(ValueError, match=r"pass 0\.5 for 50 %, the int 50"):
        keep_count(576, 50.0)


def test_a_count_above_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"keep=577 tokens of a grid of n=576; expected a count in 1 \.\. 576"):
        keep_count(576, 577)


@pytest.mark.parametrize("n", [0, -1, 2.0, True, None])
def test_a_grid_needs_a_size(n: object) -> None:
    with pytest.raises(ValueError, match="n="):
        keep_count(n, 0.5)  # type: ignore[arg-type]


@settings(deadline=None)
@given(n=SIZES, keep=RATIOS, recovery=st.floats(0.0, 1.0, exclude_max=True))
def test_recovery_is_inside_the_budget(n: int, keep: float, recovery: float) -> None:
    kept = keep_count(n, keep)
    recovered = recovered_count(kept, n, recovery)
    assert 0 <= recovered < kept
    assert recovered <= recovery * kept + 1e-9
    assert recovered <= n - (kept - recovered), "more recovered than were pruned"
    if kept == n:
        assert recovered == 0


def test_known_recovered_counts() -> None:
    assert recovered_count(288, 576, 0.25) == 72
    assert recovered_count(10, 20, 0.7) == 7  # decimal again: 0.7 in binary would give 6
    assert recovered_count(10, 10, 0.7) == 0
    assert recovered_count(1, 20, 0.99) == 0


@pytest.mark.parametrize("recovery", [1.0, -0.1, math.nan, 2])
def test_recovery_out_of_range(recovery: float) -> None:
    with pytest.raises(ValueError, match=r"recovery=.*\[0, 1\)"):
        recovered_count(5, 10, recovery)


@pytest.mark.parametrize(("kept", "n"), [(0, 10), (11, 10), (True, 10), (2.0, 10)])
def test_kept_out_of_range(kept: object, n: int) -> None:
    with pytest.raises(ValueError, match="kept="):
        recovered_count(kept, n, 0.5)  # type: ignore[arg-type]


def test_recovery_of_another_type() -> None:
    with pytest.raises(TypeError, match=r"recovery='0\.5'"):
        recovered_count(5, 10, "0.5")  # type: ignore[arg-type]
