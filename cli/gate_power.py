"""What a gate could show, before anything was run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ckptshrink.errors import EvaluationInputError
from ckptshrink_cli import exit_codes, gate_text, render
from ckptshrink_cli.declare import refuse, usage_errors
from ckptshrink_cli.streams import Run

if TYPE_CHECKING:
    from ckptshrink.evaluation.gate.rules import DefaultRule
    from ckptshrink.evaluation.gate.sides import Side
    from ckptshrink.evaluation.gate.verdict import Rule, Settings
    from ckptshrink.evaluation.metrics import Metric

_SCHEMA_VERSION: Final = 1

DROPS: Final = (0.0, 0.5, 1.0, 2.0, 3.0)
"""Losses that are looked at, in percentage points."""

DISAGREEMENTS: Final = (0.02, 0.05, 0.1, 0.2)
"""Rates of disagreement where nobody says one: that of a model that hardly changed, to that of one
that was trained anew."""

_FIELDS: Final = (
    "metric", "n", "disagreement", "allowed_pp", "drop_pp", "p_pass", "p_fail", "p_inconclusive",
    "detectable_pp",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Asked:
    """A proportion that a gate would decide on.

    Attributes
    ----------
    margin : float
        What may be lost of it; a point is 0.01.
    n : int or None
        Examples of the baseline.
    """

    metric: str
    margin: float
    n: int | None = None


def show(
    run: Run,
    rules: "Sequence[Rule | DefaultRule]",
    settings: "Settings",
    *,
    baseline: Path | None,
    model: str | None,
    counts: tuple[int, ...] | None,
    shares: tuple[float, ...] | None,
    as_json: bool,
) -> int:
    """Print how likely each answer is; return the exit status."""
    if baseline is None and counts is None:
        refuse("--power needs the number of examples: --examples N, or --baseline A")
    asked = _of_rules(rules) if baseline is None else _of_baseline(run, baseline, model, rules)
    shares = shares or DISAGREEMENTS
    rows = [
        row
        for one in asked
        for n in counts or (one.n,)
        if n is not None
        for share in shares
        for row in _rows(one, n, share, settings)
    ]
    if as_json:
        gate_text.emit_document(
            {
                "schema_version": _SCHEMA_VERSION,
                "settings": settings.model_dump(mode="json"),
                "rows": rows,
            }
        )
    else:
        _show(rows)
    run.say(*_summary(asked, shares, settings))
    return exit_codes.DONE


def _of_rules(rules: "Sequence[Rule | DefaultRule]") -> list[_Asked]:
    """Return what rules ask of proportions, where nothing is known of a baseline."""
    from ckptshrink.evaluation.gate.rules import DefaultRule, settled

    metrics = [rule for rule in rules if rule.kind != "max_size"]
    found = []
    for rule in metrics or [DefaultRule(kind="max_drop", metric="accuracy")]:
        points = rule if not isinstance(rule, DefaultRule) else settled(rule, _proportion(rule))
        if points.unit == "%":
            refuse(f"{rule.metric}: a share of the baseline's value needs --baseline with --power")
        margin = points.amount / 100 if points.unit == "pp" else points.amount
        if margin > 1:
            refuse(f"{rule.metric}={points.amount:g} is more than a proportion can lose")
        found.append(_Asked(rule.metric, margin))
    return found


def _proportion(rule: "DefaultRule") -> "Metric":
    from ckptshrink.evaluation.metrics import FRACTION, metric

    better: Any = "higher" if rule.kind == "max_drop" else "lower"
    return metric(rule.metric, 0.5, better=better, unit=FRACTION)


def _of_baseline(
    run: Run, path: Path, model: str | None, rules: "Sequence[Rule | DefaultRule]"
) -> list[_Asked]:
    """Return what rules ask of the proportions of a baseline; without rules, of each."""
    from ckptshrink.evaluation.document import read_evaluation
    from ckptshrink.evaluation.gate.rules import default_rule, settled, spellings
    from ckptshrink_cli.commands_gate import side_of

    side = side_of(read_evaluation(path), path, "baseline", model)
    metrics = {metric.name: metric for metric in side.outcome.metrics}
    wanted = [rule for rule in rules if rule.kind != "max_size"]
    found = []
    for rule in wanted or [default_rule(metric) for metric in metrics.values()]:
        name = next((name for name in spellings(rule.metric) if name in metrics), None)
        if name is None:
            refuse(f"the baseline has no metric {rule.metric!r}; there are {', '.join(metrics)}")
        with usage_errors():
            fitting = settled(rule, metrics[name])
        asked = _asked(side, metrics[name], fitting)
        if asked is None:
            run.say(f"{name} is no share of right answers: the gate says what it shows, after it")
        else:
            found.append(asked)
    if not found:
        raise EvaluationInputError("has no metric that is a share of right answers", path=path)
    return found


def _asked(side: "Side", metric: "Metric", rule: "Rule") -> _Asked | None:
    """Return what is asked of a metric, None where it is no share of right answers."""
    from ckptshrink.evaluation.metrics import FRACTION, PERCENT

    whole = {FRACTION: 1.0, PERCENT: 100.0}.get(metric.unit)
    if whole is None or not metric.n or metric.value is None:
        return None
    if metric.of is not None and side.examples is not None:
        scores = side.examples.columns.get(metric.of.score)
        if metric.of.weight or scores is None or not ((scores == 0) | (scores == whole)).all():
            return None
    margin = {
        "pp": rule.amount / 100,
        "%": rule.amount / 100 * metric.value / whole,
        "": rule.amount / whole,
    }[rule.unit]
    return _Asked(metric.name, min(margin, 1.0), metric.n)


def _rows(asked: _Asked, n: int, share: float, settings: "Settings") -> Iterator[dict[str, Any]]:
    from ckptshrink.evaluation.gate.github import inert
    from ckptshrink.evaluation.gate.power import detectable, power

    shows = detectable(n, share, asked.margin, settings)
    for drop in DROPS:
        outlook = power(n, drop / 100, share, asked.margin, settings)
        yield {
            "metric": inert(asked.metric),
            "n": n,
            "disagreement": share,
            "allowed_pp": 100 * asked.margin,
            "drop_pp": drop,
            "p_pass": outlook.p_pass,
            "p_fail": outlook.p_fail,
            "p_inconclusive": outlook.p_inconclusive,
            "detectable_pp": None if shows is None else 100 * shows,
        }


def _show(rows: list[dict[str, Any]]) -> None:
    columns = (
        render.Column("metric", lambda row: row["metric"]),
        render.Column("n", lambda row: render.count(row["n"]), True),
        render.Column("disagreement", lambda row: f"{100 * row['disagreement']:g} %", True),
        render.Column("allowed", lambda row: f"{row['allowed_pp']:.4g} pp", True),
        render.Column("true drop", lambda row: f"{row['drop_pp']:g} pp", True),
        render.Column("PASS", lambda row: _percent(row["p_pass"]), True),
        render.Column("FAIL", lambda row: _percent(row["p_fail"]), True),
        render.Column("INCONCLUSIVE", lambda row: _percent(row["p_inconclusive"]), True),
        render.Column("shows from", lambda row: _points(row["detectable_pp"]), True),
    )
    render.show(rows, _FIELDS, columns)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(points: float | None) -> str:
    return "none" if points is None else f"{points:.2f} pp"


def _summary(
    asked: Sequence[_Asked], shares: tuple[float, ...], settings: "Settings"
) -> Iterator[str]:
    """Yield how many examples are needed for an equal model to pass."""
    from ckptshrink.evaluation.gate.github import inert
    from ckptshrink.evaluation.gate.power import needed

    for one in asked:
        counts = [needed(0.0, share, one.margin, settings) for share in shares]
        for share, n in zip(shares, counts, strict=True):
            least = "no number of examples" if n is None else f"{n:,} examples"
            yield inert(
                f"{one.metric}, {100 * one.margin:.4g} pp allowed, {100 * share:g} % disagreement: "
                f"{least} let a model without a loss PASS in 4 of 5 gates"
            )
