"""Rules as they are typed: how far a metric may fall or rise, how large a candidate may be."""

import re
from decimal import Decimal
from typing import Final, Literal

from pydantic import Field

from ckptshrink.errors import PlanError
from ckptshrink.evaluation.gate.verdict import SIZE, Rule
from ckptshrink.evaluation.metrics import FRACTION, PERCENT, Metric
from ckptshrink.plan import Frozen

MetricKind = Literal["max_drop", "max_rise"]
Unit = Literal["pp", "%", ""]

DEFAULT_POINTS: Final = 1.0
"""Percentage points that a proportion may lose where no margin is given."""

DEFAULT_PERCENT: Final = 2.0
"""Percent of the baseline's value that any other metric may lose where no margin is given."""

DEFAULT_REASON: Final = "the default margin"

_ALIASES: Final = (("ppl", "perplexity"),)
"""Names that stand for each other where only one of them is there."""

_AMOUNT: Final = re.compile(r"(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)\s*(pp|%|)")
_MOST_SIZE: Final = 2.0
"""A plain number above it is refused as a size: 40 for 40% would let everything pass."""


class DefaultRule(Frozen):
    """A metric that is to be compared at its default margin, whose unit is not known yet."""

    kind: MetricKind
    metric: str = Field(min_length=1)
    reason: str = DEFAULT_REASON


def parse_rule(kind: MetricKind, text: str) -> Rule | DefaultRule:
    """Read ``accuracy=0.5pp``, ``ppl=2%``, ``f1=0.01``, ``loss=0`` or ``accuracy``.

    Parameters
    ----------
    kind : "max_drop" or "max_rise"
    text : str
        ``pp`` are percentage points, ``%`` is a share of the baseline's value, a plain number is in
        the metric's own unit. A name alone asks for the default margin; see `default_rule`.

    Raises
    ------
    PlanError
        It is no such rule.

    Examples
    --------
    >>> rule = parse_rule("max_drop", "accuracy=0.5pp")
    >>> rule.metric, rule.amount, rule.unit
    ('accuracy', 0.5, 'pp')
    """
    name, equals, amount = (
        part.strip() for part in (text.rpartition("=") if "=" in text else (text, "", ""))
    )
    if not name:
        raise PlanError(
            f"{flag(kind)} {text!r} names no metric", hint=f"{flag(kind)} accuracy=0.5pp"
        )
    if not equals:
        return DefaultRule(kind=kind, metric=name)
    try:
        number, unit = amount_of(amount)
    except ValueError as error:
        raise PlanError(
            f"{flag(kind)} {text!r}: {error}",
            hint="0.5pp (percentage points), 2% (of the baseline's value), or 0.01 (the metric's "
            "own unit)",
        ) from error
    return Rule(kind=kind, metric=name, amount=number, unit=unit)


def amount_of(text: str) -> tuple[float, Unit]:
    """Return the number and the unit of an amount; ValueError says why it is none."""
    match = _AMOUNT.fullmatch(text)
    if match is None:
        if re.match(r"[-−]", text):
            raise ValueError(f"{text!r} is negative; say how much worse, without a sign")
        raise ValueError(f"{text!r} is no amount")
    number = float(match[1])
    unit: Unit = "pp" if match[2] == "pp" else "%" if match[2] else ""
    if number == float("inf"):
        raise ValueError(f"{text!r} is no finite number")
    if unit == "pp" and number > 100:
        raise ValueError(f"{text!r} is more than a proportion can lose")
    return number, unit


def parse_size(text: str, reason: str = "") -> Rule:
    """Read ``0.4`` or ``40%``: candidate bytes over baseline bytes, at most.

    Raises
    ------
    PlanError
        It is no share.

    Examples
    --------
    >>> parse_size("40%").amount
    0.4
    """
    try:
        share = size_of(text)
    except ValueError as error:
        raise PlanError(
            f"{flag('max_size')} {error}", hint="a share of the baseline's bytes: 0.4, or 40%"
        ) from error
    return Rule(kind="max_size", metric=SIZE, amount=share, reason=reason)


def size_of(text: str) -> float:
    """Return the share that a text says; ValueError says why it is none."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None or match[2] == "pp":
        raise ValueError(f"{text!r} is no share of the baseline's bytes")
    # a decimal, so that 33.3% is the same number as 0.333
    share = float(Decimal(match[1]) / 100) if match[2] else float(match[1])
    if not 0 < share < float("inf"):
        raise ValueError(f"{text!r} leaves no size that a candidate could have")
    if share > _MOST_SIZE and not match[2]:
        raise ValueError(f"{text!r} would allow {share:g} times the baseline's bytes")
    return share


def default_rule(metric: Metric) -> Rule:
    """Return what a metric may lose where nobody said: a percentage point, or 2 percent.

    A proportion (unit ``fraction`` or ``percent``) may lose 1pp, anything else 2% of its baseline.
    """
    kind: MetricKind = "max_drop" if metric.better == "higher" else "max_rise"
    return settled(DefaultRule(kind=kind, metric=metric.name), metric)


def settled(rule: Rule | DefaultRule, metric: Metric | None) -> Rule:
    """Return the rule with its margin, which may follow from the metric that it is about.

    Raises
    ------
    PlanError
        The rule makes no sense for the metric: it limits the way in which the metric gets better,
        or speaks of percentage points of what is no proportion.
    """
    if isinstance(rule, DefaultRule):
        points = metric is not None and metric.unit in {FRACTION, PERCENT}
        rule = Rule(
            kind=rule.kind,
            metric=rule.metric,
            amount=DEFAULT_POINTS if points else DEFAULT_PERCENT,
            unit="pp" if points else "%",
            reason=rule.reason,
        )
    if metric is None:
        return rule
    fitting: MetricKind = "max_drop" if metric.better == "higher" else "max_rise"
    if rule.kind != fitting:
        raise PlanError(
            f"{flag(rule.kind)} {rule.metric}: {metric.better} is better there, so that would be "
            "no limit",
            hint=f"{flag(fitting)} {rule.metric}={margin_text(rule)}",
        )
    if rule.unit == "pp" and metric.unit not in {FRACTION, PERCENT}:
        raise PlanError(
            f"{flag(rule.kind)} {rule.metric}={margin_text(rule)}: percentage points are of a "
            f"{FRACTION} or a {PERCENT}, and {rule.metric} is in {metric.unit!r}",
            hint=f"{rule.metric}={rule.amount:g}% or {rule.metric}={rule.amount:g}",
        )
    return rule


def spellings(name: str) -> tuple[str, ...]:
    """Return the names that a rule's metric may have in a document, its own first."""
    others = [other for group in _ALIASES if name in group for other in group if other != name]
    return (name, *others)


def flag(kind: str) -> str:
    """Return the option that a kind of rule is typed as."""
    return "--" + kind.replace("_", "-")


def margin_text(rule: Rule) -> str:
    """Return what a rule allows, as it would be typed."""
    return f"{rule.amount:.15g}{rule.unit}"
