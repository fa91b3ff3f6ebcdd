"""What the exit status of a run means: one table, from the class of an error to its number."""

import errno
from typing import Final

import click

from ckptshrink.errors import (
    CheckpointError,
    EvaluationError,
    EvaluationInputError,
    ManifestMismatchError,
    OutputError,
    PlanError,
    TransientError,
    WorkerLostError,
)

DONE: Final = 0
"""Done as asked."""

NO: Final = 1
"""The answer is no: `verify` found a difference, a gate failed, an evaluation failed."""

USAGE: Final = 2
"""The command line can't be understood."""

INPUT: Final = 3
"""The input is unreadable or unsafe, nothing matched, or the plan can't be met."""

OUTPUT: Final = 4
"""The target exists, can't be written, or there is no room for it."""

INCONCLUSIVE: Final = 5
"""There are too few examples for the gate to say yes or no."""

SOME_FAILED: Final = 6
"""A batch finished, and some of its models failed, or are not good enough."""

BUG: Final = 70
"""Anything that nobody foresaw: a bug of ours."""

SIGNALLED: Final = 128
"""Added to the number of the signal that ended the run: 130 is Ctrl-C, 143 SIGTERM."""

_STATUS_OF: Final[tuple[tuple[type[BaseException], int], ...]] = (
    (click.ClickException, USAGE),
    (CheckpointError, INPUT),
    (PlanError, INPUT),
    (ManifestMismatchError, INPUT),
    (EvaluationInputError, INPUT),
    (EvaluationError, NO),
    (OutputError, OUTPUT),
    (TransientError, OUTPUT),
    (WorkerLostError, OUTPUT),
)


_SYSTEM: Final = frozenset(
    {
        errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE,
        errno.ENFILE, errno.ENOMEM, errno.ESTALE,
    }
)  # fmt: skip
"""What no program is to blame for: a disk that fails or is full, or too little of anything."""


class Stopped(BaseException):
    """A signal asked the run to end. No `Exception`, so that nothing but cleaning up catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def is_system_failure(error: BaseException) -> bool:
    """Return whether the machine failed, wherever that was met."""
    return isinstance(error, OSError) and error.errno in _SYSTEM


def status_of(error: BaseException) -> int:
    """Return the exit status of a run that ended with an error."""
    if isinstance(error, Stopped):
        return SIGNALLED + error.number
    if is_system_failure(error):
        return OUTPUT
    return next((status for kind, status in _STATUS_OF if isinstance(error, kind)), BUG)
