"""Failing at the n-th call that changes a file system, for every n, in this process.

`errors` makes that one call fail; `killed` makes it, and every one after it, do nothing: what is on
the disk then is what a SIGKILL at that call would have left. The kernel closes the files of a
killed process, so closing goes on.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ckptshrink.io import renames
from ckptshrink.io.part_folder import PartFolder, part_folders

CHANGING = (
    "write", "fsync", "open", "close", "mkdir", "rename", "replace", "link", "unlink", "rmdir",
)  # fmt: skip

Tree = dict[str, bytes]

Write = Callable[[Path, bytes], None]
"""Write some target in a folder, over what is there, with contents made from a text."""


class Killed(BaseException):
    """What a run ends with that was killed: nothing handles it, and cleaning up does nothing."""


class Faults:
    """Counts the calls, and lets the n-th fail."""

    def __init__(self, number: int, code: int | None) -> None:
        self.number = number
        self.code = code
        self.count = 0
        self.dead = False
        self._made: set[int] = set()

    @property
    def fired(self) -> bool:
        return self.count >= self.number

    def around(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call as it is to be made."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._changes(name, args):
                return real(*args, **kwargs)
            self._step()
            found = real(*args, **kwargs)
            if name == "open":
                self._made.add(found)
            return found

        def closed(descriptor: int) -> None:
            ours = descriptor in self._made
            self._made.discard(descriptor)
            real(descriptor)  # the kernel closes it even where it reports an error
            if ours and not self.dead:
                self._step()

        return closed if name == "close" else call

    def _step(self) -> None:
        self.count += 1
        if self.code is None and self.count >= self.number:
            self.dead = True
            if threading.current_thread() is threading.main_thread():
                raise Killed
            raise OSError(errno.EIO, "the process was killed")  # the main thread ends it
        if self.code is not None and self.count == self.number:
            raise OSError(self.code, os.strerror(self.code))

    @staticmethod
    def _changes(name: str, args: tuple[Any, ...]) -> bool:
        return name != "open" or (len(args) > 1 and bool(args[1] & os.O_CREAT))


@contextmanager
def faults(
    monkeypatch: pytest.MonkeyPatch, number: int, code: int | None, *, exchange: bool = True
) -> Iterator[Faults]:
    """Let the n-th call fail with an error, or with None end everything at that call."""
    found = Faults(number, code)
    rename = renames._rename

    def renamed(one: Path, other: Path, flag: int) -> bool:
        if not exchange:
            return False
        found._step()
        return rename(one, other, flag)

    with monkeypatch.context() as patch:
        for name in CHANGING:
            patch.setattr(os, name, found.around(name, getattr(os, name)))
        patch.setattr(renames, "_rename", renamed)
        yield found


def tree(folder: Path) -> Tree:
    """Return every file below a folder, and every empty folder, by its path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"folder"
        for path in sorted(folder.rglob("*"))
        if path.is_file() or not any(path.iterdir())
    }


def visible(folder: Path) -> Tree:
    """Return a `tree` without part folders."""
    return {name: data for name, data in tree(folder).items() if ".part-" not in name}


def numbered(most: int = 500) -> Iterator[int]:
    """Count up; a run that goes on meeting faults for ever is a fault of the test."""
    yield from range(1, most)
    raise AssertionError("the faults never ended")


def made(target: Path) -> PartFolder:
    """Make the part folder of a run to a folder, as it is before anything is written."""
    part = PartFolder.named(target)
    assert part.make(folder=True)
    return part


def half_done(parent: Path, monkeypatch: pytest.MonkeyPatch, write: Write) -> Path:
    """Leave what a kill between the two renames of an overwrite of ``out`` leaves.

    Returns
    -------
    Path
        The part folder, in which the old one is.
    """
    write(parent, b"old")
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if target == parent / "out":
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(renames, "_rename", lambda one, other, flag: False)
        patch.setattr(Path, "rename", killed)
        patch.setattr(PartFolder, "discard", PartFolder.release)
        with pytest.raises(Killed):
            write(parent, b"new")
    (part,) = part_folders(parent)
    assert not (parent / "out").exists()
    return part
