"""Input files: opened once, checked to be plain files, read by offset and never mapped.

Mapped pages of a large checkpoint count as resident memory in a container and a file cut short
meanwhile kills the process with SIGBUS; `preadv` into a buffer has neither fault.
"""

import difflib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray

from ckptshrink.digest import CHUNK
from ckptshrink.errors import CheckpointError, CorruptCheckpointError

_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


class SourceFile:
    """A plain file that is read by offset.

    Parameters
    ----------
    path : Path
        Symbolic links are followed; whoever hands over a name from a file checks it first.

    Raises
    ------
    CheckpointError
        There is no such file, it is no plain file, or it can't be opened.
    """

    __slots__ = ("_base", "_fd", "path", "size")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._base = 0
        with source_errors(path):
            # The kind is asked before opening, since opening a device can act on it, and again
            # after, of the file that was opened. O_NONBLOCK keeps a named pipe from waiting.
            _check_plain(path, path.stat().st_mode)
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(self._fd)
            _check_plain(path, status.st_mode)
        except CheckpointError:
            self.close()
            raise
        self.size = status.st_size

    @classmethod
    def opened(cls, descriptor: int, path: Path) -> "SourceFile":
        """Return a file that is open already; `path` is what messages call it.

        Parameters
        ----------
        descriptor : int
            Of a plain file; closed with what is returned.
        """
        file = cls.__new__(cls)
        file.path, file._fd, file._base = path, descriptor, 0
        file.size = os.fstat(descriptor).st_size
        return file

    def window(self, offset: int, nbytes: int, path: Path | None = None) -> "SourceFile":
        """Return a run of bytes as a file of its own, to be closed apart from this one.

        Parameters
        ----------
        path : Path, optional
            What messages call it; this one's if not given.

        Raises
        ------
        CorruptCheckpointError
            The file is shorter than that.
        """
        self._check_range(offset, nbytes)
        window = SourceFile.opened(os.dup(self._fd), path or self.path)
        window._base, window.size = self._base + offset, nbytes
        return window

    @property
    def descriptor(self) -> int:
        """Number of the open file, to be handed to another process with `base` and `size`."""
        return self._fd

    @property
    def base(self) -> int:
        """Where its first byte lies in the open file: 0 unless it is a window."""
        return self._base

    def read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """Return ``nbytes`` bytes from `offset` in a new, writable array.

        Raises
        ------
        CorruptCheckpointError
            The file is shorter than that.
        """
        self._check_range(offset, nbytes)
        data = np.empty(nbytes, np.uint8)
        self._fill(data.data, offset)
        return data

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill a writable view of bytes from `offset`.

        Raises
        ------
        CorruptCheckpointError
            The file is shorter than that.
        """
        self._check_range(offset, len(view))
        self._fill(view, offset)

    def chunks(self, offset: int, nbytes: int) -> Iterator[memoryview]:
        """Yield the same bytes, at most `CHUNK` at a time, each valid until the next is asked for.

        Raises
        ------
        CorruptCheckpointError
            The file is shorter than that.
        """
        self._check_range(offset, nbytes)
        buffer = memoryview(bytearray(min(nbytes, CHUNK)))
        stop = offset + nbytes
        for start in range(offset, stop, CHUNK):
            view = buffer[: min(CHUNK, stop - start)]
            self._fill(view, start)
            yield view

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _check_range(self, offset: int, nbytes: int) -> None:
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise CorruptCheckpointError(
                f"bytes {offset} to {offset + nbytes} are announced, and the file has {self.size}",
                path=self.path,
            )

    def _fill(self, view: memoryview, offset: int) -> None:
        with source_errors(self.path):
            while view:
                n = os.preadv(self._fd, [view], self._base + offset)
                if n == 0:
                    raise CorruptCheckpointError("was cut short while it was read", path=self.path)
                view, offset = view[n:], offset + n


@contextmanager
def source_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one line with what to do next."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(
            "there is no such file or folder", path=path, hint=_did_you_mean(path)
        ) from error
    except PermissionError as error:
        raise CheckpointError(
            "can't be opened: permission denied", path=path, hint=f"ls -l {path.parent}"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"can't be read: {reason}", path=path) from error
    except ValueError as error:  # a name with a NUL byte, which only the kernel's door refuses
        raise CheckpointError(f"can't be a path: {error}", path=path) from error


@contextmanager
def unpacking(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file to unpack a source into.

    It has no name: nobody else can open it, and a run that is killed leaves nothing behind.

    Raises
    ------
    CheckpointError
        It can't be made or written.
    """
    try:
        with tempfile.TemporaryFile() as spool:
            yield spool
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"can't be unpacked into {tempfile.gettempdir()}: {reason}",
            path=path,
            hint="the variable TMPDIR names another folder for temporary files",
        ) from error


def _check_plain(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((name for test, name in _KINDS if test(mode)), "a special file")
    raise CheckpointError(f"is {kind}, not a file", path=path)


def _did_you_mean(path: Path) -> str | None:
    """Return the name nearest to `path` among its neighbours, which is a typing slip at most."""
    try:
        names = [entry.name for entry in os.scandir(path.parent)]
    except OSError:
        return f"there is no folder {path.parent} either"
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / close[0]}?" if close else None
