"""Rank arithmetic: each function against its definition, and its edges."""

import math
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptshrink.errors import RankError
from ckptshrink.linalg import ranks
from ckptshrink.tensors import ITEMSIZE

sizes = st.integers(1, 5000)


@given(sizes, sizes)
def test_break_even_is_the_last_rank_with_fewer_parameters(m: int, n: int) -> None:
    r = ranks.break_even(m, n)
    assert ranks.pair_params(m, n, r) < m * n <= ranks.pair_params(m, n, r + 1)


def test_break_even_where_a_rank_breaks_even_exactly() -> None:
    assert ranks.pair_params(2600, 650, 520) == 2600 * 650
    assert ranks.break_even(2600, 650) == 519


@given(sizes, sizes, st.integers(1, 3000).map(lambda i: i / 1000))
def test_rank_for_ratio_is_the_largest_within_it(m: int, n: int, ratio: float) -> None:
    r = ranks.rank_for_ratio(m, n, ratio)
    allowed = Fraction(str(ratio)) * m * n
    assert 1 <= r <= min(m, n)
    assert r == 1 or ranks.pair_params(m, n, r) <= allowed
    assert r == min(m, n) or ranks.pair_params(m, n, r + 1) > allowed


def test_rank_for_ratio_takes_the_decimal_that_was_written() -> None:
    # 0.3 * 100 * 100 / 200 is 15 exactly; the binary 0.3 is below it
    assert ranks.rank_for_ratio(100, 100, 0.3) == 15


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.nan, math.inf])
def test_rank_for_ratio_refuses(ratio: float) -> None:
    with pytest.raises(RankError):
        ranks.rank_for_ratio(10, 10, ratio)


falling = st.lists(st.floats(0, 1e9), min_size=2, max_size=30).map(
    lambda values: sorted(values, reverse=True)
)


@given(falling, st.floats(0.01, 1.0))
def test_rank_for_energy_is_the_smallest_that_keeps_it(errors: list[float], energy: float) -> None:
    errors[-1] = 0.0
    r = ranks.rank_for_energy(errors, energy)

    def kept(r: int) -> float:
        return 1 - (errors[r] / errors[0] if errors[0] else 0.0)

    assert kept(r) >= energy
    assert r == 1 or kept(r - 1) < energy


@given(falling, st.floats(0.0, 1.5))
def test_rank_for_error_is_the_smallest_that_reaches_it(errors: list[float], bound: float) -> None:
    errors[-1] = 0.0
    r = ranks.rank_for_error(errors, bound)

    def error(r: int) -> float:
        return math.sqrt(errors[r] / errors[0]) if errors[0] else 0.0

    assert error(r) <= bound
    assert r == 1 or error(r - 1) > bound


def test_energy_at_its_edges() -> None:
    errors = [10.0, 1.0, 0.1, 0.0]
    assert ranks.rank_for_energy(errors, 0.9) == 1
    assert ranks.rank_for_energy(errors, math.nextafter(0.9, 1)) == 2
    assert ranks.rank_for_energy(errors, 1.0) == 3
    # a tail below 1e-16 of the norm is rounding: the matrix has rank 2
    assert ranks.rank_for_energy([10.0, 5.0, 1e-30, 1e-31, 0.0], 1.0) == 2
    assert ranks.rank_for_energy([0.0, 0.0, 0.0], 0.5) == 1


def test_error_at_its_edges() -> None:
    errors = [100.0, 25.0, 4.0, 0.0]
    assert ranks.rank_for_error(errors, 0.5) == 1
    assert ranks.rank_for_error(errors, math.nextafter(0.5, 0)) == 2
    assert ranks.rank_for_error(errors, 0.0) == 3
    assert ranks.rank_for_error([0.0, 0.0], 0.0) == 1


@pytest.mark.parametrize("energy", [0.0, -0.5, 1.0001, math.nan])
def test_rank_for_energy_refuses(energy: float) -> None:
    with pytest.raises(RankError):
        ranks.rank_for_energy([1.0, 0.0], energy)


@pytest.mark.parametrize("bound", [-1e-9, math.nan])
def test_rank_for_error_refuses(bound: float) -> None:
    with pytest.raises(RankError):
        ranks.rank_for_error([1.0, 0.0], bound)


def test_what_no_rank_reaches_is_an_error() -> None:
    # a Semi-NMF's bound at full rank isn't 0 where the non-negative side is the long one
    with pytest.raises(RankError, match="no rank"):
        ranks.rank_for_error([4.0, 2.0, 1.0], 0.1)
    with pytest.raises(RankError, match="no rank"):
        ranks.rank_for_energy([4.0, 2.0, 1.0], 0.99)


@given(sizes, sizes, st.integers(1, 5000), st.sampled_from(["F64", "F32", "F16", "BF16"]))
def test_stored_bytes_are_those_of_the_stored_tensors(m: int, n: int, r: int, dtype: str) -> None:
    (u, u_shape, _), (v, v_shape, _) = ranks.stored_tensors("svd", m, n, r, dtype)
    assert (u, u_shape, v, v_shape) == (".U", (m, r), ".V", (r, n))
    assert ranks.stored_nbytes("svd", m, n, r, dtype) == r * (m + n) * ITEMSIZE[dtype]
    assert ranks.stored_params("semi-nmf", m, n, r) == r * (m + n)

    kept = min(m * n, r * (m + n))
    assert ranks.stored_params("prune", m, n, r) == kept
    assert ranks.stored_tensors("prune", m, n, r, dtype) == (
        (".mask", (math.ceil(m * n / 8),), "U8"),
        (".values", (kept,), dtype),
    )
    nbytes = math.ceil(m * n / 8) + kept * ITEMSIZE[dtype]
    assert ranks.stored_nbytes("prune", m, n, r, dtype) == nbytes


def test_a_rank_out_of_range_is_named_with_its_range() -> None:
    with pytest.raises(RankError, match=r"\[1, 650\]; got 800 for shape \(2600, 650\)") as caught:
        ranks.check_rank(2600, 650, 800)
    assert "519" in str(caught.value.hint)
    ranks.check_rank(2600, 650, 650)


def test_importing_ranks_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; import ckptshrink.linalg.ranks; "
        "sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
