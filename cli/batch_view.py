"""What is seen of a batch while it runs: lines at the foot of a terminal, plain ones in a log."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from ckptshrink.errors import OutputError
from ckptshrink_cli import progress, render
from ckptshrink_cli.streams import Run

if TYPE_CHECKING:
    from ckptshrink.zoo.batch import Event

_BAR: Final = 24
_MOST_RUNNING: Final = 16
"""Models that are shown while they run; more do not fit above the prompt."""


class View:
    """Hears the events of a batch, and says what a person wants to know of them.

    Parameters
    ----------
    say : callable
        Takes a line that stays.
    clock : callable, optional
        Seconds that only grow.
    """

    def __init__(
        self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._clock = say, clock
        self._started = clock()
        self._running: dict[str, float] = {}
        self._total = self._seen = self._worked = self._failed = 0
        self._saved = 0

    def __call__(self, event: "Event") -> None:
        """Hear an event."""
        answer = event.answer
        if event.kind == "begun":
            self._total = event.total
        elif event.kind == "started":
            self._running[event.name] = self._clock()
        elif event.kind == "again" and answer is not None:
            self._running.pop(event.name, None)
            when = f" in {event.seconds:g} s" if event.seconds else ""
            self._say(f"again{when}: {event.name}: {answer.message}")
        elif event.kind in {"done", "skipped"} and answer is not None:
            self._running.pop(event.name, None)
            self._seen += 1
            self._failed += answer.status != "done"
            self._saved += max(0, answer.nbytes_before - answer.nbytes_after)
            if event.kind == "done":
                self._worked += 1
                self._say(f"[{self._seen}/{self._total}] {_line(event)}")
            elif answer.status != "done":
                self._say(f"[{self._seen}/{self._total}] as before: {_line(event)}")

    def lines(self) -> list[str]:
        """Return what is going on, for the foot of a terminal."""
        share = self._seen / self._total if self._total else 1.0
        filled = round(share * _BAR)
        parts = [f"{self._seen}/{self._total} models"]
        if self._failed:
            parts.append(f"{self._failed} failed")
        parts.append(f"{render.size(self._saved)} saved")
        left = self._left()
        if left is not None:
            parts.append(f"{render.duration(left)} left")
        bar = "━" * filled + "╌" * (_BAR - filled)
        now = self._clock()
        running = sorted(self._running.items(), key=lambda item: item[1])
        shown = [f"  {render.duration(now - t):>7} {name}" for name, t in running[:_MOST_RUNNING]]
        more = len(running) - len(shown)
        return [
            f"{share:4.0%} {bar} {', '.join(parts)}",
            *shown,
            *([f"  and {more} more"] * (more > 0)),
        ]

    def _left(self) -> float | None:
        """Return the seconds that are left, at the pace of those that were worked on."""
        if not self._worked or self._seen >= self._total:
            return None
        return (self._clock() - self._started) / self._worked * (self._total - self._seen)


@contextmanager
def shown(run: Run) -> "Iterator[Callable[[Event], None]]":
    """Yield what is to be told of a batch's events."""
    if run.quiet:
        yield lambda event: None
    elif run.progress and progress.can_draw():
        with ExitStack() as opened:
            view = View(lambda line: say(line))
            say = opened.enter_context(render.changing_lines(view.lines))
            yield view
    else:
        yield View(run.say)


@contextmanager
def written(path: Path | None) -> "Iterator[Callable[[Event], None]]":
    """Yield what writes events to a file as they come, one JSON object a line.

    Raises
    ------
    OutputError
        It can't be written to.
    """
    if path is None:
        yield lambda event: None
        return
    try:
        with path.open("a", encoding="utf-8") as file:
            yield lambda event: _append(file, event, path)
    except OSError as error:
        raise OutputError(f"can't be written: {error.strerror}", path=path) from error


def _append(file: TextIO, event: "Event", path: Path) -> None:
    try:
        file.write(json.dumps(document_of(event), allow_nan=False) + "\n")
        file.flush()
    except OSError as error:
        raise OutputError(f"can't be written: {error.strerror}", path=path) from error


def document_of(event: "Event") -> dict[str, Any]:
    """Return an event as one JSON object; what it does not have is left out."""
    document: dict[str, Any] = {
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "event": event.kind,
    }
    if event.kind in {"begun", "ended"}:
        return document | {"n_models": event.total}
    document |= {"name": event.name}
    if event.attempt:
        document |= {"attempt": event.attempt}
    answer = event.answer
    if event.kind == "again" and answer is not None:
        document |= {"message": answer.message, "delay_seconds": event.seconds}
    elif answer is not None:
        document |= {
            "status": answer.status,
            "gate": answer.gate,
            "nbytes_before": answer.nbytes_before,
            "nbytes_after": answer.nbytes_after,
            "seconds": answer.seconds,
            "message": answer.message,
        }
    return document


def _line(event: "Event") -> str:
    answer = event.answer
    if answer is None:
        return event.name
    if answer.status == "failed":
        return f"failed: {event.name}: {answer.message}"
    sizes = f"{render.size(answer.nbytes_before)} → {render.size(answer.nbytes_after)}"
    gate = f", gate {answer.gate}" if answer.gate else ""
    because = f": {answer.message}" if answer.message else ""
    return f"{answer.status}: {event.name}: {sizes} in {answer.seconds:.1f} s{gate}{because}"
