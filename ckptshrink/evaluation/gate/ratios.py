"""The tests of any metric that is made of sums over examples: a mean, a ratio, a perplexity."""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckptshrink.evaluation.gate import counts
from ckptshrink.evaluation.gate.finding import (
    CLEAR_OF_ZERO,
    FEWEST,
    NO_SHARE,
    Columns,
    Finding,
    Scale,
    because,
    chance,
    unchanged,
)
from ckptshrink.evaluation.gate.power import detectable_normal
from ckptshrink.evaluation.gate.resample import flipped, grouped, percentile_limits
from ckptshrink.evaluation.gate.verdict import Rule, Settings, Status
from ckptshrink.evaluation.metrics import Aggregate

Floats = NDArray[np.float64]

FEW_CHANGES: Final = 20
"""Changed examples below which the bootstrap is not trusted: it can't draw a change that it has not
seen. Of F1-like results its upper limit at 95% was too low in 22% of samples with 2 or 3 changes,
in 7% with 10, in 5.5% with 20; that of the score test in at most 4.2%."""


def compare(
    baseline: Columns,
    candidate: Columns,
    of: Aggregate,
    scale: Scale,
    rule: Rule,
    settings: Settings,
) -> Finding:
    """Decide a rule by the sums of results on the same examples; see `paired.compare`.

    FAIL where the loss is above the margin at 1 - alarm and, at `alarm`, larger than random swaps
    of the two models' results make it: of a candidate that is as good as the baseline, no more than
    `alarm` of all gates FAIL. PASS where it is below the margin at 1 - alpha.

    The limits are the paired bootstrap's. Where fewer than `FEW_CHANGES` examples changed they are
    the score test's, with each change counted as its part of the largest possible: the range of a
    proportion, else the largest seen.
    """
    pair = _Pair(baseline, candidate, of, scale)
    trouble = pair.trouble()
    if trouble:
        return Finding("INCONCLUSIVE", trouble, loss=pair.loss, n=pair.n)
    n_changed = int(np.count_nonzero(pair.change))
    few = n_changed < FEW_CHANGES
    low, high = (pair.few_limits if few else pair.bootstrap_limits)(settings)
    above = low > rule.amount
    p = flipped(grouped([pair.change], settings)[0], settings) if above else 1.0
    status: Status = "INCONCLUSIVE"
    if p <= settings.alarm:
        status = "FAIL"
    elif high < rule.amount or (not n_changed and pair.alike_means_something(settings)):
        status = "PASS"
    shows = None if few else detectable_normal(pair.n, pair.spread(), rule.amount, settings)
    why = because(status, rule, settings, low, high, shows)
    if not n_changed:
        why = unchanged(pair.n, status, settings)
    elif status == "INCONCLUSIVE" and above:
        why = chance(f"{n_changed} of {pair.n} examples changed", p, settings)
    return Finding(
        status, why, loss=pair.loss, low=low, high=high,
        method="score test" if few else "paired bootstrap", n=pair.n, detectable=shows,
    )  # fmt: skip


class _Pair:
    """Results of two models on the same n examples, as ratios of sums.

    A mean is a ratio whose weights are all one.

    Attributes
    ----------
    n : int
    loss : float
        In the rule's unit.
    change : (n,)
        How much worse the candidate is on each, such that the mean is about the loss of the ratio.
        Swapping the two models turns every sign.
    """

    def __init__(self, baseline: Columns, candidate: Columns, of: Aggregate, scale: Scale) -> None:
        self.n = len(baseline.score)
        self._of, self._scale = of, scale
        ones = np.ones(self.n)
        self._scores = baseline.score, candidate.score
        self._weights = tuple(ones if c.weight is None else c.weight for c in (baseline, candidate))
        sums = [float(column.sum()) for column in (*self._scores, *self._weights)]
        self.loss = float(self._loss(*sums))
        self._ratios = sums[0] / sums[2], sums[1] / sums[3]
        self._means = sums[2] / self.n, sums[3] / self.n  # of weights
        middle = (sums[0] + sums[1]) / (sums[2] + sums[3])
        less, more = (s - middle * w for s, w in zip(self._scores, self._weights, strict=True))
        self.change = scale.sign * 2 * (more - less) / sum(self._means)

    def trouble(self) -> str:
        """Return why this can't be decided, empty where it can."""
        if self.n < FEWEST:
            return f"{self.n} examples are too few; {FEWEST} are the least"
        if self._scale.relative and self._of.transform == "mean":
            error = self._influence(0).std(ddof=1) / math.sqrt(self.n)
            if abs(self._ratios[0]) < CLEAR_OF_ZERO * error:
                return NO_SHARE
        return ""

    def bootstrap_limits(self, settings: Settings) -> tuple[float, float]:
        """Return limits of the loss by the paired bootstrap."""
        columns = [*self._scores, self._weights[0]]
        if not np.array_equal(self._weights[0], self._weights[1]):
            columns.append(self._weights[1])
        return percentile_limits(grouped(columns, settings), self._loss, settings)

    def few_limits(self, settings: Settings) -> tuple[float, float]:
        """Return limits of the loss by the score test, each change a part of the largest possible.

        Changes in [-1, 1] vary no more than whole ones with the same sums of losses and of gains,
        so that the test errs on the side of saying nothing.
        """
        widest = float(np.abs(self.change).max())
        if self._scale.whole is not None:
            heaviest = max(float(weight.max()) for weight in self._weights)
            widest = max(widest, self._scale.whole * 2 * heaviest / sum(self._means))
        if not widest:
            return 0.0, 0.0
        lost = float(np.maximum(self.change, 0).sum()) / widest
        won = float(np.maximum(-self.change, 0).sum()) / widest
        low, high = counts.limits(lost, won, self.n, settings)
        return self._loss_of_change(widest * low), self._loss_of_change(widest * high)

    def alike_means_something(self, settings: Settings) -> bool:
        """Whether n results that did not change say that few do; see `counts.ALIKE`.

        A score without a range does not stay the same by chance; a proportion does.
        """
        return self._scale.whole is None or bool(counts.decisions(0, 0, self.n, 0.0, settings)[1])

    def spread(self) -> float:
        """Return the standard deviation of what one example adds to the loss, in its unit."""
        before, after = (self._transformed(ratio) for ratio in self._ratios)
        parts = [self._influence(i) * self._slope(self._ratios[i]) for i in (0, 1)]
        if self._scale.relative:
            each = (parts[1] - after / before * parts[0]) / abs(before)
        else:
            each = parts[1] - parts[0]
        return float(self._scale.factor * each.std(ddof=1))

    def _influence(self, i: int) -> Floats:
        """Return what each example adds to a ratio; the mean is 0."""
        part: Floats = (self._scores[i] - self._ratios[i] * self._weights[i]) / self._means[i]
        return part

    def _loss(self, before: Any, after: Any, weight: Any, weight_after: Any = None) -> Any:
        """Return the loss of sums of scores and weights."""
        weight_after = weight if weight_after is None else weight_after
        return self._scale.loss(
            self._transformed(before / weight), self._transformed(after / weight_after)
        )

    def _loss_of_change(self, change: float) -> float:
        """Return the loss of a ratio that is so much worse than the baseline's."""
        after = self._ratios[0] + self._scale.sign * change
        with np.errstate(over="ignore"):
            return float(
                self._scale.loss(self._transformed(self._ratios[0]), self._transformed(after))
            )

    def _transformed(self, ratio: Any) -> Any:
        return np.exp(ratio) if self._of.transform == "exp" else ratio

    def _slope(self, ratio: float) -> float:
        return float(np.exp(ratio)) if self._of.transform == "exp" else 1.0
