"""Standard output carries data, standard error carries talk. Nothing else writes to either."""

import json
import os
import sys
from dataclasses import dataclass
from typing import Any, TextIO

from ckptshrink.errors import OutputError, printable


@dataclass(slots=True)
class Run:
    """How a run talks; filled in by the options that every command has.

    Attributes
    ----------
    debug : bool
        Whether an error shows its traceback.
    quiet : bool
        Whether nothing but errors is said.
    progress : bool
        Whether progress is shown.
    """

    debug: bool = False
    quiet: bool = False
    progress: bool = True

    def say(self, *lines: str) -> None:
        """Write lines to standard error, unless the run is quiet."""
        if not self.quiet:
            say(*lines)


def prepare() -> None:
    """Make the three standard streams usable, whatever the caller did to them.

    A stream that was closed is opened on the null device: else the first file that is opened takes
    its number, and what is meant for the terminal lands in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - a descriptor
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # names come from files and may have letters that the terminal's encoding has not
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def emit(text: str) -> None:
    """Write data to standard output.

    A reader that has seen enough (``| head -1``) is no error: the rest is dropped in silence.

    Raises
    ------
    OutputError
        Standard output can't take it, for instance because its disk is full.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_rest(sys.stdout)
    except OSError as error:
        _drop_rest(sys.stdout)
        raise OutputError(
            f"can't be written: {error.strerror or error}", path="standard output"
        ) from error


def emit_json(document: dict[str, Any]) -> None:
    """Write one JSON document to standard output, in ASCII, so that any terminal can carry it."""
    emit(json.dumps(document, indent=1, allow_nan=False) + "\n")


def say(*lines: str) -> None:
    """Write lines to standard error; where nobody can hear them, they are lost."""
    try:
        sys.stderr.write("".join(f"{printable(line)}\n" for line in lines))
        sys.stderr.flush()
    except OSError:
        _drop_rest(sys.stderr)


def _drop_rest(stream: TextIO) -> None:
    """Point a stream at the null device: Python fails with status 120 if its last flush fails."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
