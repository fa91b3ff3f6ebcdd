"""Folders for files that are needed meanwhile: gone after, and after a kill by the next run."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ckptshrink.io.part_folder import PartFolder, sweep

_NAME: Final = "files"
_TRIES: Final = 100


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder where ``TMPDIR`` says, and remove it whatever happens.

    A process that is killed leaves its own, which the next one to want a folder here finds by its
    lock that nobody holds; else a night of killed workers would fill the disk.

    Raises
    ------
    OSError
        It can't be made.
    """
    home = _home()
    target = home / _NAME
    sweep(target)
    for _ in range(_TRIES):
        part = PartFolder.named(target)
        try:
            if part.make(folder=True):
                yield part.new / _NAME
                return
        finally:
            part.discard()
    raise OSError(f"no folder can be made in {home}")


def _home() -> Path:
    """Return a folder that is this user's alone: what is fetched may be secret."""
    home = Path(tempfile.gettempdir()) / f"ckptshrink-{os.getuid()}"
    with suppress(FileExistsError):
        home.mkdir(mode=0o700)
    found = home.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{home} is not a folder of this user alone")
    return home
