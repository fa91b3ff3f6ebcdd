"""Worker processes of this machine behind the interface of `concurrent.futures.Executor`.

The pool of the standard library is broken for good once one of its workers is killed, and takes
every job in it down. So each worker here is a pool of its own, of one process: a kill costs the one
job, and the worker is made again.
"""

import faulthandler
import fcntl
import multiprocessing
import multiprocessing.context
import multiprocessing.util
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import cache
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeVar

from ckptshrink.errors import WorkerLostError
from ckptshrink.zoo import work

T = TypeVar("T")

_PRELOADED: Final = [
    "__main__", "ckptshrink.zoo.work", "ckptshrink.rewrite", "ckptshrink.verification",
    "ckptshrink.recompute",
]  # fmt: skip
"""What a worker needs, torch with it: read once, by the process that workers are forked from."""

_SCORING: Final = ["ckptshrink.zoo.scoring", "ckptshrink.evaluation.perplexity"]
"""And what it needs to score models, which takes as long again."""

_SINGLE: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Libraries read these when they are loaded; else each worker has as many threads as cores."""

_CRASHES: Final = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
)
"""Signals that a process brings upon itself."""

_PATIENCE: Final = 10.0
"""Seconds in which a worker that was asked to end takes back what it staged."""

_STARTS: Final = 3
"""Workers that are started for one call, should each be killed before it gets it."""

_PAUSE: Final = 0.2
"""Seconds between two such: a fork server that is dying refuses, and can't be waited for yet."""

_ASKED: Final = 128 + signal.SIGTERM
"""Exit status of a worker that was asked to end, and took back what it staged."""

_LOCK: Final = "ckptshrink-lock"

_TAIL: Final = 8_000
"""Bytes of what a lost worker wrote last that are kept."""


class WorkerStopped(BaseException):
    """A worker was asked to end. No `Exception`: nothing but cleaning up catches it."""


class LocalExecutor(Executor):
    """Runs each call in a process of this machine; a call whose process dies ends alone.

    Parameters
    ----------
    workers : int
        Most processes at once.
    scoring : bool
        Whether the calls will score models.
    """

    def __init__(self, workers: int, *, scoring: bool = False) -> None:
        preloaded = [*_PRELOADED, *(_SCORING if scoring else [])]
        self._slots = [_Slot(preloaded) for _ in range(workers)]
        self._lock = threading.Lock()

    @property
    def workers(self) -> int:
        """Return how many calls can run at once."""
        return len(self._slots)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        """Run a call in the worker that has the least to do.

        The future raises `WorkerLostError` if the worker ends in the middle of it.
        """
        with self._lock:
            slot = min(self._slots, key=lambda each: each.waiting)
            return slot.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers; with `cancel_futures` at once, each taking back what it staged."""
        for slot in self._slots:
            slot.end(now=cancel_futures)
        deadline = time.monotonic() + _PATIENCE if cancel_futures else None
        for slot in self._slots if wait else ():
            slot.join(deadline)


@cache
def _folder() -> Path:
    """Return the folder of this process in which its fork server's socket is, and what is said.

    A lock in it says that the process lives; it is never given back.
    """
    folder = Path(multiprocessing.util.get_temp_dir())
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with suppress(OSError):  # no locks on this file system
        fcntl.flock(lock, fcntl.LOCK_EX)
    return folder


class _Slot:
    """One worker: a pool of one process, and another one when that is gone."""

    def __init__(self, preloaded: Sequence[str]) -> None:
        self._preloaded = preloaded
        self._pool: ProcessPoolExecutor | None = None
        self._processes: list[BaseProcess] = []
        self._output: Path | None = None
        self._ended = False
        self.waiting = 0

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        outer: Future[T] = Future()
        outer.set_running_or_notify_cancel()
        why = ""
        for number in range(_STARTS):
            time.sleep(number * _PAUSE)
            try:
                pool = self._pool or self._start()
                inner = pool.submit(_called, fn, *args, **kwargs)
                break
            except BrokenProcessPool:  # killed while it had nothing to do
                self._drop()
            except (OSError, EOFError) as error:  # its fork server was killed, or can't fork
                why = f": {type(error).__name__} {error}".rstrip()
                self._drop()
        else:
            lost = WorkerLostError(f"its workers ended as soon as they started{why}")
            outer.set_exception(lost)
            return outer
        self.waiting += 1

        def done(inner: "Future[T]") -> None:
            self.waiting -= 1
            if inner.cancelled():
                outer.set_exception(WorkerLostError("its worker was ended"))
                return
            error = inner.exception()
            if isinstance(error, BrokenProcessPool):
                if self._pool is pool:
                    self._pool = None
                outer.set_exception(self._lost())
            elif error is not None:
                outer.set_exception(error)
            else:
                outer.set_result(inner.result())

        inner.add_done_callback(done)
        return outer

    def _start(self) -> ProcessPoolExecutor:
        if self._ended:
            raise WorkerLostError("the workers were ended")
        if self._output is None:
            number, name = tempfile.mkstemp(prefix="ckptshrink-worker-", dir=_folder())
            os.close(number)
            self._output = Path(name)
        self._processes = []
        self._pool = ProcessPoolExecutor(
            1,
            mp_context=_Context(self._processes, self._preloaded),
            initializer=_prepare,
            initargs=(str(self._output),),
        )
        return self._pool

    def _drop(self) -> None:
        """Forget a pool that takes no calls; it may have a process that never started."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool, self._processes = None, []

    def _lost(self) -> WorkerLostError:
        """Return how the worker ended. Called by the thread that joins it: two would race."""
        code = None
        for process in self._processes[-1:]:
            process.join(1.0)
            code = process.exitcode
        said = self._said()
        if code == _ASKED:
            return WorkerLostError("its worker was asked to end", said=said)
        if code is None or code >= 0:
            return WorkerLostError("its worker was lost", said=said)
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        crashed = -code in _CRASHES
        return WorkerLostError(f"its worker was ended by {name}", crashed=crashed, said=said)

    def _said(self) -> str:
        try:
            data = b"" if self._output is None else self._output.read_bytes()[-_TAIL:]
        except OSError:
            return ""
        return data.decode("utf-8", "replace")

    def end(self, *, now: bool) -> None:
        self._ended = True
        for process in self._processes if now else ():
            with suppress(ValueError, OSError):
                process.terminate()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=now)

    def join(self, deadline: float | None) -> None:
        while deadline is not None and self._alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        for process in self._processes if deadline is not None else ():
            with suppress(ValueError, OSError):
                process.kill()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        if self._output is not None:
            self._output.unlink(missing_ok=True)

    def _alive(self) -> bool:
        return bool(self.waiting) and self._pool is not None


class _Context(multiprocessing.context.ForkServerContext):
    """A context of multiprocessing that keeps the processes which are made in it.

    Workers are forked from a process in which torch was imported already, and nothing was run: a
    new one is there in some hundredths of a second, and shares its pages with the others.
    """

    def __init__(self, made: list[BaseProcess], preloaded: Sequence[str]) -> None:
        self.set_forkserver_preload(list(preloaded))
        self._made = made

    def Process(self, *args: Any, **kwargs: Any) -> BaseProcess:  # type: ignore[override]  # noqa: N802
        """Make a process; named as the class is that stands here in its base."""
        process = _Recorded(*args, **kwargs)
        self._made.append(process)
        return process


class _Recorded(multiprocessing.context.ForkServerProcess):
    """A worker, started from an environment in which numerical libraries take one thread."""

    def start(self) -> None:
        added = [name for name in _SINGLE if name not in os.environ]
        os.environ.update(dict.fromkeys(added, "1"))
        try:
            super().start()
        finally:
            for name in added:
                del os.environ[name]


def _prepare(output: str) -> None:
    """Make a process a worker: Ctrl-C is its parent's business, and it ends when that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    # the terminal is its parent's as well; what libraries write is kept for the log
    written = os.open(output, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for number in (1, 2):
        os.dup2(written, number)
    faulthandler.enable(file=2)
    work.said_by_libraries = _said
    threading.Thread(target=_end_with_parent, args=(output,), daemon=True).start()


def _called(fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function; a worker that is asked to end meanwhile does so when all is taken back."""
    try:
        return fn(*args, **kwargs)
    except WorkerStopped:
        os._exit(_ASKED)  # else its pool would have it wait for the next call


def _said() -> str:
    """Return what was written since it was asked last."""
    size = os.fstat(1).st_size
    text = os.pread(1, min(size, _TAIL), max(0, size - _TAIL)).decode("utf-8", "replace")
    os.ftruncate(1, 0)
    return text


def _stop(number: int, frame: FrameType | None) -> None:
    raise WorkerStopped


def _end_with_parent(output: str) -> None:
    """End this process when its parent is gone, or the process that it was forked from.

    Without a parent nobody would take what it makes; and a batch whose fork server was killed has
    given this worker up and started another.
    """
    parent = multiprocessing.parent_process()
    forked_from = os.getppid()
    while os.getppid() == forked_from:
        if parent is not None and wait_for([parent.sentinel], timeout=1.0):
            # the sentinel falls when a pool is dropped, too; the lock only with the batch, which
            # was killed then, or it would have removed the folder itself
            folder = Path(output).parent
            for _ in range(20):  # files of a process are closed one after the other
                with suppress(OSError):
                    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
                    break
                time.sleep(0.05)
            break
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE)
    os._exit(1)
