"""Find what killed runs left in folders, put right what they had begun, and remove the rest."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ckptshrink.errors import CheckpointError
from ckptshrink.io.part_folder import PartFolder, part_folders

Fate = Literal["removed", "put back", "left", "failed"]

_ALIVE: Final = "a run is at work in it"
_NOT_OURS: Final = "has the name of a part folder and not its lock file, so it is not ours"


@dataclass(frozen=True, slots=True)
class Swept:
    """A part folder, and what became of it.

    Attributes
    ----------
    path : Path
    fate : str
        ``removed``; ``put back``, which is removed after what it held was put back; ``left``,
        where it is a living run's or not ours; ``failed``, where it should be gone and is not.
    nbytes : int
        Of the files in it that are no longer there; those put back are not among them.
    restored : tuple of Path
        What was put back.
    reason : str
        Why it was left, or failed.
    """

    path: Path
    fate: Fate
    nbytes: int = 0
    restored: tuple[Path, ...] = ()
    reason: str = ""


def clean(folder: Path, *, recursive: bool = False, dry_run: bool = False) -> Iterator[Swept]:
    """Sweep the part folders of killed runs in a folder; yield what becomes of each, in order.

    Parameters
    ----------
    folder : Path
        Links in it are not followed.
    recursive : bool
        Whether the folders in it are swept too.
    dry_run : bool
        Whether only to say what would become of them.

    Raises
    ------
    CheckpointError
        The folder can't be read, or is none.
    """
    try:
        found = sorted(part_folders(folder))
        below = sorted(
            Path(entry.path)
            for entry in (os.scandir(folder) if recursive else ())
            if entry.is_dir(follow_symlinks=False) and Path(entry.path) not in found
        )
    except OSError as error:
        raise CheckpointError(f"can't be searched: {error.strerror}", path=folder) from error
    for path in found:
        yield _swept(path, dry_run)
    for path in below:
        try:
            yield from clean(path, recursive=True, dry_run=dry_run)
        except CheckpointError as error:
            yield Swept(path, "failed", reason=error.message)


def _swept(path: Path, dry_run: bool) -> Swept:
    try:
        part = PartFolder.claim(path)
    except BlockingIOError:
        return Swept(path, "left", reason=_ALIVE)
    except FileNotFoundError:
        return _unmarked(path, dry_run)
    except OSError as error:
        return Swept(path, "left", reason=f"whether a run has it can't be told: {error.strerror}")
    try:
        names = part.put_back()
        restored = tuple(path.parent / name for name in names)
        nbytes = sum(_sizes(path, without=names))
        if dry_run:
            return Swept(path, "put back" if names else "removed", nbytes, restored)
        if not part.discard():
            return _failed(path, part, restored)
    finally:
        part.release()
    return Swept(path, "put back" if names else "removed", nbytes, restored)


def _unmarked(path: Path, dry_run: bool) -> Swept:
    """Remove a folder without a lock file only if it is empty: its run was killed just then."""
    try:
        if any(path.iterdir()):
            return Swept(path, "left", reason=_NOT_OURS)
        if not dry_run:
            path.rmdir()
    except OSError as error:
        return Swept(path, "failed", reason=error.strerror or str(error))
    return Swept(path, "removed")


def _failed(path: Path, part: PartFolder, restored: tuple[Path, ...]) -> Swept:
    taken = [kept for kept in restored if os.path.lexists(kept)]
    if part.put_back() and taken:
        reason = (
            f"holds what {taken[0].name} was before an --overwrite that was cut short, and another "
            f"{taken[0].name} has appeared: keep the one you want, and remove the other by hand"
        )
        return Swept(path, "failed", reason=reason)
    return Swept(path, "failed", reason="can't be removed wholly; is its folder writable?")


def _sizes(folder: Path, *, without: tuple[str, ...]) -> Iterator[int]:
    """Yield the bytes of every file below, but of those that are put back."""
    old = folder / "old"
    for place, folders, files in os.walk(folder):
        if Path(place) == old:
            folders[:] = [name for name in folders if name not in without]
            files = [name for name in files if name not in without]
        for name in files:
            with suppress(OSError):
                yield (Path(place) / name).lstat().st_size
