"""What an evaluation measures: a metric, and how it is made of per-example results."""

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from ckptshrink.plan import Frozen

Better = Literal["higher", "lower"]
"""Which way a metric is better."""

FRACTION: Final = "fraction"
"""Unit of a proportion in [0, 1], such as an accuracy: a percentage point of it is 0.01."""

PERCENT: Final = "percent"
"""Unit of a proportion in [0, 100]: a percentage point of it is 1."""

_TRANSFORMS: Final[Mapping[str, Any]] = {"mean": lambda x: x, "exp": np.exp}


class Aggregate(Frozen):
    """How a metric is made of per-example results: ``transform(sum(score) / sum(weight))``.

    `score` and `weight` are columns of `Examples`; without `weight` each example weighs one.
    An accuracy is the mean of a column of zeros and ones. A perplexity is the ``exp`` of nats over
    words, both summed over lines.
    """

    score: str
    weight: str | None = None
    transform: Literal["mean", "exp"] = "mean"

    def value(self, score: ArrayLike, weight: ArrayLike | None = None) -> float:
        """Return the metric of per-example results (n,); NaN for none."""
        scores = np.asarray(score, dtype=np.float64)
        total = float(len(scores)) if weight is None else float(np.sum(weight))
        if not total:
            return math.nan
        with np.errstate(over="ignore", invalid="ignore"):
            return float(_TRANSFORMS[self.transform](scores.sum() / total))

    def stderr(self, score: ArrayLike, weight: ArrayLike | None = None) -> float | None:
        """Return the standard error over examples, None for fewer than two.

        Examples are taken as independent draws; a ratio of sums by the delta method.
        """
        scores = np.asarray(score, dtype=np.float64)  # (n,)
        n = len(scores)
        weights = np.ones(n) if weight is None else np.asarray(weight, dtype=np.float64)
        if n < 2 or not weights.sum():
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            ratio = scores.sum() / weights.sum()
            left: NDArray[np.float64] = scores - ratio * weights  # (n,)
            error = math.sqrt(n / (n - 1) * float((left**2).sum())) / float(weights.sum())
            return error * (float(np.exp(ratio)) if self.transform == "exp" else 1.0)


class Metric(Frozen):
    """One number that says how good a model is.

    Attributes
    ----------
    name : str
    value : float or None
        Never rounded. None where it is no finite number; `nonfinite` then says what it is.
    unit : str
        ``"fraction"`` (a proportion in [0, 1]), ``"percent"``, ``"1"`` (a plain number), ``"nats"``
        or whatever an evaluator calls it.
    better : "higher" or "lower"
    n : int or None
        Examples it was taken over.
    stderr : float or None
        Standard error over examples, in `unit`.
    of : Aggregate or None
        How it follows from the per-example results, where it does.
    """

    name: str = Field(min_length=1)
    value: float | None = Field(allow_inf_nan=False)
    nonfinite: Literal["nan", "inf", "-inf"] | None = None
    unit: str = "1"
    better: Better
    n: int | None = Field(None, ge=0)
    stderr: float | None = Field(None, ge=0, allow_inf_nan=False)
    of: Aggregate | None = None

    @model_validator(mode="after")
    def _one_value(self) -> "Metric":
        if (self.value is None) == (self.nonfinite is None):
            raise ValueError("a metric has a value, or says in `nonfinite` why it has none")
        return self

    @property
    def number(self) -> float:
        """Return the value, or the NaN or infinity that stands for it."""
        return float(self.nonfinite or "nan") if self.value is None else self.value


def metric(
    name: str,
    value: float,
    *,
    better: Better,
    unit: str = "1",
    n: int | None = None,
    stderr: float | None = None,
    of: Aggregate | None = None,
) -> Metric:
    """Return a metric of any number: NaN and infinity are kept as what they are."""
    finite = math.isfinite(value)
    said: Any = None if finite else ("nan" if math.isnan(value) else "inf" if value > 0 else "-inf")
    if stderr is not None and not math.isfinite(stderr):
        stderr = None
    return Metric(
        name=name, value=value if finite else None, nonfinite=said, unit=unit, better=better, n=n,
        stderr=stderr, of=of,
    )  # fmt: skip


def relative_loss(metric: Metric, baseline: Metric) -> float | None:
    """Return R(M, M'): how much worse than the baseline, relative to it; positive is worse.

    None where the baseline is zero, or either, or the loss itself, is no finite number.
    """
    if metric.value is None or baseline.value is None or not baseline.value:
        return None
    sign = 1.0 if metric.better == "lower" else -1.0
    loss = sign * (metric.value - baseline.value) / abs(baseline.value)
    return loss + 0.0 if math.isfinite(loss) else None  # no minus zero
