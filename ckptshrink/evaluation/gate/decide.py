"""The verdict of a gate: every rule decided, and the worst of the answers."""

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

from ckptshrink.errors import printable
from ckptshrink.evaluation.document import Outcome
from ckptshrink.evaluation.gate import paired, unpaired
from ckptshrink.evaluation.gate.finding import Finding, scale_of
from ckptshrink.evaluation.gate.rules import (
    DefaultRule,
    default_rule,
    margin_text,
    settled,
    spellings,
)
from ckptshrink.evaluation.gate.sides import Pairs, Side, metric_troubles
from ckptshrink.evaluation.gate.verdict import Check, Rule, Settings, Status, Verdict
from ckptshrink.evaluation.metrics import FRACTION, Metric

ANY: Final = "*"
"""Stands in place of a metric's name where both evaluations failed and no rule names one."""

_MUCH: Final = 0.1
"""A drop of a fraction, given without a unit, from which on 0.5pp may have been meant by 0.5."""


def decide(
    baseline: Side,
    candidate: Side,
    rules: Sequence[Rule | DefaultRule] = (),
    settings: Settings | None = None,
    *,
    task: str = "",
    obstacles: Sequence[str] = (),
) -> Verdict:
    """Decide whether a candidate is as good beside its baseline as rules ask.

    Parameters
    ----------
    baseline, candidate : Side
    rules : sequence of Rule or DefaultRule
        Without any, each metric of the baseline may lose its default margin.
    settings : Settings, optional
        `alpha` and `alarm` hold for each check.
    task : str
        What the verdict calls the task.
    obstacles : sequence of str
        Why the two can't be compared at all, see `comparable`.

    Returns
    -------
    Verdict
        FAIL, and no exception, where a side failed, lacks a metric, or has one that is no finite
        number, contradicts its per-example results, or differs in unit or direction; and where
        there are obstacles. Then every check fails, that of the size too.

    Raises
    ------
    PlanError
        A rule that makes no sense for its metric, see `rules.settled`, or risks so small that the
        resamples can't tell them.
    """
    settings = settings or Settings()
    obstacles = [*obstacles, *_failures(baseline, candidate)]
    pairs = None
    if baseline.examples is not None and candidate.examples is not None:
        pairs = Pairs(baseline.examples, candidate.examples)
        if pairs.trouble:
            obstacles.append(pairs.trouble)
    checks = tuple(
        _size_check(rule, baseline, candidate, obstacles)
        if isinstance(rule, Rule) and rule.kind == "max_size"
        else _metric_check(rule, baseline, candidate, settings, obstacles, pairs)
        for rule in rules or _defaults(baseline.outcome, candidate.outcome)
    )
    return Verdict(
        status=worst([check.status for check in checks]),
        baseline=baseline.outcome.model.name,
        candidate=candidate.outcome.model.name,
        task=task,
        checks=checks,
        settings=settings,
        notes=tuple(_notes(baseline.outcome, candidate.outcome, checks)),
    )


def worst(statuses: Sequence[Status]) -> Status:
    """Return FAIL if there is any, else INCONCLUSIVE if there is any, else PASS."""
    order: tuple[Status, ...] = ("FAIL", "INCONCLUSIVE")
    return next((status for status in order if status in statuses), "PASS")


def _failures(baseline: Side, candidate: Side) -> Iterator[str]:
    for name, side in (("baseline", baseline), ("candidate", candidate)):
        if side.outcome.failure is not None:
            yield f"the {name}'s evaluation failed: {printable(side.outcome.failure.reason)}"


def _defaults(baseline: Outcome, candidate: Outcome) -> list[Rule]:
    metrics = baseline.metrics or candidate.metrics
    return [default_rule(metric) for metric in metrics] or [
        settled(DefaultRule(kind="max_drop", metric=ANY), None)
    ]


def _size_check(rule: Rule, baseline: Side, candidate: Side, obstacles: Sequence[str]) -> Check:
    before, after = baseline.outcome.model.nbytes, candidate.outcome.model.nbytes
    share = after / before if before else None
    status: Status = "PASS" if share is not None and share <= rule.amount else "FAIL"
    if obstacles:
        status, why = "FAIL", "; ".join(obstacles)
    elif share is None:
        why = "the baseline has no bytes"
    else:
        allowed = f"{margin_text(rule)} is allowed"
        why = f"{after:,} bytes are {share:.6g} of the baseline's {before:,}, and {allowed}"
    return Check(
        rule=rule, status=status, baseline=before, candidate=after, loss=share, method="exact",
        because=why,
    )  # fmt: skip


def _metric_check(
    rule: Rule | DefaultRule,
    baseline: Side,
    candidate: Side,
    settings: Settings,
    obstacles: Sequence[str],
    pairs: Pairs | None,
) -> Check:
    before, after = _found(rule.metric, baseline.outcome, candidate.outcome)
    known = before or after
    settled_rule = settled(rule, known)
    if known is not None:
        settled_rule = settled_rule.model_copy(update={"metric": known.name})
    values = {
        "baseline": None if before is None else before.value,
        "candidate": None if after is None else after.value,
    }
    troubles = list(obstacles)
    if not troubles and before is not None and after is not None:
        troubles = metric_troubles(baseline, candidate, before, after)
        if not troubles and pairs is not None and before.of is not None:
            weighs = pairs.weight_trouble(before.of)
            troubles = [weighs] if weighs else []
    elif not troubles:
        troubles = [_missing(settled_rule.metric, baseline.outcome, candidate.outcome)]
    if troubles or before is None or after is None:
        return Check(rule=settled_rule, status="FAIL", because="; ".join(troubles), **values)
    found = _finding(settled_rule, before, after, settings, pairs)
    fields = {name: _finite(field) for name, field in asdict(found).items()}
    return Check(rule=settled_rule, **values, **fields)


def _finding(
    rule: Rule, before: Metric, after: Metric, settings: Settings, pairs: Pairs | None
) -> Finding:
    scale = scale_of(rule, before)
    if pairs is None or before.of is None:
        return unpaired.compare(before, after, scale, rule, settings)
    columns = pairs.columns(before.of)
    return paired.compare(*columns, before.of, scale, rule, settings)


def _finite(field: Any) -> Any:
    """Return a field; None for an infinite limit, which JSON has no word for."""
    return None if isinstance(field, float) and not math.isfinite(field) else field


def _found(name: str, baseline: Outcome, candidate: Outcome) -> tuple[Metric | None, Metric | None]:
    """Return the metric of each side, under the first of its names that either side has."""
    for spelling in spellings(name):
        both = baseline.metric(spelling), candidate.metric(spelling)
        if any(metric is not None for metric in both):
            return both
    return None, None


def _missing(name: str, baseline: Outcome, candidate: Outcome) -> str:
    lacking = [
        side
        for side, outcome in (("baseline", baseline), ("candidate", candidate))
        if outcome.metric(name) is None
    ]
    names = [m.name for m in (candidate if lacking == ["candidate"] else baseline).metrics]
    who = "neither side has" if len(lacking) > 1 else f"the {lacking[0]} does not have"
    close = difflib.get_close_matches(name, names, n=1) if len(lacking) > 1 else []
    meant = f"; did you mean {printable(close[0])}?" if close else ""
    there = ", ".join(map(printable, names))
    return f"{who} a metric {printable(name)!r}; there are {there}{meant}"


def _notes(baseline: Outcome, candidate: Outcome, checks: Sequence[Check]) -> Iterator[str]:
    rules = [check.rule for check in checks]
    if all(rule.kind == "max_size" for rule in rules):
        yield "no metric has a rule: only the sizes were compared"
    for rule in rules:
        metric = baseline.metric(rule.metric)
        plain = metric is not None and metric.unit == FRACTION and not rule.unit
        if plain and rule.amount >= _MUCH:
            typed = f"{printable(rule.metric)}={margin_text(rule)}"
            yield (
                f"{typed} allows {100 * rule.amount:g} percentage points of a fraction; "
                f"{typed}pp would be {rule.amount / 100:g}"
            )
    if baseline.model.sha256 == candidate.model.sha256 and baseline.metrics != candidate.metrics:
        yield (
            "both are the same model, and yet they score differently: the evaluation gives other "
            "numbers from run to run"
        )
