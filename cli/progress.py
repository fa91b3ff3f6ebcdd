"""Whether, and how, a run shows how far it has come."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from ckptshrink.events import Listener, Progress, silent
from ckptshrink_cli import render
from ckptshrink_cli.streams import Run

SECONDS: Final = 10.0
"""Least time between two lines where there is no terminal to draw a bar on."""


@contextmanager
def shown(run: Run) -> Iterator[Listener]:
    """Yield what a long job tells its progress to: a bar, a line now and then, or nobody."""
    if run.quiet or not run.progress or os.environ.get("NO_PROGRESS"):
        yield silent
    elif can_draw():
        with render.progress_bar() as listener:
            yield listener
    else:
        yield Lines(run.say)


class Lines:
    """Says where a job is, at most every `SECONDS`; a short job says nothing.

    Parameters
    ----------
    say : callable
        Takes a line.
    clock : callable, optional
        Seconds that only grow.
    """

    def __init__(
        self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say = say
        self._clock = clock
        self._last = clock()

    def __call__(self, progress: Progress) -> None:
        """Say where the job is, unless that was said just now."""
        now = self._clock()
        if now - self._last < SECONDS:
            return
        self._last = now
        share = progress.done / progress.total if progress.total else 1.0
        self._say(f"{share:4.0%} {progress.doing}")


class Nested:
    """Progress of jobs one after the other, each of which has a progress of its own.

    Parameters
    ----------
    listen : callable
        Told of both as one.
    """

    _PARTS: Final = 10_000

    def __init__(self, listen: Listener) -> None:
        self._listen = listen
        self._job = Progress("", 0, 1)

    def jobs(self, progress: Progress) -> None:
        """Take how many jobs are done, and which one is next."""
        self._job = progress
        self._tell(progress.doing, 0.0)

    def inside(self, progress: Progress) -> None:
        """Take how far the job of the moment is."""
        share = progress.done / progress.total if progress.total else 0.0
        self._tell(f"{self._job.doing}: {progress.doing}", share)

    def _tell(self, doing: str, share: float) -> None:
        done = int((self._job.done + share) * self._PARTS)
        self._listen(Progress(doing, done, self._job.total * self._PARTS))


def can_draw() -> bool:
    """Return whether standard error is a terminal that can move its cursor, with someone at it."""
    dumb = os.environ.get("TERM") in {None, "", "dumb"}
    return sys.stderr.isatty() and not dumb and not os.environ.get("CI")
