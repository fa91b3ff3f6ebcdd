"""A verdict, and what a gate could show before a run, as tables and sentences on the terminal."""

import json
from typing import TYPE_CHECKING, Any, Final

from ckptshrink_cli import render
from ckptshrink_cli.streams import Run, emit, say

if TYPE_CHECKING:
    from ckptshrink.evaluation.document import Outcome
    from ckptshrink.evaluation.gate.verdict import Check, Verdict

_FIELDS: Final = (
    "status", "metric", "rule", "amount", "unit", "baseline", "candidate", "loss", "low", "high",
    "n", "worse", "better", "detectable", "method", "because", "reason",
)  # fmt: skip
"""Columns of the tab-separated form. A metric is not the first: a line that begins with two colons
is a command to GitHub."""

_LOG_LINES: Final = 20


def show_verdict(verdict: "Verdict") -> None:
    """Write a row for each rule to standard output."""
    from ckptshrink.evaluation.gate import wording

    columns = (
        render.Column("status", lambda row: row["status"]),
        render.Column("metric", lambda row: row["metric"]),
        render.Column("baseline", lambda row: _value(row["check"], row["baseline"]), True),
        render.Column("candidate", lambda row: _value(row["check"], row["candidate"]), True),
        render.Column("loss", lambda row: wording.loss(row["check"]), True),
        render.Column("interval", lambda row: wording.interval(row["check"]), True),
        render.Column("allowed", lambda row: wording.allowed(row["check"].rule)),
        render.Column("n", lambda row: _count(row["n"]), True, spare=True),
        render.Column("shows from", lambda row: wording.detectable(row["check"]), True, spare=True),
    )
    render.show([_row(check) for check in verdict.checks], _FIELDS, columns)


def say_verdict(run: Run, verdict: "Verdict") -> None:
    """Say what the verdict is and why, and why so much is allowed."""
    from ckptshrink.evaluation.gate import wording
    from ckptshrink.evaluation.gate.github import inert

    lines = [*wording.sentences(verdict)]
    lines += [
        f"allowed: {wording.metric(check)} {wording.allowed(check.rule)}: {wording.reason(check)}"
        for check in verdict.checks
        if check.rule.reason
    ]
    lines += [f"note: {note}" for note in verdict.notes]
    run.say(*map(inert, lines))


def say_log(outcome: "Outcome") -> None:
    """Say how the log of an evaluation ends that failed."""
    from ckptshrink.evaluation.gate.github import inert

    if outcome.failure is not None:
        log = outcome.failure.log.splitlines()[-_LOG_LINES:]
        say(*(inert(f"{outcome.model.name}: {line}") for line in log))


def emit_document(document: dict[str, Any]) -> None:
    """Write one JSON document to standard output; no line of it is a command to a CI server."""
    text = json.dumps(document, indent=1, allow_nan=False)
    emit(text.replace("##[", r"##\u005b") + "\n")  # only a string can hold this


def _row(check: "Check") -> dict[str, Any]:
    from ckptshrink.evaluation.gate.github import inert

    rule = check.rule
    fields = check.model_dump(exclude={"rule"})
    return fields | {
        "check": check,
        "metric": inert(rule.metric),
        "rule": rule.kind,
        "amount": rule.amount,
        "unit": rule.unit,
        "because": inert(check.because),
        "reason": inert(rule.reason),
    }


def _value(check: "Check", number: float | None) -> str:
    from ckptshrink.evaluation.gate import wording

    if number is None or check.rule.kind != "max_size":
        return wording.value(check, number)
    return render.size(number)


def _count(number: int | None) -> str:
    return "" if number is None else render.count(number)
