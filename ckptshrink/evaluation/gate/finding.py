"""How a rule counts a loss, what it is counted on, and what was found out about one."""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from ckptshrink.evaluation.gate.counts import ALIKE, score
from ckptshrink.evaluation.gate.verdict import Rule, Settings, Status
from ckptshrink.evaluation.metrics import FRACTION, PERCENT, Metric

FEWEST: Final = 30
"""Examples below which nothing but right and wrong is decided: of perplexities that lost exactly
the margin 8% got PASS at alpha 5% with 20 examples, 6% with 30 and more."""


CLEAR_OF_ZERO: Final = 4.0
"""Standard errors that a baseline must be away from 0 for a share of it to mean something."""

NO_SHARE: Final = (
    "the baseline is 0, or can't be told from it, and a share of that says nothing: allow a number"
)
"""Why a relative margin can't be decided."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How a rule counts a loss: as a difference or relative to the baseline, positive is worse.

    Attributes
    ----------
    sign : float
        1 where lower is better, -1 where higher is.
    factor : float
        A difference of 1 in the metric's unit, or relative to the baseline, in the rule's unit.
    relative : bool
    whole : float or None
        Width of the range of a bounded metric, in its unit.
    """

    sign: float
    factor: float
    relative: bool
    whole: float | None

    def loss(self, baseline: Any, candidate: Any) -> Any:
        """Return the loss, in the rule's unit, of values or arrays of them."""
        change = self.sign * (candidate - baseline)
        return self.factor * (change / abs(baseline) if self.relative else change)


def scale_of(rule: Rule, metric: Metric) -> Scale:
    """Return how a rule counts the loss of a metric."""
    whole = {FRACTION: 1.0, PERCENT: 100.0}.get(metric.unit)
    factor = 1.0
    if rule.unit == "%" or (rule.unit == "pp" and metric.unit == FRACTION):
        factor = 100.0
    return Scale(1.0 if metric.better == "lower" else -1.0, factor, rule.unit == "%", whole)


@dataclass(frozen=True, slots=True)
class Columns:
    """What a metric is made of, by example; see `Aggregate`.

    Attributes
    ----------
    score : (n,)
    weight : (n,) or None
    """

    score: NDArray[np.float64]
    weight: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about a loss; see `Check`, whose fields these are."""

    status: Status
    because: str
    loss: float | None = None
    low: float | None = None
    high: float | None = None
    method: str = ""
    n: int | None = None
    worse: int | None = None
    better: int | None = None
    detectable: float | None = None


def because(
    status: Status,
    rule: Rule,
    settings: Settings,
    low: float,
    high: float,
    detectable: float | None,
) -> str:
    """Return in one line why limits of a loss lead to a status."""
    allowed = f"{_with_unit(f'{rule.amount:.15g}', rule)} is allowed"
    if status == "FAIL":
        return f"the loss is above {_text(low, rule)} ({_sure(settings.alarm)}), {allowed}"
    if status == "PASS":
        return f"the loss is below {_text(high, rule)} ({_sure(settings.alpha)}), {allowed}"
    shows = "" if detectable is None else f"; a loss of {_text(detectable, rule)} would show"
    return f"the loss is {_text(low, rule)} to {_text(high, rule)}, {allowed}{shows}"


def unchanged(n: int, status: Status, settings: Settings) -> str:
    """Return in one line why results that are all alike lead to a status."""
    if status == "PASS":
        return f"not one of {n} examples changed"
    one = float(score(0, 0, 1, ALIKE))  # of n examples it is sqrt(n) times as much
    least = math.ceil((float(norm.isf(settings.alpha)) / one) ** 2)
    return f"not one of {n} examples changed; it takes {least} to say that few ever do"


def chance(what: str, p: float, settings: Settings) -> str:
    """Return in one line why a loss above the margin is not enough to FAIL."""
    return (
        f"{what}, which is chance in {100 * p:.2g} % of gates of equal models; FAIL takes "
        f"{100 * settings.alarm:g} %"
    )


def _text(value: float, rule: Rule) -> str:
    """Return a loss for people, in so many digits that it does not look like the margin."""
    telling = (d for d in (3, 6, 9, 12) if f"{value:.{d}g}" != f"{rule.amount:.{d}g}")
    return _with_unit(f"{value:.{next(telling, 15)}g}", rule)


def _with_unit(text: str, rule: Rule) -> str:
    return f"{text} {rule.unit}".rstrip()


def _sure(risk: float) -> str:
    return f"{100 * (1 - risk):.6g} %"
