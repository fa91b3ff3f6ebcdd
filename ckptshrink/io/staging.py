"""The only creator of files: stage beside the target, write, sync, hash, re-read, rename once.

A target is a file or a folder. Everything is first built in a hidden part folder in the target's
own parent, so that the last step is one rename on one file system. Killed at any moment, the target
is whole or as it was; part folders of killed runs are swept by the next run to the same target,
which can tell them from those of a living run by their lock.
"""

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Final

from ckptshrink.digest import file_sha256
from ckptshrink.errors import OutputError
from ckptshrink.io.staged_file import StagedFile, StagedRecord, os_errors

MANIFEST: Final = "manifest.json"
"""The file that makes a folder an artefact."""

_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100


class Staging:
    """A part folder beside the target; `commit` renames it, or its one file, to the target.

    Parameters
    ----------
    target : Path
        The folder to come; with ``single=True`` the file to come.
    single : bool
        Whether the target is one file, created under the target's own name.
    overwrite : bool
        Whether an existing target may be replaced. It is replaced in the one rename.
    inputs : iterable of Path
        Files that are read meanwhile: the target may be none of them, nor hold one.
    needed : int
        Bytes the output will take; refused at once where the disk has less.

    Raises
    ------
    OutputError
        The target exists, is a link, is an input, has no parent folder, or the disk is too full.
    """

    def __init__(
        self,
        target: Path,
        *,
        single: bool = False,
        overwrite: bool = False,
        inputs: Iterable[Path] = (),
        needed: int = 0,
    ) -> None:
        self.target = check_target(
            target, overwrite=overwrite, single=single, inputs=inputs, needed=needed
        )
        self.single = single
        self._overwrite = overwrite
        self._files: dict[str, StagedFile] = {}
        self._adopted: dict[str, Path] = {}
        self._part = self.target.parent / f".{self.target.name}.part-{secrets.token_hex(6)}"
        self._lock = -1

    def __enter__(self) -> "Staging":
        """Sweep what killed runs left, make and lock the part folder, and return the staging."""
        _sweep(self.target)
        try:
            with os_errors(self._part):
                self._part.mkdir()
                self._lock = _locked(self._part)
        except BaseException:  # a signal that comes in between too
            self._clear()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove whatever was not committed."""
        for file in self._files.values():
            file.abandon()
        self._clear()

    def create(self, relpath: str) -> StagedFile:
        """Open a new file of the target, given by its path relative to the target folder."""
        path = self._place(relpath)
        with os_errors(path):
            file = StagedFile(path, relpath)
        self._files[relpath] = file
        return file

    def adopt(self, relpath: str) -> Path:
        """Return the path at which a library writes a file itself; it is hashed at `commit`."""
        path = self._place(relpath)
        self._adopted[relpath] = path
        return path

    def scratch_path(self, relpath: str) -> Path:
        """Return a path for a file that is needed meanwhile; only of a target that is one file.

        It lies in the part folder, of which nothing but the target is left.
        """
        if not self.single or relpath == self.target.name:
            raise ValueError(relpath)
        return self._place(relpath)

    @contextmanager
    def scratch(self) -> Iterator[IO[bytes]]:
        """Open a file without a name on the target's disk, for what has to be known beforehand.

        Raises
        ------
        OutputError
            A write failed.
        """
        with os_errors(self.target), tempfile.TemporaryFile(dir=self._part) as file:
            yield file

    def finish(self) -> tuple[StagedRecord, ...]:
        """Close, sync and read back every file so far, in order of creation.

        Raises
        ------
        OutputError
            See `StagedFile.close`.
        """
        records = [file.close() for file in self._files.values()]
        self._files.clear()
        for relpath, path in self._adopted.items():
            with os_errors(path):
                _sync(path)
                records.append(StagedRecord(relpath, path.stat().st_size, file_sha256(path)))
        self._adopted.clear()
        return tuple(records)

    def commit(self) -> None:
        """Make the target appear, by one rename.

        Raises
        ------
        OutputError
            The target has appeared meanwhile, or the rename failed.
        """
        self.finish()
        ready = self._part / self.target.name if self.single else self._part
        with os_errors(self.target):
            for folder, _, _ in os.walk(self._part):
                _sync(Path(folder))
            _appear(ready, self.target, overwrite=self._overwrite)
            _sync(self.target.parent)

    def _clear(self) -> None:
        shutil.rmtree(self._part, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)

    def _place(self, relpath: str) -> Path:
        parts = PurePosixPath(relpath).parts
        if not parts or PurePosixPath(relpath).is_absolute() or ".." in parts:
            raise OutputError(f"a file named {relpath!r} would lie outside", path=self.target)
        path = self._part.joinpath(*parts)
        with os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make a folder that a job fills file by file, and keep other jobs out of it meanwhile.

    Raises
    ------
    OutputError
        It can't be made, or another job has it.
    """
    with os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = _locked(folder)
    except BlockingIOError as error:
        raise OutputError("another run is at work in it", path=folder) from error
    try:
        yield
    finally:
        os.close(lock)


def check_target(
    target: Path,
    *,
    overwrite: bool,
    single: bool = False,
    inputs: Iterable[Path] = (),
    needed: int = 0,
) -> Path:
    """Return the absolute target, or say why it can't be written; cheap, so it comes before work.

    Raises
    ------
    OutputError
        See `Staging`.
    """
    with os_errors(target), suppress(FileNotFoundError, NotADirectoryError):
        target.lstat()  # the system refuses some names outright, such as one too long
    if target.is_symlink():
        raise OutputError("is a symbolic link, and is not written through", path=target)
    absolute = target.parent.resolve() / target.name
    if not target.name or not absolute.parent.is_dir():
        raise OutputError(
            "its folder does not exist", path=target, hint=f"mkdir -p {absolute.parent}"
        )
    for source in inputs:
        real = source.resolve()
        inside = real.is_dir() and real in absolute.parents
        if absolute == real or absolute in real.parents or inside:
            raise OutputError(
                "is the input, holds it or lies in it; inputs are never written to",
                path=target,
                hint="give another -o",
            )
        if absolute.exists() and real.exists() and absolute.samefile(real):
            raise OutputError(
                "is the input under another name", path=target, hint="give another -o"
            )
    if absolute.exists() and not overwrite:
        raise OutputError("exists already", path=target, hint="give another -o, or --overwrite")
    if absolute.exists() and absolute.is_dir() == single:
        kind = "a folder" if single else "a file"
        raise OutputError(f"is {kind}, and is not replaced by the other kind", path=target)
    if absolute.is_dir() and any(absolute.iterdir()) and not (absolute / MANIFEST).is_file():
        raise OutputError(
            "is a folder that no earlier run made, and is not overwritten",
            path=target,
            hint="give another -o",
        )
    if not os.access(absolute.parent, os.W_OK | os.X_OK):
        raise OutputError("its folder is not writable", path=target)
    free = shutil.disk_usage(absolute.parent).free
    if needed > free:
        raise OutputError(f"needs {needed:,} bytes and the disk has {free:,} free", path=target)
    return absolute


def _appear(ready: Path, target: Path, *, overwrite: bool) -> None:
    """Rename what is ready to the target, in one step wherever the system has one."""
    if not overwrite:
        if not _renameat2(ready, target, _RENAME_NOREPLACE):
            if target.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target))
            ready.rename(target)
    elif target.is_dir():
        # rename(2) replaces no folder that has files. The two are exchanged, and the old one is
        # removed with the part folder; where that call is missing the old one steps aside first.
        if not _renameat2(ready, target, _RENAME_EXCHANGE):
            aside = target.parent / f".{target.name}.old-{secrets.token_hex(6)}"
            target.rename(aside)
            ready.rename(target)
            shutil.rmtree(aside, ignore_errors=True)
    else:
        ready.replace(target)


def _renameat2(one: Path, other: Path, flags: int) -> bool:
    """Call renameat2(2); return False where there is no such call or no such flag."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # another libc than glibc >= 2.28 or musl
        return False
    code = call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), flags)
    if code == 0:
        return True
    number = ctypes.get_errno()
    if number in {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}:
        return False
    raise OSError(number, os.strerror(number), os.fspath(other))


def _sweep(target: Path) -> None:
    """Remove part folders that a killed run to the same target left, told by their free lock."""
    for orphan in target.parent.glob(f".{_escaped(target.name)}.part-*"):
        try:
            lock = _locked(orphan)
        except OSError:
            continue  # a living run has it, or it is gone already
        shutil.rmtree(orphan, ignore_errors=True)
        os.close(lock)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _locked(folder: Path) -> int:
    """Take the folder's lock, which the kernel frees with the process; return its descriptor."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
