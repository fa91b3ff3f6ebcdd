"""Renames that are one step of the file system, and the syncs that make them last."""

import ctypes
import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

_AT_FDCWD: Final = -100
_NOREPLACE: Final = 1
_EXCHANGE: Final = 2

_DARWIN: Final = {_NOREPLACE: 4, _EXCHANGE: 2}
"""The flags of renamex_np(2): RENAME_EXCL and RENAME_SWAP."""

NO_SUCH_CALL: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})
"""What a system or a file system says that does not have a call, or not for this."""


def rename_new(one: Path, other: Path) -> None:
    """Rename to a name that is free; a file or folder that has the name is never replaced.

    Raises
    ------
    OSError
        `FileExistsError` if the name is taken.
    """
    if _rename(one, other, _NOREPLACE):
        return
    if not one.is_dir():
        with suppress_unlinkable():
            other.hardlink_to(one)  # fails where the name is taken, in one step too
            with suppress(OSError):
                one.unlink()  # both names are one file, and the first is as good as removed
            return
    if os.path.lexists(other):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(other))
    one.rename(other)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; return False where there is no such call, and do nothing."""
    return _rename(one, other, _EXCHANGE)


class suppress_unlinkable(suppress):  # noqa: N801 - reads as the function of contextlib it is
    """Go on where the file system has no hard links; every other error is one."""

    _NUMBERS: Final = NO_SUCH_CALL | {errno.EPERM, errno.EMLINK, errno.EXDEV}

    def __init__(self) -> None:
        super().__init__(OSError)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """Swallow an `OSError` with one of the numbers that mean "no links here"."""
        return isinstance(error, OSError) and error.errno in self._NUMBERS


def _rename(one: Path, other: Path, flag: int) -> bool:
    """Call renameat2(2), or what macOS has for it; return False where there is neither."""
    names = os.fsencode(one), os.fsencode(other)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            code = libc.renamex_np(*names, ctypes.c_uint(_DARWIN[flag]))
        else:
            code = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(flag))
    except (AttributeError, OSError):  # another libc than glibc >= 2.28 or musl
        return False
    if code == 0:
        return True
    number = ctypes.get_errno()
    if number in NO_SUCH_CALL:
        return False
    raise OSError(number, os.strerror(number), os.fspath(other))


def sync_file(path: Path) -> None:
    """Have the bytes of a file on the disk before this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_folder(path: Path) -> int:
    """Return a descriptor for `sync_folder`, or -1 of a folder that may be written and not read."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return -1


def sync_folder(descriptor: int) -> None:
    """Have the names in a folder on the disk; some file systems have no such call for folders."""
    if descriptor < 0:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SUCH_CALL | {errno.EBADF}:
            raise
