"""One new file: hashed while it is written, synced, and read back before it counts."""

import hashlib
import os
import queue
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckptshrink.digest import CHUNK
from ckptshrink.errors import OutputError

_QUEUED: Final = 96
"""Chunks that may wait for the writing thread: 96 MiB, so that no matrix waits for the last one."""

_WRITEBACK: Final = 16 << 20
"""Bytes after which the disk is set to work on them: an fsync of 348 MB then took 4 ms, not 95."""


@dataclass(frozen=True, slots=True)
class StagedRecord:
    """A written file: its path relative to the target folder, its bytes and their SHA-256."""

    path: str
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _Mark:
    """A run of a written file and its CRC-32."""

    start: int
    nbytes: int
    crc: int

    @property
    def stop(self) -> int:
        return self.start + self.nbytes

    def holds(self, descriptor: int) -> bool:
        """Read the run back and compare."""
        crc, at = 0, self.start
        while at < self.stop and (data := os.pread(descriptor, self.stop - at, at)):
            crc, at = zlib.crc32(data, crc), at + len(data)
        return at == self.stop and crc == self.crc


class StagedFile:
    """A new file that is hashed while it is written.

    Only what has been handed to `write` is in the file: there is no seeking and no pre-sizing, so
    that a full disk is met while writing and never after.

    Parameters
    ----------
    path : Path
        Must not exist.
    relpath : str
        Of the record.
    shown : Path, optional
        What the user knows it as, where that isn't `path`.
    aside : bool
        Whether a thread of its own writes and hashes it, so that no matrix waits for the last one.
    """

    def __init__(
        self, path: Path, relpath: str, shown: Path | None = None, *, aside: bool = True
    ) -> None:
        self.path = path
        self.shown = path if shown is None else shown
        self.relpath = relpath
        self.nbytes = 0
        self._sha = hashlib.sha256()
        self._failure: Exception | None = None
        self._queue: queue.Queue[memoryview | None] = queue.Queue(maxsize=_QUEUED)
        self._marks: list[_Mark] = []
        self._written = self._handed_on = 0
        # 0o666 and not 0o600: the umask alone decides, as for any file the user makes.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        self._fd = os.open(path, flags, 0o666)
        self._thread: threading.Thread | None = None
        if aside:
            name = f"write {relpath}"
            self._thread = threading.Thread(target=self._drain, name=name, daemon=True)
            self._thread.start()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append bytes. They are copied, so that the caller may reuse its buffer.

        Raises
        ------
        OutputError
            An earlier write failed (full disk, I/O error).
        """
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK):
            chunk = view[start : start + CHUNK]
            self._put(chunk if self._thread is None else memoryview(bytes(chunk)))
        return len(view)

    def give(self, data: memoryview) -> None:
        """Append bytes that nobody changes any more: they are not copied. Raises as `write`."""
        view = data.cast("B") if data.nbytes else memoryview(b"")
        for start in range(0, len(view), CHUNK):
            self._put(view[start : start + CHUNK])

    def _put(self, chunk: memoryview) -> None:
        self._raise_failure()
        if self._thread is None:
            self._take(chunk)
            self._raise_failure()
        else:
            self._queue.put(chunk)
        self.nbytes += len(chunk)

    def flush(self) -> None:
        """Do nothing: `close` is what makes the bytes durable."""

    def close(self) -> StagedRecord:
        """Write out, sync, read back and close; return the record.

        Raises
        ------
        OutputError
            A write, the sync or the close failed, or what was written reads back otherwise.
        """
        self._stop()
        try:
            self._raise_failure()
            with os_errors(self.shown):
                # once and never again: a second fsync after a failed one says that all is well
                os.fsync(self._fd)
                self._read_back()
                self._close()  # network file systems may say only now that there is no room
        finally:
            self.abandon()
        return StagedRecord(self.relpath, self.nbytes, self._sha.hexdigest())

    def abandon(self) -> None:
        """Stop writing and close without a sync."""
        if self._fd >= 0:
            self._stop()
            with suppress(OSError):
                self._close()

    def _read_back(self) -> None:
        # CRC-32 and not SHA-256: for a disk that errs it is as good, and three times as fast
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            if self._thread is None:
                same = [mark.holds(descriptor) for mark in self._marks]
            else:
                with ThreadPoolExecutor(2) as pool:
                    same = list(pool.map(lambda mark: mark.holds(descriptor), self._marks))
        finally:
            os.close(descriptor)
        if not all(same):
            raise OutputError(
                "read back otherwise than it was written: the disk can't be trusted",
                path=self.shown,
            )

    def _close(self) -> None:
        descriptor, self._fd = self._fd, -1  # closed even where that fails: never twice
        os.close(descriptor)

    def _stop(self) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    def _drain(self) -> None:
        while (chunk := self._queue.get()) is not None:
            if self._failure is None:  # else the queue is emptied, or its producer waited for ever
                self._take(chunk)

    def _take(self, chunk: memoryview) -> None:
        try:
            _write_all(self._fd, chunk)
        except Exception as error:  # any other too: a thread that died would hang the run
            self._failure = error
            return
        self._sha.update(chunk)
        self._marks.append(_Mark(self._written, len(chunk), zlib.crc32(chunk)))
        self._written += len(chunk)
        if self._written - self._handed_on >= _WRITEBACK:
            _start_writeback(self._fd, self._handed_on, self._written - self._handed_on)
            self._handed_on = self._written

    def _raise_failure(self) -> None:
        if self._failure is not None:
            with os_errors(self.shown):
                raise self._failure


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one line, with what is left behind."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"can't be written: {reason}; nothing was left behind", path=path
        ) from error


def _start_writeback(descriptor: int, start: int, nbytes: int) -> None:
    """Have a range written to the disk meanwhile; dirty pages stay in the cache. Only a hint."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, start, nbytes, os.POSIX_FADV_DONTNEED)


def _write_all(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view) :]
