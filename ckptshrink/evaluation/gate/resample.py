"""What a loss could have been with other examples: the paired bootstrap, and flipped pairs."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from ckptshrink.errors import PlanError
from ckptshrink.evaluation.gate.verdict import Settings

Floats = NDArray[np.float64]

MOST_GROUPS: Final = 20_000
"""More examples than this are drawn in groups: 10,000 resamples of a million examples take half an
hour, of 20,000 groups some seconds, and the spread is off by 1/sqrt(2 * groups), 0.5%."""

_ELEMENTS: Final = 2_000_000
"""Numbers of one array in a batch of resamples: 16 MB, of which there are at most eight."""

_RNG: Final = "rng" if "rng" in inspect.signature(bootstrap).parameters else "random_state"
"""What scipy calls the generator: the second name until 1.14."""


def grouped(columns: Sequence[Floats], settings: Settings) -> list[Floats]:
    """Return the columns (n,), or their sums over at most `MOST_GROUPS` random groups."""
    n = len(columns[0])
    if n <= MOST_GROUPS:
        return list(columns)
    groups = np.random.default_rng(settings.seed).permutation(np.arange(n) % MOST_GROUPS)
    sums = (np.bincount(groups, weights=column) for column in columns)
    return [np.asarray(column, dtype=np.float64) for column in sums]


def percentile_limits(
    columns: Sequence[Floats], loss: Callable[..., Any], settings: Settings
) -> tuple[float, float]:
    """Return the one-sided limits of a loss, at 1 - alarm from below and 1 - alpha from above.

    Parameters
    ----------
    columns : sequence of (n,)
        Drawn together, with replacement.
    loss : callable
        Of the columns' sums over examples, given in their order; takes arrays.

    Returns
    -------
    (float, float)
        Percentiles of the bootstrap, each the resample next to it on the safe side. An infinite one
        stays infinite.

    Notes
    -----
    Percentiles and not BCa: in simulations of F1-like results with 5% disagreement and 200 to 400
    examples BCa's lower limit at 99% was too high in 2 to 3% of samples, the percentile's in 1.3 to
    1.9%; on perplexities both were within 1.5%.
    """
    _enough(settings)

    def statistic(*drawn: Floats, axis: int = -1) -> Any:
        with np.errstate(all="ignore"):
            return loss(*(column.sum(axis=axis) for column in drawn))

    result = bootstrap(
        tuple(columns),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=settings.resamples,
        batch=max(1, _ELEMENTS // len(columns[0])),
        method="percentile",
        **{_RNG: np.random.default_rng(settings.seed)},
    )
    found = np.sort(result.bootstrap_distribution)  # a NaN comes last
    if np.isnan(found[-1]):
        return -math.inf, math.inf
    low = math.floor(settings.alarm * (settings.resamples + 1)) - 1
    high = math.ceil((1 - settings.alpha) * (settings.resamples + 1)) - 1
    return float(found[low]), float(found[min(high, settings.resamples - 1)])


def flipped(differences: Floats, settings: Settings) -> float:
    """Return how often differences of random sign sum up to as much as these, a p-value.

    It is exact for two models that are equally good, where either result of an example could be
    either's; McNemar's test is this for zeros and ones.

    Parameters
    ----------
    differences : (n,)
        Positive where the candidate is worse.
    """
    _enough(settings)
    changed = differences[differences != 0]
    rng = np.random.default_rng(settings.seed)
    seen = float(changed.sum())
    # as many as the sum itself but for rounding, which depends on the order of adding up
    level = seen - 1e-12 * float(np.abs(changed).sum())
    if 2 ** len(changed) <= settings.resamples:  # every choice of signs, in place of some
        numbers = np.arange(2 ** len(changed))[:, None]
        every = (numbers >> np.arange(len(changed)) & 1) @ changed
        return float(np.mean(2 * every - seen >= level))
    batch = max(1, _ELEMENTS // len(changed))
    reached = 0
    for start in range(0, settings.resamples, batch):
        rows = min(batch, settings.resamples - start)
        bits = np.frombuffer(rng.bytes(rows * -(-len(changed) // 8)), np.uint8).reshape(rows, -1)
        kept = np.unpackbits(bits, axis=1, count=len(changed))  # (rows, changed)
        reached += int(np.count_nonzero(2 * (kept @ changed) - seen >= level))
    return (reached + 1) / (settings.resamples + 1)


def _enough(settings: Settings) -> None:
    if (
        settings.alarm * (settings.resamples + 1) < 1
        or settings.alpha * (settings.resamples + 1) < 1
    ):
        least = math.ceil(1 / min(settings.alarm, settings.alpha))
        raise PlanError(
            f"{settings.resamples} resamples can't tell a risk of "
            f"{min(settings.alarm, settings.alpha):g}",
            hint=f"at least {least} resamples",
        )
