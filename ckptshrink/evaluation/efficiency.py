"""The paper's efficiency measure E(r): how much is lost for what is saved."""

import math
from typing import Final

from ckptshrink.evaluation.metrics import Metric, relative_loss

SCOPES: Final = ("lstm", "model")
"""What parameters are counted over: the recurrent layers, or everything that ran."""


def parameter_reduction(before: int, after: int) -> float | None:
    """Return R(P, P'): the share of the parameters that is gone; None where there were none."""
    return (before - after) / before if before else None


def efficiency(loss: float, reduction: float) -> float | None:
    """Return E(r) of a relative loss and a relative reduction of parameters.

    ::

        E = R(M) / R(P)          where the metric got worse (R(M) >= 0)
        E = R(M) / (1 - R(P))    where it got better

    Parameters
    ----------
    loss : float
        R(M), relative to the original metric, positive is worse; see `relative_loss`.
    reduction : float
        R(P), in (0, 1).

    Returns
    -------
    float or None
        Smaller is better, negative is an improvement. None where nothing was saved: there is no
        such measure of a model that did not shrink. None too where it is no finite number.

    Source
    ------
    Winata et al. 2019. The paper does not define R; this signed form, relative to the original
    metric, gives 12 of 12 entries of its fine-tuned Penn Treebank table.

    Examples
    --------
    >>> round(efficiency(0.06, 0.25), 3), round(efficiency(-0.06, 0.25), 3)
    (0.24, -0.08)
    """
    if not 0 < reduction < 1:
        return None
    measure = loss / reduction if loss >= 0 else loss / (1 - reduction)
    return measure if math.isfinite(measure) else None


def efficiency_of(
    metric: Metric, baseline: Metric, n_params: int | None, n_params_baseline: int | None
) -> float | None:
    """Return E(r) of a metric against its baseline; None where it has none."""
    loss = relative_loss(metric, baseline)
    if loss is None or n_params is None or not n_params_baseline:
        return None
    reduction = parameter_reduction(n_params_baseline, n_params)
    return None if reduction is None else efficiency(loss, reduction)
