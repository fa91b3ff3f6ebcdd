"""Two values with standard errors and nothing else: the widest of the tests, and an honest one."""

import math
from typing import Final

from scipy.stats import norm

from ckptshrink.evaluation.gate.finding import (
    CLEAR_OF_ZERO,
    FEWEST,
    NO_SHARE,
    Finding,
    Scale,
    because,
)
from ckptshrink.evaluation.gate.power import USUAL_POWER
from ckptshrink.evaluation.gate.verdict import Rule, Settings, Status
from ckptshrink.evaluation.metrics import Metric

HINT: Final = "per-example results on both sides let a gate compare them in pairs"


def compare(
    baseline: Metric, candidate: Metric, scale: Scale, rule: Rule, settings: Settings
) -> Finding:
    """Decide a rule by values and their standard errors, as if of different examples.

    Where both were scored on the same examples, which is not used, the limits are wider than they
    need be.

    Parameters
    ----------
    baseline, candidate : Metric
        Of finite values.

    Returns
    -------
    Finding
        INCONCLUSIVE where one has no standard error.
    """
    before, after = baseline.number, candidate.number
    if scale.relative and not before:
        return Finding("INCONCLUSIVE", NO_SHARE)
    loss = float(scale.loss(before, after))
    n = min((m.n for m in (baseline, candidate) if m.n is not None), default=None)
    errors = [_error(metric, scale) for metric in (baseline, candidate)]
    if errors[0] is None or errors[1] is None:
        what = "neither side has" if errors == [None, None] else "one side has no"
        why = f"{what} per-example results or a standard error; {HINT}"
        return Finding("INCONCLUSIVE", why, loss=loss, n=n)
    if n is not None and n < FEWEST:
        why = f"{n} examples are too few; {FEWEST} are the least"
        return Finding("INCONCLUSIVE", why, loss=loss, n=n)
    if scale.relative and abs(before) < CLEAR_OF_ZERO * errors[0]:
        return Finding("INCONCLUSIVE", NO_SHARE, loss=loss, n=n)
    error = scale.factor * math.hypot(errors[0], errors[1])
    if scale.relative:
        error = scale.factor * math.hypot(errors[0] * after / before, errors[1]) / abs(before)
    if not error:
        why = f"both standard errors are 0, which says nothing; {HINT}"
        return Finding("INCONCLUSIVE", why, loss=loss, n=n)
    low = loss - float(norm.isf(settings.alarm)) * error
    high = loss + float(norm.isf(settings.alpha)) * error
    status: Status = "INCONCLUSIVE"
    if low > rule.amount:
        status = "FAIL"
    elif high < rule.amount:
        status = "PASS"
    sure = float(norm.isf(settings.alarm) + norm.ppf(USUAL_POWER))
    shows = rule.amount + sure * error
    why = because(status, rule, settings, low, high, shows)
    if status == "INCONCLUSIVE":
        why += f"; {HINT}"
    return Finding(
        status, why, loss=loss, low=low, high=high, method="unpaired", n=n, detectable=shows
    )


def _error(metric: Metric, scale: Scale) -> float | None:
    """Return the standard error; of a proportion at its bound, where it is 0, one that is not."""
    if metric.stderr != 0 or scale.whole is None or not metric.n:
        return metric.stderr
    # Agresti and Coull: two more of each kind
    share = (metric.number / scale.whole * metric.n + 2) / (metric.n + 4)
    return scale.whole * math.sqrt(share * (1 - share) / (metric.n + 4))
