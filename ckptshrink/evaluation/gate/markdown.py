"""A verdict as Markdown: for a pull request, a report, or the summary of a step on GitHub."""

import re
from collections.abc import Iterator, Sequence
from typing import Final

from ckptshrink.errors import printable
from ckptshrink.evaluation.gate import wording
from ckptshrink.evaluation.gate.verdict import Check, Verdict

_TAME: Final = re.compile(r"[\w .:/%@+=,()~-]+", re.ASCII)
"""Names that a code span can hold as they are."""

_SPECIAL: Final = re.compile(r"[\\`*_\[\]<>|~&$]")
"""What means something within a line of Markdown or HTML: written as an entity it means nothing to
either, and ends no cell of a table, as a bar behind two backslashes does."""

_HEADER: Final = (
    "status", "metric", "baseline", "candidate", "loss", "interval", "allowed", "n",
    "smallest loss that shows",
)  # fmt: skip


def markdown(verdict: Verdict, *, checks: Sequence[Check] | None = None) -> str:
    """Return a verdict as Markdown.

    Whatever a name holds, it is shown as text: no markup, no HTML, no mention of anyone.

    Parameters
    ----------
    verdict : Verdict
    checks : sequence of Check, optional
        Those that are shown; by default all. How many are left out is said.
    """
    shown = verdict.checks if checks is None else tuple(checks)
    return "".join(f"{line}\n" for line in _lines(verdict, shown))


def _lines(verdict: Verdict, shown: Sequence[Check]) -> Iterator[str]:
    yield f"### ckptshrink gate: {verdict.status}"
    yield ""
    yield f"{_code(verdict.candidate)} beside {_code(verdict.baseline)} on {_code(verdict.task)}."
    if shown:
        yield ""
        yield _row(_HEADER)
        yield _row("---:" if title in {"n"} else "---" for title in _HEADER)
        yield from (_row(_cells(check)) for check in shown)
    left_out = len(verdict.checks) - len(shown)
    if left_out:
        yield ""
        yield f"{left_out} of {len(verdict.checks)} rules are left out here."
    short = [check for check in shown if check.status != "PASS"]
    if short:
        yield ""
        yield from (f"- {check.status}: {_text(wording.because(check))}" for check in short)
    reasons = [check for check in shown if check.rule.reason]
    if reasons:
        yield ""
        yield "Why so much is allowed:"
        yield ""
        yield from (
            f"- {_code(check.rule.metric)}, {_text(wording.allowed(check.rule))}: "
            f"{_text(wording.reason(check))}"
            for check in reasons
        )
    sure, likely = (100 * (1 - p) for p in (verdict.settings.alarm, verdict.settings.alpha))
    yield ""
    yield (
        f"A positive loss is worse. It is above the lower end of its interval at {sure:.6g} % "
        f"confidence, which FAIL goes by, and below the upper end at {likely:.6g} %, which PASS "
        "goes by."
    )
    for note in verdict.notes:
        yield ""
        yield f"Note: {_text(printable(note))}"


def _cells(check: Check) -> tuple[str, ...]:
    plain = (
        wording.value(check, check.baseline), wording.value(check, check.candidate),
        wording.loss(check), wording.interval(check), wording.allowed(check.rule),
        "" if check.n is None else f"{check.n:,}", wording.detectable(check),
    )  # fmt: skip
    return (check.status, _code(check.rule.metric), *map(_text, plain))


def _row(cells: "Iterator[str] | Sequence[str]") -> str:
    return f"| {' | '.join(cells)} |"


def _code(name: str) -> str:
    """Return a name in the type of code; in a code span nobody is mentioned, nothing is a link."""
    said = printable(name)
    if _TAME.fullmatch(said) and said == said.strip():
        return f"`{said}`"
    return f"<code>{_text(said)}</code>"


def _text(said: str) -> str:
    """Return text without any markup in it."""
    inert = _SPECIAL.sub(lambda found: f"&#{ord(found.group())};", said)
    return inert.replace("@", "@<!-- -->")  # the mention of a user needs the name right behind it
