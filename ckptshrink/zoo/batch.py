"""A batch of jobs: which are left to do, who does them when, what becomes of those that fail.

One thread looks at the models ahead of the workers; the loop below hands out what it finds, as far
as workers and memory go, and hears what became of it. Nothing is kept of a model that is done: its
record is on the disk, so that memory does not grow with the zoo.
"""

import heapq
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from ckptshrink.errors import CkptshrinkError, WorkerLostError
from ckptshrink.io.part_folder import sweep_in
from ckptshrink.zoo import remote
from ckptshrink.zoo.footprint import BASE, available_memory, footprint_of
from ckptshrink.zoo.jobs import Job
from ckptshrink.zoo.machine import killed_for_memory
from ckptshrink.zoo.standing import Hashes
from ckptshrink.zoo.work import Answer, Order, answer_of, give_up, work

RETRIES: Final = 3
"""Further attempts at what a disk, a network or a store failed at, where nobody says."""

_LOST: Final = 20
"""Attempts at a job whose worker was ended from outside each time: not the job's fault, so that it
takes many of them until it is taken for one."""

_CRASHED: Final = 2
"""Attempts at a job whose worker ended itself, or was ended for its memory."""

_AHEAD: Final = 8
"""Models that are looked at ahead of the workers."""

_LONGEST: Final = 30.0
"""Most seconds between two attempts."""

_SHARE: Final = 0.8
"""Of the memory that is free at the start, what the jobs may take together."""

_Looked = tuple[Job, Answer | None, int]
"""A job, what became of it before if nothing is left to do, and the memory that it will take."""

Kind = Literal["begun", "skipped", "started", "again", "done", "ended"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a batch.

    Attributes
    ----------
    kind : str
        ``skipped``: it was done before, or was given up before. ``again``: an attempt failed, and
        there will be another. ``done``: with whatever status.
    name : str
        Of the model.
    attempt : int
    answer : Answer or None
        What became of it.
    seconds : float
        Until the next attempt, of ``again``.
    total : int
        Models of the batch.
    """

    kind: Kind
    name: str = ""
    attempt: int = 0
    answer: Answer | None = None
    seconds: float = 0.0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Settings:
    """How a batch is run; none of it changes a byte of what comes out, but `threads` and `device`.

    Attributes
    ----------
    out : str
        A folder's path, or a URL.
    threads : int
        CPU threads of each worker.
    device : str
    retries : int
        Further attempts at what may not fail again.
    max_memory : int or None
        Bytes that the jobs of this machine may take together; None is most of what is free.
    force : bool
        Whether everything is done again.
    failed : bool
        Whether only what failed is done, and that whatever it failed at.
    local : bool
        Whether the workers are on this machine, so that its memory is theirs.
    """

    out: str
    threads: int = 1
    device: str = "auto"
    retries: int = RETRIES
    max_memory: int | None = None
    force: bool = False
    failed: bool = False
    local: bool = True


@dataclass(slots=True)
class Totals:
    """What a batch came to.

    Attributes
    ----------
    done, not_good_enough, failed : int
        Models, whether done now or before.
    skipped : int
        Of these, those that were not touched.
    n_unrecorded : int
        Models whose failure could not even be written down.
    """

    total: int = 0
    done: int = 0
    not_good_enough: int = 0
    failed: int = 0
    skipped: int = 0
    n_unrecorded: int = 0
    nbytes_before: int = 0
    nbytes_after: int = 0
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every model is done and good enough."""
        return self.done == self.total

    def add(self, answer: Answer) -> None:
        """Count a model."""
        if answer.status == "done":
            self.done += 1
        elif answer.status == "not good enough":
            self.not_good_enough += 1
        else:
            self.failed += 1
        self.nbytes_before += answer.nbytes_before if answer.nbytes_after else 0
        self.nbytes_after += answer.nbytes_after


@dataclass(order=True, slots=True)
class _Ready:
    """A job that can be handed out, from some moment on."""

    due: float
    number: int
    order: Order = field(compare=False)
    peak: int = field(compare=False)
    failures: int = field(default=0, compare=False)
    losses: int = field(default=0, compare=False)
    crashes: int = field(default=0, compare=False)


def run_batch(
    jobs: Sequence[Job],
    settings: Settings,
    start: Callable[[], Executor],
    tell: Callable[[Event], None],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Totals:
    """Do what is left of every job.

    Parameters
    ----------
    jobs : sequence of Job
    settings : Settings
    start : callable
        Returns the executor, which also says how many `workers` it has; called when there is
        something to do, so that a batch that is done starts none.
    tell : callable
        Told of every event, by the thread that called this.

    Returns
    -------
    Totals
        A model that failed is counted and recorded, and the rest goes on.
    """
    batch = _Batch(jobs, settings, start, tell, clock)
    try:
        return batch.run()
    finally:
        batch.close()


class _Batch:
    """A batch that is running."""

    def __init__(
        self,
        jobs: Sequence[Job],
        settings: Settings,
        start: Callable[[], Executor],
        tell: Callable[[Event], None],
        clock: Callable[[], float],
    ) -> None:
        self._jobs, self._settings, self._start = jobs, settings, start
        self._tell, self._clock = tell, clock
        self._heard: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._waiting: list[_Ready] = []
        self._running: dict[Future[Answer], _Ready] = {}
        self._executor: Executor | None = None
        self._ahead = threading.Semaphore(_AHEAD)
        self._stop = threading.Event()
        self._scout = threading.Thread(target=self._look, daemon=True)
        self._looked = False
        self._numbers = iter(range(1 << 62))
        self._ooms = killed_for_memory()
        self._limit = settings.max_memory or _default_limit()
        self.totals = Totals(total=len(jobs))

    def run(self) -> Totals:
        started = self._clock()
        self._tell(Event("begun", total=len(self._jobs)))
        self._scout.start()
        while self._waiting or self._running or not self._looked or not self._heard.empty():
            self._hand_out()
            timeout = self._until_due()
            with suppress(queue.Empty):
                what, value = self._heard.get(timeout=timeout)
                self._hear(what, value)
        self.totals.seconds = self._clock() - started
        self._tell(Event("ended", total=len(self._jobs)))
        return self.totals

    def close(self) -> None:
        """End the scout and the workers; those that are at work take back what they staged."""
        self._stop.set()
        self._ahead.release()
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=bool(self._running))

    def _look(self) -> None:
        """Look at every job, ahead of the workers: in a thread of its own."""
        hashes = Hashes()
        out = None if remote.is_url(self._settings.out) else Path(self._settings.out)
        try:
            if out is not None:  # what an earlier batch left when it was killed
                for folder in {(out / job.artefact).parent for job in self._jobs}:
                    sweep_in(folder)
            for job in self._jobs:
                self._ahead.acquire()  # opening a file takes memory, and so does what is waiting
                if self._stop.is_set():
                    return
                if out is not None:
                    sweep_in(out / job.reports)
                try:
                    looked = self._looked_at(job, hashes)
                except (CkptshrinkError, OSError):  # such as a store that is down: one model's
                    looked = job, None, BASE  # trouble, which its worker will meet and record
                self._heard.put(("looked", looked))
            self._heard.put(("end", None))
        except BaseException as error:  # it must not be waited for when it is gone
            self._heard.put(("broken", error))

    def _looked_at(self, job: Job, hashes: Hashes) -> _Looked:
        """Return a job with what became of it before, if nothing is left, and its memory."""
        settings = self._settings
        with remote.looking(job, settings.out, hashes) as look:
            standing = look.standing
            record = standing.record
            before = None if record is None else answer_of(record)
            failed = before is not None and before.status != "done"
            done = standing.finished(job.work) or standing.given_up
            if settings.failed:
                done = not failed
                if record is None:
                    before = Answer("failed", message="was never begun; leave --failed out")
            if done and not settings.force and before is not None:
                return job, before, 0
            if look.source is None:  # in a store: its size is all that is known of it
                return job, None, BASE + look.nbytes
            peak = footprint_of(job.work, look.source).peak
        return job, None, peak

    def _hear(self, what: str, value: Any) -> None:
        if what == "looked":
            job, before, peak = value
            if before is not None:
                self._ahead.release()
                self.totals.skipped += 1
                self.totals.add(before)
                self._tell(Event("skipped", job.shown, answer=before))
                return
            settings = self._settings
            order = Order(
                job, settings.out, settings.threads, settings.device,
                force=settings.force, retry=settings.failed,
            )  # fmt: skip
            self._wait(_Ready(0.0, next(self._numbers), order, peak))
        elif what == "end":
            self._looked = True
        elif what == "broken":
            raise value
        else:
            ready = self._running.pop(value)
            self._answered(ready, value)

    def _hand_out(self) -> None:
        """Give jobs to workers, as far as these and memory go."""
        while self._waiting and self._waiting[0].due <= self._clock():
            if self._executor is None:
                self._executor = self._start()
            if len(self._running) >= max(1, getattr(self._executor, "workers", 1)):
                return
            ready = self._waiting[0]
            if self._running and not self._fits(ready):
                return
            heapq.heappop(self._waiting)
            if ready.order.attempt == 1:
                self._ahead.release()
            self._tell(Event("started", ready.order.job.shown, ready.order.attempt))
            future = self._executor.submit(work, ready.order)
            self._running[future] = ready
            future.add_done_callback(lambda done: self._heard.put(("answered", done)))

    def _fits(self, ready: _Ready) -> bool:
        if ready.crashes:  # the next attempt is alone, so that nobody else is to blame, or to pay
            return False
        if any(other.crashes for other in self._running.values()):
            return False
        if not self._settings.local or self._limit is None:
            return True
        taken = sum(other.peak for other in self._running.values())
        return taken + ready.peak <= self._limit

    def _answered(self, ready: _Ready, future: "Future[Answer]") -> None:
        order = ready.order
        error = future.exception()
        if error is None:
            answer = future.result()
            if answer.status != "again":
                self._done(order, answer)
                return
            message, said, limit = answer.message, "", self._settings.retries + 1
            ready.failures += 1
            count, delay = ready.failures, min(_LONGEST, 2.0 ** (ready.failures - 1))
        else:
            message, said = _lost(error), getattr(error, "said", "")
            if _is_bug(error):
                self._give_up(order, message, crashed=True)
                return
            delay = 0.0
            if getattr(error, "crashed", False) or self._was_memory():
                ready.crashes += 1
                count, limit = ready.crashes, _CRASHED
            else:
                ready.losses += 1
                count, limit = ready.losses, _LOST
        if count >= limit:
            self._give_up(_with(order, message, said), message, crashed=bool(ready.crashes))
            return
        self._tell(
            Event("again", order.job.shown, order.attempt, Answer("again", message=message), delay)
        )
        ready.order = replace(_with(order, message, said), attempt=order.attempt + 1)
        ready.due = self._clock() + delay
        self._wait(ready)

    def _give_up(self, order: Order, message: str, *, crashed: bool) -> None:
        try:
            answer = give_up(order, message, crashed=crashed)
        except (CkptshrinkError, OSError) as error:
            answer = Answer("failed", message=f"{message}; and no record could be kept: {error}")
            self.totals.n_unrecorded += 1
        self._done(order, answer)

    def _done(self, order: Order, answer: Answer) -> None:
        self.totals.add(answer)
        self._tell(Event("done", order.job.shown, order.attempt, answer))

    def _wait(self, ready: _Ready) -> None:
        heapq.heappush(self._waiting, ready)

    def _until_due(self) -> float:
        """Return the seconds for which there is nothing to do but hear."""
        if not self._waiting:
            return 1.0
        return min(1.0, max(0.0, self._waiting[0].due - self._clock()) or 0.2)

    def _was_memory(self) -> bool:
        """Return whether the system has ended a process for its memory since it was asked last."""
        before, self._ooms = self._ooms, killed_for_memory()
        return self._settings.local and self._ooms > before


def _with(order: Order, message: str, said: str) -> Order:
    line = f"attempt {order.attempt}: {message}"
    return replace(order, lost=(*order.lost, line, *said.splitlines()[-40:]))


def _lost(error: BaseException) -> str:
    if isinstance(error, WorkerLostError):
        return str(error)
    return f"its worker was lost: {type(error).__name__}: {error}"


def _is_bug(error: BaseException) -> bool:
    """Return whether the job itself raised, which it never should.

    Executors say of a worker that is gone, however they call that, that it was lost.
    """
    return not isinstance(error, WorkerLostError | OSError)


def _default_limit() -> int | None:
    free = available_memory()
    return None if free is None else int(_SHARE * free)
