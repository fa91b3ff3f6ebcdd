"""Whether a loss is within what a rule allows, by results of both models on the same examples.

Results that are right or wrong go to McNemar's and the score test, anything else to `ratios`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckptshrink.evaluation.gate import counts, ratios
from ckptshrink.evaluation.gate.finding import (
    NO_SHARE,
    Columns,
    Finding,
    Scale,
    because,
    chance,
    unchanged,
)
from ckptshrink.evaluation.gate.power import detectable
from ckptshrink.evaluation.gate.verdict import Rule, Settings, Status
from ckptshrink.evaluation.metrics import Aggregate


def compare(
    baseline: Columns,
    candidate: Columns,
    of: Aggregate,
    scale: Scale,
    rule: Rule,
    settings: Settings,
) -> Finding:
    """Decide a rule by results on the same examples.

    Parameters
    ----------
    baseline, candidate : Columns
        Of the same n examples in the same order, which matters to nothing but which resamples the
        bootstrap draws. No weight is negative.
    of : Aggregate
        How both make the metric.
    scale : Scale
        How `rule` counts the loss.

    Returns
    -------
    Finding
        Limits are in the rule's unit.

    Raises
    ------
    PlanError
        The bootstrap draws too few resamples for risks as small as these.

    Notes
    -----
    Examples are taken as independent draws.

    A margin relative to a share of right answers is taken at the baseline's value, as if that were
    certain: that makes PASS and FAIL at most rarer. Relative to a share of *wrong* answers it would
    make them too frequent, and the bootstrap, which draws the baseline anew, decides.
    """
    if scale.relative and not of.value(baseline.score, baseline.weight):
        return Finding("INCONCLUSIVE", NO_SHARE, n=len(baseline.score))
    whole = _whole(baseline, candidate, of, scale)
    if whole is None or (scale.relative and scale.sign > 0):
        return ratios.compare(baseline, candidate, of, scale, rule, settings)
    return _right_or_wrong(baseline.score, candidate.score, whole, scale, rule, settings)


def _whole(baseline: Columns, candidate: Columns, of: Aggregate, scale: Scale) -> float | None:
    """Return what a right answer scores if an example can only score that or 0, else None."""
    if of.transform != "mean" or of.weight is not None:
        return None
    whole = scale.whole or 1.0
    both = (baseline.score, candidate.score)
    return whole if all(((s == 0) | (s == whole)).all() for s in both) else None


def worse_and_better(
    baseline: NDArray[Any], candidate: NDArray[Any], *, lower_is_better: bool = False
) -> tuple[Any, Any]:
    """Return on how many examples the candidate scores worse, and on how many better.

    Parameters
    ----------
    baseline, candidate : (..., n)

    Returns
    -------
    (array of int, array of int)
        Of shape (...).
    """
    less = np.count_nonzero(candidate < baseline, axis=-1)
    more = np.count_nonzero(candidate > baseline, axis=-1)
    return (more, less) if lower_is_better else (less, more)


def _right_or_wrong(
    baseline: NDArray[np.float64],
    candidate: NDArray[np.float64],
    whole: float,
    scale: Scale,
    rule: Rule,
    settings: Settings,
) -> Finding:
    n = len(baseline)
    found = worse_and_better(baseline, candidate, lower_is_better=scale.sign > 0)
    worse, better = int(found[0]), int(found[1])
    # all of n worse, in the rule's unit
    unit = whole * scale.factor / (float(baseline.mean()) if scale.relative else 1.0)
    margin = min(rule.amount / unit, 1.0)
    fails, passes = counts.decisions(worse, better, n, margin, settings)
    status: Status = "FAIL" if fails else "PASS" if passes else "INCONCLUSIVE"
    low, high = (unit * limit for limit in counts.limits(worse, better, n, settings))
    least = detectable(n, (worse + better) / n, margin, settings)
    shows = None if least is None else unit * least
    why = because(status, rule, settings, low, high, shows)
    if not worse + better:
        why = unchanged(n, status, settings)
    elif status == "INCONCLUSIVE" and low > rule.amount:
        p = float(counts.mcnemar(worse, better))
        why = chance(f"{worse} examples got worse and {better} better", p, settings)
    return Finding(
        status, why, loss=unit * (worse - better) / n, low=low, high=high,
        method="McNemar and score test", n=n, worse=worse, better=better, detectable=shows,
    )  # fmt: skip
