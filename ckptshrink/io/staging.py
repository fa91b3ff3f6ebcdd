"""The only creator of files: stage beside the target, write, sync, hash, re-read, rename once.

A target is a file or a folder. Everything is first built in a hidden part folder in the target's
own parent, so that the last step is one rename on one file system. Killed at any moment, the target
is whole or as it was; part folders of killed runs are swept by the next run to the same target,
which can tell them from those of a living run by their lock.
"""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Final

from ckptshrink.digest import file_sha256
from ckptshrink.errors import OutputError
from ckptshrink.io.part_folder import PartFolder, set_aside, sweep
from ckptshrink.io.renames import NO_SUCH_CALL, open_folder, sync_file, sync_folder
from ckptshrink.io.staged_file import StagedFile, StagedRecord, os_errors

MANIFEST: Final = "manifest.json"
"""The file that makes a folder an artefact."""

_TRIES: Final = 100
"""Part folders that are made, should sweeps by other runs come between their making and lock."""


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
    beside : iterable of Path
        Further files of a single target, in its folder: those that appeared are taken back if the
        target does not appear after them.
    aside : bool
        Whether files are written by threads of their own.

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
        beside: Iterable[Path] = (),
        aside: bool = True,
    ) -> None:
        self.target = check_target(
            target, overwrite=overwrite, single=single, inputs=inputs, needed=needed
        )
        self.beside = tuple(beside)
        for path in self.beside:
            check_target(path, overwrite=overwrite, single=True, inputs=inputs)
            if (
                not single
                or path.parent.resolve() != self.target.parent
                or path.name == target.name
            ):
                raise ValueError(f"{path} does not lie beside {target}")
        self.single = single
        self._overwrite, self._aside = overwrite, aside
        self._files: dict[str, StagedFile] = {}
        self._adopted: dict[str, Path] = {}
        self._part: PartFolder | None = None

    def __enter__(self) -> "Staging":
        """Make and lock the part folder, and return the staging."""
        for _ in range(_TRIES):
            self._part = PartFolder.named(self.target)
            try:
                with os_errors(self.target):
                    made = self._part.make(folder=not self.single)
            except BaseException:  # a signal that comes in between too
                self._part.discard()
                raise
            if made:
                return self
            self._part.discard()
        raise OutputError("other runs remove what is made beside it", path=self.target)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take back what was committed in part, and remove whatever was not committed."""
        if isinstance(error, OutputError):
            self._show(error)
        try:
            for file in self._files.values():
                file.abandon()
        finally:
            if self._part is not None:
                self._part.discard()

    def create(self, relpath: str) -> StagedFile:
        """Open a new file of the target, given by its path relative to the target folder.

        Of a single target, and of those beside it, by its name.
        """
        path, shown = self._place(relpath)
        with os_errors(shown):
            file = StagedFile(path, relpath, shown, aside=self._aside)
        self._files[relpath] = file
        return file

    def adopt(self, relpath: str) -> Path:
        """Return the path at which a library writes a file itself; it is hashed at `commit`."""
        path, _ = self._place(relpath)
        self._adopted[relpath] = path
        return path

    def scratch_path(self, relpath: str) -> Path:
        """Return a path for a file that is needed meanwhile; only of a target that is one file.

        It lies in the part folder, of which nothing but the target is left.
        """
        if not self.single or relpath == self.target.name:
            raise ValueError(relpath)
        path, _ = self._place(relpath)
        return path

    @contextmanager
    def scratch(self) -> Iterator[IO[bytes]]:
        """Open a file without a name on the target's disk, for what has to be known beforehand.

        Raises
        ------
        OutputError
            A write failed.
        """
        with os_errors(self.target), tempfile.TemporaryFile(dir=self._made().path) as file:
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
            with os_errors(self._shown(relpath)):
                sync_file(path)
                records.append(StagedRecord(relpath, path.stat().st_size, file_sha256(path)))
        self._adopted.clear()
        return tuple(records)

    def commit(self) -> None:
        """Make the target appear, by one rename; what lies beside it appears before it.

        Raises
        ------
        OutputError
            The target has appeared meanwhile, or something failed. Then the target is as it was,
            unless the message says that it is there.
        """
        self.finish()
        part = self._made()
        with os_errors(self.target):
            part.sync()
            # opened now, so that after the rename nothing is left that can fail but the sync
            parent = open_folder(self.target.parent)
        try:
            for path in self.beside:
                with _appeared(path), os_errors(path):
                    part.place(path.name, overwrite=self._overwrite)
            with _appeared(self.target), os_errors(self.target):
                part.appear(overwrite=self._overwrite)
            try:
                sync_folder(parent)
            except OSError as error:
                raise OutputError(
                    "is there and whole, but the disk did not confirm its name "
                    f"({error.strerror}): after a power cut it may be as it was before",
                    path=self.target,
                ) from error
        finally:
            if parent >= 0:
                with suppress(OSError):
                    os.close(parent)

    def _made(self) -> PartFolder:
        if self._part is None:
            raise ValueError("the staging was not entered")
        return self._part

    def _place(self, relpath: str) -> tuple[Path, Path]:
        """Return where a file is written for now, and where it will be, which is what is said."""
        parts = PurePosixPath(relpath).parts
        if not parts or PurePosixPath(relpath).is_absolute() or ".." in parts:
            raise OutputError(f"a file named {relpath!r} would lie outside", path=self.target)
        new, shown = self._made().new, self._shown(relpath)
        path = (new if self.single else new / self.target.name).joinpath(*parts)
        with os_errors(shown):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path, shown

    def _show(self, error: OutputError) -> None:
        """Let an error name the target, where it names what was staged for it and is gone."""
        if self._part is None or error.path is None:
            return
        path, new = Path(error.path), self._part.new
        if new not in path.parents:
            return
        relpath = path.relative_to(new if self.single else new / self.target.name).as_posix()
        known = {self.target.name, *(beside.name for beside in self.beside)}
        shown = self._shown(relpath) if not self.single or relpath in known else self.target
        error.path = os.fspath(shown)

    def _shown(self, relpath: str) -> Path:
        return (self.target.parent if self.single else self.target) / relpath


@contextmanager
def locked_folder(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Make a folder that a job fills file by file, and keep other jobs out of it meanwhile.

    Parameters
    ----------
    shared : bool
        Whether others may be in it that share it too.

    Raises
    ------
    OutputError
        It can't be made, or another job has it.
    """
    with os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(lock, how | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError("another run is at work in it", path=folder) from error
        except OSError as error:  # some network file systems lock no folders: it goes on without
            if error.errno not in NO_SUCH_CALL | {errno.EBADF, errno.ENOLCK}:
                raise
        yield
    finally:
        with suppress(OSError):
            os.close(lock)


@contextmanager
def _appeared(path: Path) -> Iterator[None]:
    """Say of a name that was free when the run began that it is taken now."""
    try:
        yield
    except OutputError as error:
        if not isinstance(error.__cause__, FileExistsError):
            raise
        text = "has appeared since this run began; it is left as it is"
        raise OutputError(text, path=path, hint="give another -o, or --overwrite") from error


def check_target(
    target: Path,
    *,
    overwrite: bool,
    single: bool | None = False,
    inputs: Iterable[Path] = (),
    needed: int = 0,
    dry_run: bool = False,
) -> Path:
    """Return the absolute target, or say why it can't be written; cheap, so it comes before work.

    What killed runs to it left is swept first, so that a run that is refused sweeps too, and what
    was set aside is put back, and exists; not for a ``dry_run``, which changes nothing. With
    ``single=None`` it isn't known yet whether a file or a folder is to come: either may be there.

    Raises
    ------
    OutputError
        See `Staging`.
    """
    with os_errors(target):
        with suppress(FileNotFoundError, NotADirectoryError):
            target.lstat()  # the system refuses some names outright, such as one too long
        if not dry_run:
            sweep(_absolute(target))
        return _checked(target, overwrite, single, inputs, needed)


def _checked(
    target: Path, overwrite: bool, single: bool | None, inputs: Iterable[Path], needed: int
) -> Path:
    if target.is_symlink():
        raise OutputError("is a symbolic link, and is not written through", path=target)
    absolute = _absolute(target)
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
    if not absolute.exists() and not overwrite and set_aside(absolute):
        raise OutputError(
            "exists already: a run that is to overwrite it has set it aside",
            path=target,
            hint=f"ckptshrink clean {absolute.parent} puts it back once that run is gone",
        )
    if single is not None and absolute.exists() and absolute.is_dir() == single:
        kind = "a folder" if single else "a file"
        raise OutputError(f"is {kind}, and is not replaced by the other kind", path=target)
    if absolute.is_dir() and any(absolute.iterdir()) and not (absolute / MANIFEST).is_file():
        raise OutputError(
            f"is a folder without {MANIFEST}, so no artefact, and is not overwritten",
            path=target,
            hint="give another -o",
        )
    if not os.access(absolute.parent, os.W_OK | os.X_OK):
        # its cause is what a write would have met, so that callers can tell what may pass
        cause = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        raise OutputError("its folder is not writable", path=target) from cause
    free = shutil.disk_usage(absolute.parent).free
    if needed > free:
        message = f"needs {needed:,} bytes and the disk has {free:,} free"
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise OutputError(message, path=target) from full
    return absolute


def _absolute(target: Path) -> Path:
    return target.parent.resolve() / target.name
