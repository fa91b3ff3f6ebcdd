"""Where a verdict goes beside the terminal: report files, and what GitHub Actions reads."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from ckptshrink_cli.streams import Run, say

if TYPE_CHECKING:
    from ckptshrink.evaluation.gate.verdict import Verdict

_JUNIT: Final = b'<testsuites name="ckptshrink gate"'
_MARKDOWN: Final = b"### ckptshrink gate: "
_HEAD: Final = 100
"""Bytes of a file in which a report says that it is one."""


@dataclass(frozen=True, slots=True)
class Reports:
    """What is to be written.

    The report of an earlier gate is replaced, since a job that runs again has the same file names;
    any other file is left as it is.

    Attributes
    ----------
    junit, markdown : Path or None
    inputs : tuple of Path
        Files that are read, and so are none of those that are written.
    github : bool
        Whether GitHub Actions is told, where the run is in one of its jobs.
    """

    junit: Path | None
    markdown: Path | None
    inputs: tuple[Path, ...]
    github: bool

    def check(self) -> None:
        """Refuse a file that can't be written, before there is a verdict to lose.

        Raises
        ------
        OutputError
            See `ckptshrink.io.staging.check_target`.
        """
        from ckptshrink.errors import OutputError
        from ckptshrink.io.staging import check_target

        found: dict[Path, str] = {}
        reports = (("--junit", self.junit, _JUNIT), ("--markdown", self.markdown, _MARKDOWN))
        for flag, target, start in reports:
            if target is None:
                continue
            hint = f"give {flag} another file"
            try:
                real = check_target(target, overwrite=True, single=True, inputs=self.inputs)
            except OutputError as error:
                raise OutputError(error.message, path=target, hint=hint) from error
            if real in found:
                raise OutputError(f"is what {found[real]} is written to", path=target, hint=hint)
            if not _is_report(real, start):
                raise OutputError("is there, and no report of a gate", path=target, hint=hint)
            found[real] = flag

    def write(self, run: Run, verdict: "Verdict") -> None:
        """Tell GitHub first, since that can't fail the run, and write the files.

        Raises
        ------
        OutputError
            A file can't be written.
        """
        if self.github:
            _tell_github(run, verdict)
        for path, data in self._files(verdict):
            self._write(path, data)
            run.say(f"wrote {path}")

    def _files(self, verdict: "Verdict") -> Iterator[tuple[Path, bytes]]:
        if self.junit is not None:
            from ckptshrink.evaluation.gate.junit import junit

            yield self.junit, junit(verdict)
        if self.markdown is not None:
            from ckptshrink.evaluation.gate.markdown import markdown

            yield self.markdown, markdown(verdict).encode()

    def _write(self, path: Path, data: bytes) -> None:
        from ckptshrink.io.staging import Staging

        with Staging(path, single=True, overwrite=True, inputs=self.inputs) as staging:
            staging.create(path.name).write(data)
            staging.commit()


def _is_report(path: Path, start: bytes) -> bool:
    """Return whether a file may be replaced: it is not there, empty, or begins as a report does."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return not head or start in head


def _tell_github(run: Run, verdict: "Verdict") -> None:
    """Write what the runner of a job reads; a file of its that can't be written is said."""
    from ckptshrink.evaluation.gate import github

    if os.environ.get("GITHUB_ACTIONS") == "true":
        run.say(*github.annotations(verdict))
    if path := os.environ.get("GITHUB_OUTPUT"):
        _append(path, github.output(verdict))
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        room = github.SUMMARY_BYTES - _nbytes(path)
        if text := github.summary(verdict, room - 2):  # less the ends of two lines
            _append(path, f"\n{text}")
        else:
            say("note: the summary of this step has no room left")


def _append(path: str, text: str) -> None:
    """Append to a file of the runner, which other commands of the step write to as well."""
    try:
        with Path(path).open("a+b") as file:
            if file.tell() and _last_byte(file) != b"\n":
                file.write(b"\n")
            file.write(text.encode())
    except OSError as error:
        say(f"note: GitHub is not told: {path}: {error.strerror}")


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def _nbytes(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
