"""The tests of results that are right or wrong: what follows from two counts.

`worse` is how many examples only the baseline got right, `better` how many only the candidate did.
Everything here but `limits` takes arrays too, so that power is computed with the very function
that decides.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import binom, norm

from ckptshrink.evaluation.gate.verdict import Settings

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

ALIKE: Final = 0.01
"""Where no example changed, the share of changing examples that n must rule out for a PASS.

A margin of 0 is never *shown* by results that are all alike, however many there are; but who allows
no drop at all and gets back the same results wants to hear PASS. The share is that of the default
margin, so that a handful of examples is still too few. It holds for every margin below: a rule that
allows more never passes less."""

_STEEP: Final = 1e6
"""Stands for an infinite score, at the ends of the range of a loss."""


def score(worse: ArrayLike, better: ArrayLike, n: ArrayLike, margin: float) -> Floats:
    """Return the score statistic of the loss against a margin.

    Parameters
    ----------
    worse, better : array_like
        Counts; they need not be whole, see `paired`.
    n : array_like
        Examples.
    margin : float
        A difference of proportions, in [-1, 1].

    Returns
    -------
    array of float64
        About standard normal where the true loss is the margin; larger speaks for a larger loss.
        Decreasing in `margin`. 0 where there is nothing to tell by, infinite where the margin can't
        be the loss.

    Source
    ------
    Tango (1998), Statistics in Medicine 17, 891-908.

    Examples
    --------
    >>> float(score(1, 0, 44, 0.0))
    1.0
    """
    if margin < 0:  # the formula below loses digits there; the test is symmetric
        return -score(better, worse, n, -margin)
    b, c, total = np.broadcast_arrays(
        np.asarray(worse, np.float64), np.asarray(better, np.float64), np.asarray(n, np.float64)
    )
    # q: the most likely share of `better` if the loss were the margin, a root of
    # 2n q² + linear q + constant = 0, constant <= 0; the form without cancellation is taken
    linear = -b - c + (2 * total - b + c) * margin
    constant = -c * margin * (1 - margin)
    root = np.sqrt(linear * linear - 8 * total * constant)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.where(linear > 0, -2 * constant / (linear + root), (root - linear) / (4 * total))
        variance = total * (2 * q + margin * (1 - margin))
        more = b - c - total * margin
        statistic = more / np.sqrt(variance)
        certain = np.where(more == 0, 0.0, np.copysign(np.inf, more))
    return np.where(variance > 0, statistic, certain)


def mcnemar(worse: ArrayLike, better: ArrayLike) -> Floats:
    """Return the exact one-sided p-value of McNemar's test: so many worse or more, by chance.

    Examples
    --------
    >>> float(mcnemar(7, 0))  # 1 / 2**7
    0.0078125
    """
    b, c = np.asarray(worse), np.asarray(better)
    return np.asarray(binom.sf(b - 1, b + c, 0.5), dtype=np.float64)


def decisions(
    worse: ArrayLike, better: ArrayLike, n: ArrayLike, margin: float, settings: Settings
) -> tuple[Bools, Bools]:
    """Return where the verdict is FAIL, and where it is PASS.

    FAIL where McNemar's exact test finds the candidate worse, and the score test finds the loss
    above the margin, both at `settings.alarm`: of a candidate that is as good as the baseline, no
    more than `alarm` of all gates FAIL, whatever n. PASS where the score test finds the loss below
    the margin at `settings.alpha`, or where no example changed and n is large enough (`ALIKE`).

    Parameters
    ----------
    worse, better, n : array_like of int
    margin : float
        Allowed loss of the proportion, in [0, 1].

    Notes
    -----
    The score test keeps its level closely, not exactly: by exact enumeration for n from 100 to
    2,000, margins from 0.005 to 0.05 and up to 0.2 disagreement, a loss of exactly the margin got
    PASS in at most 6.0% at alpha 5%, and FAIL in at most 2.0% at alarm 1%, both where hardly any
    example is better.
    """
    b, c = np.asarray(worse), np.asarray(better)
    statistic = score(b, c, n, margin)
    fails = (statistic >= norm.isf(settings.alarm)) & (mcnemar(b, c) <= settings.alarm)
    same = score(0, 0, n, max(margin, ALIKE))
    passes = np.where(b + c == 0, same, statistic) <= -norm.isf(settings.alpha)
    return fails, passes


def limits(worse: float, better: float, n: int, settings: Settings) -> tuple[float, float]:
    """Return the one-sided limits of the loss, at 1 - alarm from below and 1 - alpha from above.

    Parameters
    ----------
    worse, better : float
        Counts; they need not be whole.
    n : int, >= 1

    Returns
    -------
    (float, float)
        In [-1, 1]: the margins up to, and from which the score test rejects.
    """
    loss = (worse - better) / n
    least, most = float(norm.isf(settings.alarm)), float(norm.isf(settings.alpha))

    def above(margin: float, level: float) -> float:
        if abs(margin) >= 1:
            return -math.copysign(_STEEP, margin)
        return float(np.clip(score(worse, better, n, margin) - level, -_STEEP, _STEEP))

    low = -1.0 if loss <= -1 else _root(above, -1.0, loss, least)
    high = 1.0 if loss >= 1 else _root(above, loss, 1.0, -most)
    return low, high


def _root(above: Any, left: float, right: float, level: float) -> float:
    return float(brentq(above, left, right, args=(level,), xtol=1e-12, rtol=1e-12))
