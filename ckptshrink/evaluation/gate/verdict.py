"""What a gate asks and what it answers."""

from typing import Literal

from pydantic import Field

from ckptshrink.plan import Frozen

Status = Literal["PASS", "FAIL", "INCONCLUSIVE"]
"""PASS: shown to be within what the rule allows. FAIL: shown not to be, or not to be had.
INCONCLUSIVE: the data can't show either."""

SIZE = "size"
"""Stands in place of a metric's name in the check of a size rule."""


class Rule(Frozen):
    """What is allowed of one metric, or of the size.

    Attributes
    ----------
    kind : "max_drop", "max_rise" or "max_size"
        How far a metric may fall (better higher), or rise (better lower); or candidate bytes over
        baseline bytes.
    metric : str
        `SIZE` for ``max_size``.
    amount : float
        Not negative. Of ``pp`` in percentage points, of ``%`` in percent of the baseline's value.
    unit : "pp", "%" or ""
        ``""`` is the metric's own unit.
    reason : str
        Why this much and no more.
    """

    kind: Literal["max_drop", "max_rise", "max_size"]
    metric: str = Field(min_length=1)
    amount: float = Field(ge=0, allow_inf_nan=False)
    unit: Literal["pp", "%", ""] = ""
    reason: str = ""


class Settings(Frozen):
    """How sure a gate must be, of each check.

    Attributes
    ----------
    alpha : float
        Largest risk of PASS for a candidate that is worse than the rule allows. Where no example
        at all changed, PASS stands on their number alone; see `counts.ALIKE`.
    alarm : float
        Largest risk of FAIL for a candidate that is not.
    resamples : int
        Of the bootstrap.
    seed : int
        Of the bootstrap.
    """

    alpha: float = Field(0.05, gt=0, lt=0.5)
    alarm: float = Field(0.01, gt=0, lt=0.5)
    resamples: int = Field(9_999, ge=999, le=1_000_000)
    seed: int = Field(0, ge=0)


class Check(Frozen):
    """One rule, decided.

    `loss`, `low`, `high` and `detectable` are in the unit of the rule (percentage points for
    ``pp``, percent for ``%``), and positive is worse, whichever way the metric is better. For a
    size rule `loss` is candidate bytes over baseline bytes.

    Attributes
    ----------
    rule : Rule
    status : Status
    baseline, candidate : float or None
        Values of the metric, or bytes. None where there is none, or no finite one.
    loss : float or None
        How much worse the candidate is.
    low, high : float or None
        The loss is above `low` at confidence 1 - alarm, and below `high` at confidence 1 - alpha.
    method : str
        How it was decided: ``"McNemar and score test"``, ``"paired bootstrap"``, ``"score test"``
        (fewer than 20 examples changed), ``"unpaired"``, ``"exact"`` or ``""``.
    n : int or None
        Paired examples, or of the smaller side where they are not paired.
    worse, better : int or None
        Examples that only the baseline, and only the candidate got right.
    detectable : float or None
        The smallest true loss that this n would show (FAIL) in 4 of 5 gates.
    because : str
        One line: why this status.
    """

    rule: Rule
    status: Status
    baseline: float | None = None
    candidate: float | None = None
    loss: float | None = None
    low: float | None = None
    high: float | None = None
    method: str = ""
    n: int | None = None
    worse: int | None = None
    better: int | None = None
    detectable: float | None = None
    because: str


class Verdict(Frozen):
    """What a gate answers.

    Attributes
    ----------
    status : Status
        FAIL if any check failed, else INCONCLUSIVE if any is, else PASS.
    baseline, candidate : str
        Names of the models.
    task : str
    checks : tuple of Check
        In the order of the rules; at least one.
    settings : Settings
    notes : tuple of str
    """

    schema_version: Literal[1] = 1
    status: Status
    baseline: str
    candidate: str
    task: str
    checks: tuple[Check, ...] = Field(min_length=1)
    settings: Settings
    notes: tuple[str, ...] = ()
