"""Share one budget of bytes over matrices so that the summed squared error is least.

A choice among options a matrix, each with its bytes and its error: the ranks, and staying dense.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ckptshrink.errors import PlanError
from ckptshrink.planning.knapsack import Floats, Ints, Options, solve, undominated


@dataclass(frozen=True, slots=True)
class Curve:
    """The options of one matrix.

    Attributes
    ----------
    name : str
    costs : sequence of float, (options,)
        Bytes of each option, in any order.
    errors : sequence of float, (options,)
        Squared Frobenius error of each option.
    """

    name: str
    costs: Sequence[float] | Floats
    errors: Sequence[float] | Floats


@dataclass(frozen=True, slots=True)
class Allocation:
    """The option taken of each matrix.

    Attributes
    ----------
    choice : tuple of int
        Index into the options of each curve.
    cost : float
        Summed bytes.
    error : float
        Summed squared error.
    bound : float
        A summed squared error that no choice within the budget goes below.
    gap : float
        ``(error - bound) / error``; 0 where `error` is proven to be the least.
    """

    choice: tuple[int, ...]
    cost: float
    error: float
    bound: float
    gap: float


def allocate(curves: Sequence[Curve], budget: float) -> Allocation:
    """Choose one option of every curve, of least summed error at a summed cost within `budget`.

    Parameters
    ----------
    curves : sequence of Curve
    budget : float
        Bytes.

    Returns
    -------
    Allocation
        Always the same one for the same input.

    Raises
    ------
    PlanError
        The cheapest options together exceed the budget; says the smallest cost there is. Or a curve
        is empty or holds NaN, infinity or a negative number.

    Notes
    -----
    Exact to rounding for curves of matrices of a few different shapes. The search is limited by
    what it expands and not by time; where it is cut off, `gap` says what it could still have won.
    """
    kept = [_undominated(curve) for curve in curves]
    classes = [options for options, _ in kept]
    least = math.fsum(c.costs[0] for c in classes)
    if math.isnan(budget) or least > budget:
        raise PlanError(
            f"a budget of {budget:,.0f} bytes can't be met: the smallest options take {least:,.0f}",
            hint=f"give at least {least:,.0f} bytes",
        )
    if math.fsum(c.costs[-1] for c in classes) <= budget:
        picks: tuple[int, ...] = tuple(len(c.costs) - 1 for c in classes)
        bound, exact = 0.0, True
    else:
        solution = solve(classes, budget)
        picks, bound, exact = solution.picks, solution.bound, solution.exact
    error = math.fsum(c.losses[j] for c, j in zip(classes, picks, strict=True))
    return Allocation(
        choice=tuple(int(index[j]) for (_, index), j in zip(kept, picks, strict=True)),
        cost=math.fsum(c.costs[j] for c, j in zip(classes, picks, strict=True)),
        error=error,
        bound=error if exact else bound,
        gap=0.0 if exact else (error - bound) / error,
    )


def _undominated(curve: Curve) -> tuple[Options, Ints]:
    """Return the options that no other is as good as in both, by cost, and their indices."""
    costs = np.asarray(curve.costs, dtype=np.float64)
    errors = np.asarray(curve.errors, dtype=np.float64)
    if costs.ndim != 1 or costs.shape != errors.shape or not costs.size:
        raise PlanError("an option curve takes as many errors as costs", tensor=curve.name)
    if not (np.isfinite(costs).all() and np.isfinite(errors).all()):
        raise PlanError("an option curve holds NaN or infinity", tensor=curve.name)
    # a tail of a spectrum that was got by subtraction may end a rounding error below zero
    if costs.min() < 0 or errors.min() < -1e-6 * errors.max():
        raise PlanError("an option curve holds a negative number", tensor=curve.name)
    errors = np.maximum(errors, 0.0)
    index = undominated(costs, errors)
    return Options(costs[index], errors[index]), index
