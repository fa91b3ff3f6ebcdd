"""h5py with HDF5's plug-ins and file names taken away. Import h5py from here only.

HDF5 looks at HDF5_PLUGIN_PRELOAD when it starts. ``::`` keeps it from ever loading a filter that it
doesn't know from a shared object, which a dataset of an untrusted file could ask it to do.
"""

import io
import os

os.environ["HDF5_PLUGIN_PRELOAD"] = "::"

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
from h5py import h5a, h5d, h5g, h5l, h5o, h5p, h5s, h5t

from ckptshrink.errors import CkptshrinkError, CorruptCheckpointError
from ckptshrink.io.files import SourceFile
from ckptshrink.io.hdf5_index import one_line

__all__ = [
    "h5a", "h5d", "h5g", "h5l", "h5o", "h5p", "h5py", "h5s", "h5t",
    "library_errors", "open_output", "open_view",
]  # fmt: skip


class _View(io.RawIOBase):
    """A source file as the file object that h5py reads from."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}
        self._position = origin[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        # h5py does not look at the number of bytes it gets: a short read would leave the library
        # with whatever the memory held before. This one raises instead.
        view = memoryview(buffer).cast("B")
        self._file.read_into(self._position, view)
        self._position += len(view)
        return len(view)


def open_view(file: SourceFile) -> h5py.File:
    """Open a file that is open already, for reading.

    The library gets an object to read from and no name. It can't lock the file, so that a file that
    this process has open through h5py can be opened here too, and it looks at the very file that
    payloads are read from, whatever the name means by now.
    """
    return h5py.File(_View(file), "r")


class _Output(io.RawIOBase):
    """A file that never fails to be written to, but remembers its first failure.

    HDF5 crashes when it can't write what it holds back until a file is closed: with h5py 3.10 and
    3.16 a full disk is a segmentation fault.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.failure: OSError | None = None

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and (n := self._file.readinto(view[done:])):
            done += n
        view[done:] = bytes(len(view) - done)  # what was to be written there and was not
        return len(view)

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        rest = view
        while rest and self.failure is None:
            try:
                rest = rest[self._file.write(rest) :]
            except OSError as error:
                self.failure = error
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        if self.failure is None:
            try:
                return self._file.truncate(size)
            except OSError as error:
                self.failure = error
        return size or 0


@contextmanager
def open_output(target: Path | io.FileIO, mode: str) -> Iterator[h5py.File]:
    """Open a file for writing: a new one with ``"x"``, one that exists with ``"r+"``.

    Parameters
    ----------
    target : Path or FileIO
        One that is open already is closed afterwards.

    Raises
    ------
    OSError
        When it is closed: the first failure to write.
    """
    # Readable too: the library reads back what it has written and dropped from its cache.
    if isinstance(target, Path):
        target = io.FileIO(target, "x+" if mode == "x" else mode)
    with target as file:
        output = _Output(file)
        try:
            with h5py.File(output, "w" if mode == "x" else mode) as h5:
                yield h5
        finally:
            if output.failure is not None:
                raise output.failure


@contextmanager
def library_errors(path: Path) -> Iterator[None]:
    """Turn what h5py raises over a damaged file into one line, and add the path to our own errors.

    Raises
    ------
    CorruptCheckpointError
        For every error of the library, which has no class of its own.
    """
    try:
        yield
    except CkptshrinkError as error:
        if error.path is None:
            error.path = os.fspath(path)
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise CorruptCheckpointError(
            f"HDF5: {one_line(error)}",
            path=path,
            hint="the file is damaged or was cut short: get it again",
        ) from error
