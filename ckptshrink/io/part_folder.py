"""The hidden folder beside a target in which it is built, and what becomes of it after a kill.

::

    .NAME.part-0123456789ab/
        ckptshrink.lock     says that the folder is ours; locked for as long as its run lives
        new/                what is to appear
        old/                only while a commit takes more than one step: what it replaces

The lock is the kernel's, which frees it however the process ends. A part folder whose lock is free
was left by a run that was killed: what its commit had begun is taken back, then it is removed.
Only a folder with that name *and* that file is ours; an empty one is ours by its name alone, since
a run can be killed between the two calls that make both.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from ckptshrink.io.renames import (
    NO_SUCH_CALL,
    exchange,
    open_folder,
    rename_new,
    suppress_unlinkable,
    sync_folder,
)

LOCK: Final = "ckptshrink.lock"
_NAME: Final = re.compile(r"\.(?P<target>.+)\.part-[0-9a-f]{12}", re.DOTALL)

_NO_LOCKS: Final = NO_SUCH_CALL | {errno.ENOLCK, errno.EBADF}
"""What file systems without flock(2) say. A run goes on without; no sweep can take its folder."""


class PartFolder:
    """A part folder: one that was made, or one that a killed run left and that was claimed.

    Attributes
    ----------
    path : Path
    target : Path
        What it is to become.
    new : Path
        The folder in it for what is to appear: `target` under its own name, and for a commit of
        several files those beside it.
    """

    def __init__(self, path: Path, lock: int = -1) -> None:
        found = _NAME.fullmatch(path.name)
        if found is None:
            raise ValueError(f"{path.name} is no name of a part folder")
        self.path = path
        self.target = path.parent / found["target"]
        self.new = path / "new"
        self._old = path / "old"
        self._lock = lock
        self._is_ours = True

    @classmethod
    def named(cls, target: Path) -> "PartFolder":
        """Return a part folder that is yet to be made."""
        return cls(target.parent / f".{target.name}.part-{secrets.token_hex(6)}")

    def make(self, *, folder: bool) -> bool:
        """Make and lock it; the target in it too if that is a folder.

        Returns
        -------
        bool
            False if a sweep by another run took it for an orphan before it was locked, or its
            name is taken: then another one is to be made.

        Raises
        ------
        OSError
            It can't be made. What there is of it is the caller's to `discard`, as it is after
            every other exception: a signal can come in between any two calls.
        """
        _living.add(self)
        try:
            self.path.mkdir()
        except FileExistsError:  # one name in 2**48, and somebody else's
            self._is_ours = False
            return False
        try:
            self._lock = _made_lock(self.path / LOCK)
            self.new.mkdir()
        except (FileNotFoundError, BlockingIOError):
            self.release()
            if not self.path.parent.is_dir():
                raise
            return False
        if folder:
            (self.new / self.target.name).mkdir()
        return True

    @classmethod
    def claim(cls, path: Path) -> "PartFolder":
        """Take over a part folder that a killed run left.

        Raises
        ------
        OSError
            `BlockingIOError` if its run lives, `FileNotFoundError` if it is none of ours or gone.
        """
        return cls(path, _taken_lock(path / LOCK, os.O_RDWR))

    def sync(self) -> None:
        """Have every name in `new` on the disk."""
        for folder, _, _ in os.walk(self.new):
            _synced(Path(folder))

    def place(self, name: str, *, overwrite: bool) -> None:
        """Make a file beside the target appear, so that it can be taken back until that is there.

        Raises
        ------
        OSError
            `FileExistsError` if it is there and is not to be replaced.
        """
        ready, beside = self.new / name, self.target.parent / name
        self._old.mkdir(exist_ok=True)
        if overwrite and os.path.lexists(beside):
            with suppress_unlinkable():
                # a second name for what is ready: the first one tells later whose file is there
                passing = self.path / "passing"
                passing.unlink(missing_ok=True)
                passing.hardlink_to(ready)
                (self._old / name).hardlink_to(beside)
                passing.replace(beside)
                return
            ready.replace(beside)
            return
        with suppress_unlinkable():
            beside.hardlink_to(ready)
            return
        rename_new(ready, beside)

    def appear(self, *, overwrite: bool) -> None:
        """Make the target appear, in one step wherever the system has one.

        Raises
        ------
        OSError
            `FileExistsError` if it is there and is not to be replaced.
        """
        ready = self.new / self.target.name
        if not overwrite:
            rename_new(ready, self.target)
        elif not self.target.is_dir():
            ready.replace(self.target)
        elif not exchange(ready, self.target):
            # rename(2) replaces no folder that has files. The old one steps aside, and is put back
            # by `settle` should the run end here.
            self._old.mkdir(exist_ok=True)
            _synced(self.path)
            self.target.rename(self._old / self.target.name)
            ready.rename(self.target)

    def settle(self) -> bool:
        """Take back a commit that was cut short; return whether the folder can be removed now.

        It can't if something else has appeared in the place of what was set aside: that is left to
        the user, with both kept.

        Raises
        ------
        OSError
            Something can't be put back; it is kept.
        """
        if not self._cut_short():
            return True
        clear = True
        for old in sorted(self._old.iterdir()):
            place, new = self.target.parent / old.name, self.new / old.name
            if not os.path.lexists(place):
                rename_new(old, place)
            elif _same(place, new):
                old.replace(place)
            else:
                clear &= _same(place, old)
        for new in sorted(self.new.iterdir()):
            place = self.target.parent / new.name
            if new.name != self.target.name and _same(place, new):
                place.unlink()
        _synced(self.target.parent)
        return clear

    def discard(self) -> bool:
        """Settle and remove the folder, free the lock, and return whether it is gone.

        What can't be removed now stays an orphan, for the next run to sweep.
        """
        try:
            try:
                self._clear()
            except BaseException:  # a signal: it still ends the run, after this
                self._clear()
                raise
            return not os.path.lexists(self.path)
        finally:
            self.release()

    def _clear(self) -> None:
        with suppress(OSError):
            if self._is_ours and self.settle():
                _remove(self.path)

    def release(self) -> None:
        """Free the lock and leave the folder as it is."""
        _living.discard(self)
        if self._lock >= 0:
            lock, self._lock = self._lock, -1
            with suppress(OSError):
                os.close(lock)

    def _cut_short(self) -> bool:
        """Return whether a commit by steps had begun, and its last step was not done."""
        ready = self.new / self.target.name
        return self._old.is_dir() and os.path.lexists(ready) and not _same(ready, self.target)

    def put_back(self) -> tuple[str, ...]:
        """Return the names that `settle` would put back."""
        if not self._cut_short():
            return ()
        return tuple(sorted(old.name for old in self._old.iterdir()))


_living: Final[set[PartFolder]] = set()


def discard_living() -> None:
    """Discard what this process made and a signal kept it from discarding.

    Python raises a signal's exception between any two calls, so also just before an ``__exit__``
    has reached its ``try``.
    """
    for part in tuple(_living):
        part.discard()


def part_folders(folder: Path, target: str | None = None) -> Iterator[Path]:
    """Yield what has the name of a part folder, of one target or of any; links are left out."""
    with os.scandir(folder) as entries:
        for entry in entries:
            found = _NAME.fullmatch(entry.name)
            if found is None or target not in {None, found["target"]}:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield folder / entry.name


def sweep(target: Path) -> None:
    """Settle and remove the part folders that killed runs to a target left."""
    sweep_in(target.parent, target.name)


def sweep_in(folder: Path, target: str | None = None) -> None:
    """Settle and remove those in a folder, of one target or of any."""
    with suppress(OSError):  # a folder that can't be listed has nothing that can be swept
        for path in list(part_folders(folder, target)):
            try:
                PartFolder.claim(path).discard()
            except FileNotFoundError:
                with suppress(OSError):
                    path.rmdir()  # killed before it had a lock, so it is empty, or none of ours
            except OSError:
                continue  # a living run has it


def set_aside(target: Path) -> bool:
    """Return whether the target was set aside by an overwrite that has not ended, or never will."""
    with suppress(OSError):
        return any(
            os.path.lexists(path / "old" / target.name)
            for path in part_folders(target.parent, target.name)
        )
    return False


def _made_lock(path: Path) -> int:
    return _taken_lock(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)


def _taken_lock(path: Path, flags: int) -> int:
    """Open the lock file and take its lock; return its descriptor.

    A file and not the folder: network file systems lock only what is open for writing.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # who made the file may go on without; who found it can't know that its run is dead
            if not (flags & os.O_CREAT and error.errno in _NO_LOCKS):
                raise
        found = os.fstat(descriptor)
        if not found.st_nlink or not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove(folder: Path) -> None:
    """Remove a part folder. Its lock file goes last: what is left of it is still known as ours."""
    with os.scandir(folder) as entries:
        inside = [entry for entry in entries if entry.name != LOCK]
    for entry in inside:
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            Path(entry.path).unlink()
    (folder / LOCK).unlink(missing_ok=True)
    folder.rmdir()


def _same(one: Path, other: Path) -> bool:
    """Return whether two names are one file; neither is followed if it is a link."""
    with suppress(OSError):
        return os.path.samestat(one.lstat(), other.lstat())
    return False


def _synced(folder: Path) -> None:
    descriptor = open_folder(folder)
    try:
        sync_folder(descriptor)
    finally:
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)
