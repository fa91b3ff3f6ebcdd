"""Run somebody's program: bounded in time and in what it may say, and nothing of it left behind."""

import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Final

from ckptshrink.errors import EvaluationError, EvaluationInputError, printable

MOST_BYTES: Final = 64 << 20
"""Bytes of standard output that are an answer: per-example results of a million examples."""

_LOG_BYTES: Final = 64 << 10
"""Bytes of standard error that are kept: its end, where the cause stands."""

_SHOWN_BYTES: Final = 2_000
"""Bytes of standard output that a log shows: its beginning."""

_READ: Final = 1 << 16
_TICK: Final = 0.05
"""Seconds between two looks whether a program has ended whose children hold its output open."""

_LAST_READS: Final = 32
"""Reads after a program has ended, which are more than a pipe holds (1 MiB at most): a child that
left its session may go on for ever, and is not waited for."""


def run_program(
    command: Sequence[str], *, env: Mapping[str, str], timeout: float | None = None
) -> tuple[bytes, str]:
    """Run a program to its end, in a session of its own and without input.

    Whatever it started that is still in its process group is killed at the end.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments; no shell reads them.
    env : mapping of str to str
        All of its environment.
    timeout : float, optional
        Seconds that it may take.

    Returns
    -------
    stdout : bytes
    log : str
        The end of its standard error, and the beginning of its standard output.

    Raises
    ------
    EvaluationInputError
        There is no such program, or it can't be started.
    EvaluationError
        It ended with another status than 0 or by a signal, took too long, or said more than
        `MOST_BYTES`. Its log is in the error.
    """
    try:
        process = subprocess.Popen(  # noqa: S603
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EvaluationInputError(f"{printable(command[0])} can't be run: {reason}") from error
    said = _Said()
    try:
        failure = _followed(process, said, timeout)
    finally:
        _end(process)
    if failure is None and process.returncode:
        failure = _how_it_ended(process.returncode)
    if failure is not None:
        raise EvaluationError(f"{printable(command[0])} {failure}", log=said.log())
    return bytes(said.stdout), said.log()


class _Said:
    """What a program said: the whole of its answer, the end of the rest."""

    def __init__(self) -> None:
        self.stdout = bytearray()
        self._stderr: deque[bytes] = deque()
        self._n_kept = 0

    def error(self, data: bytes) -> None:
        self._stderr.append(data)
        self._n_kept += len(data)
        while self._n_kept - len(self._stderr[0]) >= _LOG_BYTES:
            self._n_kept -= len(self._stderr.popleft())

    def log(self) -> str:
        parts = [_shown(b"".join(self._stderr)[-_LOG_BYTES:])]
        if self.stdout:
            begins = "begins" if len(self.stdout) > _SHOWN_BYTES else "is"
            parts.append(f"standard output {begins}:\n{_shown(self.stdout[:_SHOWN_BYTES])}")
        return "\n".join(part for part in parts if part)


def _followed(process: subprocess.Popen[bytes], said: _Said, timeout: float | None) -> str | None:
    """Read what a program says until it has ended; return why it was not let go on, if so."""
    stop_at = None if timeout is None else time.monotonic() + timeout
    pipes: list[tuple[IO[bytes] | None, bool]] = [(process.stdout, True), (process.stderr, False)]
    with selectors.DefaultSelector() as selector:
        for pipe, is_answer in pipes:
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_READ, is_answer)
        while not _has_ended(process.pid):
            _read(selector, said, _TICK)
            if len(said.stdout) > MOST_BYTES:
                break
            if stop_at is not None and time.monotonic() > stop_at:
                return f"took longer than {timeout:g} seconds"
        for _ in range(_LAST_READS):
            if not _read(selector, said, 0):
                break
    if len(said.stdout) > MOST_BYTES:
        return f"said more than {MOST_BYTES >> 20} MiB on its standard output"
    return None


def _read(selector: selectors.BaseSelector, said: _Said, patience: float) -> bool:
    """Read once of every pipe that has something; return whether any had."""
    ready = selector.select(patience)
    for key, _ in ready:
        with suppress(BlockingIOError):
            data = os.read(key.fd, _READ)
            if not data:
                selector.unregister(key.fileobj)
            elif key.data:
                said.stdout += data
            else:
                said.error(data)
    return bool(ready)


def _has_ended(pid: int) -> bool:
    """Return whether a child has ended; it stays to be waited for, so that its id is not reused."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a program's process group, and wait for the program."""
    with suppress(ProcessLookupError, PermissionError):
        # It was not waited for yet, so that the group of its id is still its own.
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # it may have left its group
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _how_it_ended(status: int) -> str:
    if status > 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}"


def _shown(data: bytes | bytearray) -> str:
    """Return output as text without what could steer a terminal, a line a line."""
    lines = data.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    return "\n".join(printable(line.replace("\t", "    ")) for line in lines).strip("\n")
