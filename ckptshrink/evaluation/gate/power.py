"""What a gate can be expected to answer, stated before it runs.

Proportions and losses are fractions here: a percentage point is 0.01.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, norm

from ckptshrink.errors import PlanError
from ckptshrink.evaluation.gate.counts import decisions
from ckptshrink.evaluation.gate.verdict import Settings

Ints = NDArray[np.int64]

USUAL_POWER: Final = 0.8
"""4 of 5 gates."""

_NEGLIGIBLE: Final = 1e-12
"""Probability of what is left out of a sum."""

_MOST_COUNTS: Final = 5_000
"""Counts up to which the bounds of all are found once; above, each time for the likely ones."""

_MOST_NEEDED: Final = 1_000_000
_NEAR_ENOUGH: Final = 1_000
"""One in so many of the examples that are needed is not looked for."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """Probabilities of the three answers."""

    p_pass: float
    p_fail: float
    p_inconclusive: float


def power(n: int, loss: float, disagreement: float, margin: float, settings: Settings) -> Outlook:
    """Return how likely each answer is on results that are right or wrong.

    By exact summation over what the counts of examples that got worse and that got better can be,
    with the decision that `counts.decisions` takes on each.

    Parameters
    ----------
    n : int
        Examples.
    loss : float
        True loss of the proportion, in [-1, 1]; negative is a gain.
    disagreement : float
        True share of examples that only one of the two gets right; at least as large as the loss is
        taken.
    margin : float
        What the rule allows, in [0, 1].

    Raises
    ------
    PlanError
        A share is none.

    Examples
    --------
    >>> outlook = power(2_000, 0.03, 0.05, 0.01, Settings())
    >>> round(outlook.p_fail, 2)
    0.97
    """
    _check(loss=abs(loss), disagreement=disagreement, margin=margin)
    return _outlook(n, loss, disagreement, margin, settings)


def _outlook(
    n: int,
    loss: float,
    disagreement: float,
    margin: float,
    settings: Settings,
    bounds: "_Bounds | None" = None,
) -> Outlook:
    share = max(disagreement, abs(loss))
    # what has no chance to be seen once is 0: scipy raises OverflowError on the smallest of floats
    least = _NEGLIGIBLE / max(n, 1)
    worse, better = (p if p > least else 0.0 for p in ((share + loss) / 2, (share - loss) / 2))
    if bounds is None:
        likely = (binom.ppf(_NEGLIGIBLE, n, better), binom.isf(_NEGLIGIBLE, n, better))
        first, last = (max(0, int(count)) for count in likely) if better > 0 else (0, 0)
        bounds = _Bounds.of(n, first, last, margin, settings)
    return bounds.outlook(worse, better)


def detectable(
    n: int,
    disagreement: float,
    margin: float,
    settings: Settings,
    power: float = USUAL_POWER,
) -> float | None:
    """Return the smallest true loss of a proportion that so many gates answer with FAIL.

    Parameters
    ----------
    n, disagreement, margin, settings
        See `power`. The disagreement grows where the loss is larger than it.
    power : float
        Share of the gates, in (0, 1).

    Returns
    -------
    float or None
        None where n shows no loss at all that often.
    """
    _check(disagreement=disagreement, margin=margin, power=power)
    if n < 1:
        return None
    last = int(binom.isf(_NEGLIGIBLE, n, disagreement / 2)) if disagreement > 0 else 0
    every = _Bounds.of(n, 0, last, margin, settings) if last <= _MOST_COUNTS else None

    def short(loss: float) -> float:
        found = _outlook(n, loss, disagreement, margin, settings, every)
        return found.p_fail - power

    if short(1.0) < 0:
        return None
    if short(0.0) >= 0:  # less than the risk of a false alarm was asked for
        return 0.0
    return float(brentq(short, 0.0, 1.0, xtol=1e-7))


def needed(
    loss: float,
    disagreement: float,
    margin: float,
    settings: Settings,
    power: float = USUAL_POWER,
) -> int | None:
    """Return how many examples so many gates need: to FAIL a loss above the margin, else to PASS.

    Parameters
    ----------
    loss, disagreement, margin, settings
        See `power`.
    power : float
        Share of the gates, in (0, 1).

    Returns
    -------
    int or None
        To within 0.1%, and what whole counts allow: power rises with n, but not from each n to the
        next. None where a million are too few.
    """
    _check(loss=abs(loss), disagreement=disagreement, margin=margin, power=power)
    if loss == margin:
        return None

    def enough(n: int) -> bool:
        found = _outlook(n, loss, disagreement, margin, settings)
        return (found.p_fail if loss > margin else found.p_pass) >= power

    high = 16
    while not enough(high):
        high *= 2
        if high > _MOST_NEEDED:
            return None
    low = high // 2 if high > 16 else 0
    while high - low > max(1, high // _NEAR_ENOUGH):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def power_normal(n: int, loss: float, sd: float, margin: float, settings: Settings) -> Outlook:
    """Return how likely each answer is on any other results, by the normal approximation.

    Parameters
    ----------
    n : int
        Examples.
    loss, margin : float
        In the rule's unit.
    sd : float
        Standard deviation of the paired differences of one example, in the rule's unit.
    """
    if n < 1:
        return Outlook(0.0, 0.0, 1.0)
    if sd <= 0:
        return Outlook(float(loss < margin), float(loss > margin), float(loss == margin))
    error = sd / math.sqrt(n)
    p_fail = float(norm.sf(norm.isf(settings.alarm) - (loss - margin) / error))
    p_pass = float(norm.sf(norm.isf(settings.alpha) - (margin - loss) / error))
    return Outlook(p_pass, p_fail, 1 - p_pass - p_fail)


def detectable_normal(
    n: int, sd: float, margin: float, settings: Settings, power: float = USUAL_POWER
) -> float:
    """Return the smallest true loss that so many gates answer with FAIL, in the unit of `sd`."""
    return margin + float(norm.isf(settings.alarm) + norm.ppf(power)) * sd / math.sqrt(n)


def _check(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise PlanError(
                f"a {name} is a share in [0, 1]; got {share:g}", hint="a percentage point is 0.01"
            )


@dataclass(frozen=True, slots=True)
class _Bounds:
    """For each count of examples that got better, the counts of worse that are PASS and FAIL.

    Attributes
    ----------
    n : int
    better : (k,) int
        Consecutive.
    pass_to, fail_from : (k,) int
        Most worse that is PASS, -1 for none; least that is FAIL, more than there can be for none.
    """

    n: int
    better: Ints
    pass_to: Ints
    fail_from: Ints

    @staticmethod
    @lru_cache(maxsize=8)
    def of(n: int, first: int, last: int, margin: float, settings: Settings) -> "_Bounds":
        """Find the bounds by bisection: more worse never turns FAIL, or away from PASS, back."""
        better = np.arange(first, last + 1)
        # where the answer changes: the last count known not to FAIL, the first known to
        unfailed, failed = np.full_like(better, -1), n - better + 1
        passed, unpassed = np.full_like(better, -1), n - better + 1
        while ((failed - unfailed > 1) | (unpassed - passed > 1)).any():
            middle = np.maximum((failed + unfailed) // 2, 0)
            fails, _ = decisions(middle, better, n, margin, settings)
            open_ = failed - unfailed > 1
            failed = np.where(open_ & fails, middle, failed)
            unfailed = np.where(open_ & ~fails, middle, unfailed)
            middle = np.maximum((unpassed + passed) // 2, 0)
            _, passes = decisions(middle, better, n, margin, settings)
            open_ = unpassed - passed > 1
            passed = np.where(open_ & passes, middle, passed)
            unpassed = np.where(open_ & ~passes, middle, unpassed)
        return _Bounds(n, better, passed, failed)

    def outlook(self, worse: float, better: float) -> Outlook:
        """Return the probabilities of the answers for true shares of worse and better."""
        p = binom.pmf(self.better, self.n, better)  # (k,)
        rest = self.n - self.better
        share = min(1.0, worse / (1 - better)) if better < 1 else 0.0
        p_fail = float(p @ binom.sf(self.fail_from - 1, rest, share))
        p_pass = float(p @ binom.cdf(self.pass_to, rest, share))
        return Outlook(p_pass, p_fail, max(0.0, 1 - p_pass - p_fail))
