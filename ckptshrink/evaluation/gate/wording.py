"""How a verdict is said in words and numbers: what the table, JUnit and Markdown have in common."""

from typing import Final

from ckptshrink.errors import printable
from ckptshrink.evaluation.gate.verdict import Check, Rule, Status, Verdict

_DIGITS: Final = 3
"""Significant digits of a loss: it is known to two of them at best."""

_MOST_DIGITS: Final = 17
"""As many as tell any two floats apart."""

_WORST_FIRST: Final[tuple[Status, ...]] = ("FAIL", "INCONCLUSIVE", "PASS")


def metric(check: Check) -> str:
    """Return the name of what was checked, fit for one line."""
    return printable(check.rule.metric)


def value(check: Check, number: float | None) -> str:
    """Return the metric's value or the bytes of one side; ``-`` where there is none."""
    if number is None:
        return "-"
    if check.rule.kind == "max_size":
        return f"{number:,.0f} bytes"
    return f"{number:.6g}"


def allowed(rule: Rule) -> str:
    """Return what a rule allows.

    Examples
    --------
    >>> allowed(Rule(kind="max_drop", metric="accuracy", amount=0.5, unit="pp"))
    '0.5 pp lower'
    >>> allowed(Rule(kind="max_rise", metric="ppl", amount=2, unit="%"))
    '2 % higher'
    >>> allowed(Rule(kind="max_size", metric="size", amount=0.4))
    '0.4 of its bytes'
    """
    if rule.kind == "max_size":
        return f"{rule.amount:.15g} of its bytes"
    way = "lower" if rule.kind == "max_drop" else "higher"
    return f"{_with_unit(f'{rule.amount:.15g}', rule)} {way}"


def loss(check: Check) -> str:
    """Return how much worse the candidate is, in digits that tell it from what is allowed.

    Examples
    --------
    >>> rule = Rule(kind="max_drop", metric="accuracy", amount=0.5, unit="pp")
    >>> loss(Check(rule=rule, status="FAIL", loss=2.1, because=""))
    '2.1 pp'
    >>> loss(Check(rule=rule, status="FAIL", loss=0.500001, because=""))
    '0.500001 pp'
    """
    return _amount(check, check.loss)


def interval(check: Check) -> str:
    """Return the two bounds of the loss, as far as there are any.

    Examples
    --------
    >>> rule = Rule(kind="max_rise", metric="ppl", amount=2, unit="%")
    >>> interval(Check(rule=rule, status="PASS", loss=1, low=0.25, high=1.75, because=""))
    '0.25 to 1.75 %'
    """
    bounds = [_number(end, check.rule) for end in (check.low, check.high) if end is not None]
    if not bounds:
        return ""
    if len(bounds) == 2:
        return _with_unit(" to ".join(bounds), check.rule)
    return _with_unit(f"{'above' if check.high is None else 'below'} {bounds[0]}", check.rule)


def detectable(check: Check) -> str:
    """Return the smallest loss that this many examples would show."""
    return _amount(check, check.detectable)


def sentences(verdict: Verdict) -> tuple[str, ...]:
    """Return what a reader has to know, in a line each: what does not pass, or that all does.

    The first line begins with the status of the whole.
    """
    if verdict.status == "PASS" and len(verdict.checks) > 1:
        return (f"PASS: {printable(verdict.candidate)} keeps all {len(verdict.checks)} rules",)
    return tuple(
        f"{check.status}: {because(check)}"
        for check in worst_first(verdict)
        if check.status != "PASS" or verdict.status == "PASS"
    )


def worst_first(verdict: Verdict) -> tuple[Check, ...]:
    """Return all checks, FAIL before INCONCLUSIVE before PASS, else in their order."""
    return tuple(sorted(verdict.checks, key=lambda check: _WORST_FIRST.index(check.status)))


def because(check: Check) -> str:
    """Return what became of a metric and why that has its status, in one line.

    Examples
    --------
    >>> rule = Rule(kind="max_drop", metric="accuracy", amount=0.5, unit="pp")
    >>> because(Check(rule=rule, status="FAIL", loss=2.1, because="0.5 pp is allowed"))
    'accuracy fell by 2.1 pp: 0.5 pp is allowed'
    """
    return f"{metric(check)}{_change(check)}: {printable(check.because)}"


def reason(check: Check) -> str:
    """Return why its rule allows this much and no more; empty where nobody said."""
    return printable(" ".join(check.rule.reason.split()))


def _change(check: Check) -> str:
    """Return how a metric moved; nothing of a size, which says so itself."""
    if check.loss is None or check.rule.kind == "max_size":
        return ""
    if not check.loss:
        return " did not change"
    fell = (check.loss > 0) == (check.rule.kind == "max_drop")
    return f" {'fell' if fell else 'rose'} by {_amount(check, abs(check.loss))}"


def _amount(check: Check, number: float | None) -> str:
    return "" if number is None else _with_unit(_number(number, check.rule), check.rule)


def _number(number: float, rule: Rule) -> str:
    """Return a number in so many digits that it does not look like the amount unless it is."""
    for digits in range(_DIGITS, _MOST_DIGITS + 1):
        text = f"{number:.{digits}g}"
        if number == rule.amount or float(text) != rule.amount:
            break
    return text


def _with_unit(text: str, rule: Rule) -> str:
    return f"{text} {rule.unit}".rstrip()
