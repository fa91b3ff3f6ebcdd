"""What a user reads of an error: what and where in one line, every issue of a plan, and a hint."""

import traceback
from collections.abc import Iterator
from typing import Final

import click

from ckptshrink.errors import CkptshrinkError, PlanError
from ckptshrink_cli.exit_codes import is_system_failure
from ckptshrink_cli.streams import Run, say

NAME: Final = "ckptshrink"

_MAX_ISSUES: Final = 20


def report(error: BaseException, run: Run) -> None:
    """Say what went wrong, on standard error; where it came from, only to those who ask."""
    if run.debug and error.__traceback__ is not None:
        say(*"".join(traceback.format_exception(error)).splitlines())
    say(*lines_of(error))


def lines_of(error: BaseException) -> Iterator[str]:
    """Yield the lines that are said about an error."""
    message, hint = _message_and_hint(error)
    yield f"{NAME}: {message}"
    if isinstance(error, PlanError) and error.issues != (error.message,):
        yield from (f"  {issue}" for issue in error.issues[:_MAX_ISSUES])
        if len(error.issues) > _MAX_ISSUES:
            yield f"  and {len(error.issues) - _MAX_ISSUES} more"
    if hint:
        yield f"hint: {hint}"


def _message_and_hint(error: BaseException) -> tuple[str, str | None]:
    if isinstance(error, CkptshrinkError):
        return str(error), error.hint
    if isinstance(error, click.ClickException):
        # click breaks some of its messages into lines
        return " ".join(error.format_message().split()), _usage_hint(error)
    if isinstance(error, MemoryError):
        return "out of memory", None
    if isinstance(error, OSError) and is_system_failure(error):
        place = "" if error.filename is None else f"{error.filename}: "
        return f"{place}the system failed: {error.strerror}", None
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"a bug of ours: {what}", "run it again with --debug, and report what it prints"


def _usage_hint(error: click.ClickException) -> str | None:
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return None
    return f"{error.ctx.command_path} -h"
