"""A verdict for GitHub Actions: annotations, the summary of a step, and its output."""

from collections.abc import Iterator
from typing import Final

from ckptshrink.errors import printable
from ckptshrink.evaluation.gate import wording
from ckptshrink.evaluation.gate.markdown import markdown
from ckptshrink.evaluation.gate.verdict import Status, Verdict

SUMMARY_BYTES: Final = (1 << 20) - 1
"""Largest summary of a step: of a larger one GitHub shows nothing."""

MOST_ANNOTATIONS: Final = 10
"""Annotations of one kind that GitHub shows of a step; it drops the rest without a word."""

_KINDS: Final[dict[Status, str]] = {"FAIL": "error", "INCONCLUSIVE": "warning", "PASS": "notice"}


def annotations(verdict: Verdict) -> tuple[str, ...]:
    """Return workflow commands, a line each.

    An error for each FAIL and a warning for each INCONCLUSIVE, or one notice for a PASS. Where
    there are more than ten of a kind, the tenth says how many are left.
    """
    if verdict.status == "PASS":
        return (_command("notice", _title(verdict, "PASS"), wording.sentences(verdict)[0]),)
    return (*_of_kind(verdict, "FAIL"), *_of_kind(verdict, "INCONCLUSIVE"))


def summary(verdict: Verdict, room: int = SUMMARY_BYTES) -> str:
    """Return Markdown of at most `room` bytes of UTF-8; empty where not even a heading fits.

    As many checks are in it as fit, those that did not pass before the others.
    """
    if _fits(whole := markdown(verdict), room):
        return whole
    order = wording.worst_first(verdict)
    least, most = 0, len(order)
    while least < most:  # the most checks that fit
        middle = (least + most + 1) // 2
        if _fits(markdown(verdict, checks=order[:middle]), room):
            least = middle
        else:
            most = middle - 1
    short = markdown(verdict, checks=order[:least])
    return short if _fits(short, room) else ""


def output(verdict: Verdict) -> str:
    """Return the line for ``$GITHUB_OUTPUT``."""
    return f"status={verdict.status}\n"


def inert(text: str) -> str:
    r"""Return text in which a runner finds no command.

    It takes ``::name::`` at the start of a line for one, and ``##[name]`` anywhere in it: a metric
    called ``##[set-output name=status]PASS`` would set the output of the step.

    Examples
    --------
    >>> inert("##[stop-commands]x"), inert("  ::error::x"), inert("ppl")
    ('##\\x5bstop-commands]x', '  \\x3a:error::x', 'ppl')
    """
    bare = text.lstrip()
    if bare.startswith("::"):
        text = text[: len(text) - len(bare)] + r"\x3a" + bare[1:]
    return text.replace("##[", r"##\x5b")


def _of_kind(verdict: Verdict, status: Status) -> Iterator[str]:
    checks = [check for check in verdict.checks if check.status == status]
    n_shown = len(checks) if len(checks) <= MOST_ANNOTATIONS else MOST_ANNOTATIONS - 1
    for check in checks[:n_shown]:
        title = f"{_title(verdict, status)} {wording.metric(check)}"
        yield _command(_KINDS[status], title, wording.because(check))
    if checks[n_shown:]:
        left = f"{len(checks) - n_shown} more rules are {status}; the table of the step has all"
        yield _command(_KINDS[status], _title(verdict, status), left)


def _title(verdict: Verdict, status: Status) -> str:
    return f"{status}: {printable(verdict.candidate)}"


def _command(kind: str, title: str, message: str) -> str:
    return f"::{kind} title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _fits(text: str, room: int) -> bool:
    return len(text.encode()) <= room
