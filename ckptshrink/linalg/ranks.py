"""Ranks and what they cost: break-even, ratio, energy, error, and the bytes that are stored.

Plain arithmetic on shapes. Imports neither torch nor numpy, so that planning by shapes doesn't.
"""

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Final

from ckptshrink.errors import RankError
from ckptshrink.tensors import nbytes_of

PRUNE: Final = "prune"
"""The one built-in method that stores a mask and values; every other one stores a pair."""

StoredTensor = tuple[str, tuple[int, ...], str]
"""Suffix of the stored name, shape, and dtype code."""


def break_even(m: int, n: int) -> int:
    """Return the largest rank at which a pair has fewer parameters than the matrix; may be 0.

    Examples
    --------
    >>> break_even(2600, 650), break_even(4, 4), break_even(1, 7)
    (519, 1, 0)
    """
    return (m * n - 1) // (m + n)


def pair_params(m: int, n: int, r: int) -> int:
    """Return the number of parameters of U (m, r) and V (r, n)."""
    return r * (m + n)


def kept_values(m: int, n: int, r: int) -> int:
    """Return how many values pruning keeps at rank `r`: as many as a pair has, at most all."""
    return min(m * n, pair_params(m, n, r))


def check_rank(m: int, n: int, r: int) -> None:
    """Check that a rank fits a matrix.

    Raises
    ------
    RankError
        `r` is not in 1 to min(m, n). The message gives the range, `r` and the shape.
    """
    if not 1 <= r <= min(m, n):
        raise RankError(
            f"rank must lie in [1, {min(m, n)}]; got {r} for shape ({m}, {n})",
            hint=f"a pair is smaller than the matrix up to rank {break_even(m, n)}",
        )


def rank_for_ratio(m: int, n: int, ratio: float) -> int:
    """Return the largest rank whose pair has at most `ratio` times the matrix's parameters.

    Parameters
    ----------
    m, n : int
        Rows and columns.
    ratio : float, positive
        Parameters after / before.

    Returns
    -------
    int
        At least 1, even where a pair of rank 1 is above `ratio`, and at most min(m, n).

    Raises
    ------
    RankError
        `ratio` is not a positive, finite number.

    Examples
    --------
    >>> rank_for_ratio(2600, 650, 0.5)
    260
    """
    if not (math.isfinite(ratio) and ratio > 0):
        raise RankError(f"ratio must be positive; got {ratio}")
    # The decimal that was written, not its binary neighbour: 0.3 is a little below 3/10 in
    # binary, and would lose the rank that meets it exactly.
    r = int(Fraction(str(ratio)) * m * n / (m + n))
    return max(1, min(r, m, n))


def rank_for_energy(sq_errors: Iterable[float], energy: float) -> int:
    """Return the smallest rank that keeps a given share of the squared norm.

    Parameters
    ----------
    sq_errors : iterable of float
        Squared Frobenius error at ranks 0, 1, ..., k; the first is the squared norm.
    energy : float in (0, 1]
        Kept share, ``1 - sq_errors[r] / sq_errors[0]``. It is compared in double precision, so
        1 asks for all but 1e-16 of it, which a rank-deficient matrix has at its rank.

    Raises
    ------
    RankError
        `energy` is out of range, or no rank keeps so much.

    Examples
    --------
    >>> rank_for_energy([10.0, 1.0, 0.1, 0.0], 0.9), rank_for_energy([10.0, 1.0, 0.1, 0.0], 1)
    (1, 3)
    """
    if not 0 < energy <= 1:
        raise RankError(f"energy must lie in (0, 1]; got {energy}")
    errors = [float(e) for e in sq_errors]
    for r, relative in enumerate(_relative(errors)):
        if r and 1.0 - relative >= energy:
            return r
    raise RankError(f"no rank keeps {energy:g} of the energy")


def rank_for_error(sq_errors: Iterable[float], max_rel_error: float) -> int:
    """Return the smallest rank whose relative Frobenius error is at most `max_rel_error`.

    Parameters
    ----------
    sq_errors : iterable of float
        Squared Frobenius error at ranks 0, 1, ..., k; the first is the squared norm.
    max_rel_error : float, not negative

    Raises
    ------
    RankError
        `max_rel_error` is negative or not a number, or no rank reaches it.

    Examples
    --------
    >>> rank_for_error([100.0, 25.0, 4.0, 0.0], 0.5), rank_for_error([100.0, 25.0, 4.0, 0.0], 0.4)
    (1, 2)
    """
    if not max_rel_error >= 0:
        raise RankError(f"relative error must not be negative; got {max_rel_error}")
    errors = [float(e) for e in sq_errors]
    for r, relative in enumerate(_relative(errors)):
        if r and math.sqrt(relative) <= max_rel_error:
            return r
    raise RankError(f"no rank has a relative error of at most {max_rel_error:g}")


def stored_tensors(method: str, m: int, n: int, r: int, dtype: str) -> tuple[StoredTensor, ...]:
    """Return the tensors that a method stores for a matrix, in the order they are written.

    Parameters
    ----------
    method : str
        Name of a factorizer; any but ``"prune"`` stores a pair.
    m, n, r : int
        Shape and rank.
    dtype : str
        Storage dtype, a code of `tensors.ITEMSIZE`.

    Returns
    -------
    tuple of (suffix, shape, dtype)

    Examples
    --------
    >>> stored_tensors("svd", 8, 6, 2, "F32")
    (('.U', (8, 2), 'F32'), ('.V', (2, 6), 'F32'))
    >>> stored_tensors("prune", 9, 6, 2, "F16")
    (('.mask', (7,), 'U8'), ('.values', (30,), 'F16'))
    """
    if method == PRUNE:
        values = (kept_values(m, n, r),)
        return (".mask", (-(-m * n // 8),), "U8"), (".values", values, dtype)
    return (".U", (m, r), dtype), (".V", (r, n), dtype)


def stored_params(method: str, m: int, n: int, r: int) -> int:
    """Return the number of parameters that a method stores; a mask's bits are not parameters."""
    return kept_values(m, n, r) if method == PRUNE else pair_params(m, n, r)


def stored_nbytes(method: str, m: int, n: int, r: int, dtype: str) -> int:
    """Return the bytes that a method stores, masks included."""
    return sum(nbytes_of(shape, code) for _, shape, code in stored_tensors(method, m, n, r, dtype))


def _relative(errors: list[float]) -> list[float]:
    """Squared errors over the squared norm; all 0 for a zero matrix."""
    norm = errors[0]
    return [e / norm if norm > 0 else 0.0 for e in errors]
