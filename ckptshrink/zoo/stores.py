"""Folders that a batch reads and writes: one of this machine, or one of a store behind a URL.

A `Store` is what is asked of either. `FarFolder` has what a store offers beyond that. It is the
one place that knows fsspec, which finds the library for a scheme (s3fs, gcsfs, huggingface_hub).
Each of these raises errors of its own: here they become one line of ours, without the secrets of
the URL. Nothing is believed of a listing: names that are none are refused.
"""

import errno
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar

from ckptshrink.errors import (
    CheckpointError,
    CkptshrinkError,
    MissingError,
    OutputError,
    PlanError,
    TransientError,
    printable,
)
from ckptshrink.io.staged_file import os_errors
from ckptshrink.io.staging import Staging
from ckptshrink.zoo.failures import is_transient
from ckptshrink.zoo.scratch import scratch_folder
from ckptshrink.zoo.urls import is_inside, is_url, path_of, scheme_of, scrubbed, shown

T = TypeVar("T")

MOST_ENTRIES: Final = 100_000
"""Files below one folder that are looked at; a model has some dozens."""

_MOST_SAID: Final = 200

_EXTRA: Final = {"hf": "hub"}
"""Which extra has the library of a scheme; fsspec itself is in ``cluster``."""

_READ_ONLY: Final = frozenset({"http", "https", "github", "git", "zip", "tar", "data"})

_BUCKETS: Final = {
    "hf": 2, "s3": 1, "s3a": 1, "gs": 1, "gcs": 1, "abfs": 1, "abfss": 1, "az": 1, "oss": 1,
}  # fmt: skip
"""How many names of a path are those of something that its owner makes, and no folder."""

_RENAMED: Final = frozenset({"file", "local"})
"""Stores in which a file is seen while it is written, and which can rename: others show an object
once it is whole."""

_MARKS: Final = frozenset(
    {
        "etag", "contentmd5", "md5", "md5hash", "crc32c", "checksum", "digest", "sha256", "oid",
        "blobid", "xethash", "lfs", "generation", "versionid", "lastmodified", "mtime", "modified",
        "updated", "uploadedat", "created",
    }
)  # fmt: skip
"""What stores say of a file that is another once it is written again."""

_HTTP_MISSING: Final = frozenset({404, 410})
_HTTP_REFUSED: Final = frozenset({401, 403, 407, 451})
_HTTP_WRONG: Final = frozenset({400, 405, 411, 413, 414, 415, 416, 422, 501})

_NETWORK: Final = frozenset(
    {"aiohttp", "httpx", "httpx2", "httpcore", "requests", "urllib3", "aiobotocore"}
)
"""Libraries whose errors without an HTTP status are of connections."""

Way = Literal["read", "write"]


class Store(Protocol):
    """A folder that what is said of a batch is written to."""

    def read(self, place: str, most: int) -> bytes | None:
        """Return a file, or its first `most` bytes; None where there is none."""

    def has(self, place: str) -> bool:
        """Return whether there is a file."""

    def write(self, place: str, chunks: Iterable[bytes]) -> None:
        """Write a file in the place of whatever it was."""

    def shown(self, place: str = "") -> str:
        """Return a place as it is shown."""

    def check(self) -> None:
        """Refuse a folder that nothing can be written to, before any work."""


def store_of(out: str | Path) -> Store:
    """Return the folder of an output, which is a path or a URL."""
    return FarFolder(out) if isinstance(out, str) and is_url(out) else NearFolder(Path(out))


@dataclass(frozen=True, slots=True)
class NearFolder:
    """A folder of this machine; see `Store`."""

    root: Path

    def read(self, place: str, most: int) -> bytes | None:
        """Return a file, or its first `most` bytes; None where there is none."""
        try:
            with (self.root / place).open("rb") as file:
                return file.read(most)
        except OSError:
            return None

    def has(self, place: str) -> bool:
        """Return whether there is a file."""
        return (self.root / place).is_file()

    def write(self, place: str, chunks: Iterable[bytes]) -> None:
        """Write a file in the place of whatever it was."""
        path = self.root / place
        with Staging(path, single=True, overwrite=True) as staging:
            file = staging.create(path.name)
            for chunk in chunks:
                file.write(chunk)
            staging.commit()

    def shown(self, place: str = "") -> str:
        """Return a place as it is shown."""
        return printable(os.fspath(self.root / place))

    def check(self) -> None:
        """Make the folder, or refuse one that nothing can be written to.

        Nothing is written to find that out: a batch that is done leaves everything as it was.

        Raises
        ------
        OutputError
            It can't be made, is no folder, or is not writable.
        """
        with os_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise OutputError(
                "is not writable",
                path=self.root,
                hint=f"ls -ld {self.root}, or give another output",
            )


@dataclass(frozen=True, slots=True)
class Entry:
    """What a store says of a file or a folder.

    Attributes
    ----------
    name : str
        Relative to the folder that was asked.
    is_folder : bool
    nbytes : int or None
        None where the store does not say.
    marks : tuple of (str, str)
        What changes with the content: an ETag, a time; empty where the store says nothing.
    is_link : bool
        Of the few stores that have links.
    """

    name: str
    is_folder: bool
    nbytes: int | None
    marks: tuple[tuple[str, str], ...]
    is_link: bool = False


class FarFolder:
    """A folder of a store, or a file there; see `Store`.

    Parameters
    ----------
    url : str

    Raises
    ------
    PlanError
        No library opens such a URL here.
    CkptshrinkError
        It is malformed, or nobody is there.
    """

    def __init__(self, url: str) -> None:
        check_scheme(url)
        self.url = url
        self._fs, root = self._do("read", lambda: _opened(url), "")
        self._root = str(root).rstrip("/")

    def shown(self, place: str = "") -> str:
        """Return a place as it is shown."""
        return "/".join(part for part in (shown(self.url).rstrip("/"), printable(place)) if part)

    def entry(self, place: str = "") -> Entry | None:
        """Return what the store says of a file or folder; None if it is not there."""
        path = self._path(place)
        try:
            found = self._asked(path, lambda: self._fs.info(path), place)
        except MissingError:
            return None
        return _entry(found, place)

    def entries(self, place: str = "") -> list[Entry]:
        """Return what is in a folder, not below; sorted by name.

        Raises
        ------
        MissingError
            There is no such folder.
        """
        path = self._path(place)
        found = self._asked(path, lambda: self._fs.ls(path, detail=True), place)
        names = ((str(each["name"]).rstrip("/"), each) for each in found)
        # some stores list the folder itself, as an object of no bytes
        inner = {self._below(n, path): each for n, each in names if n not in {path, path + "/"}}
        return [_entry(inner[name], name) for name in sorted(inner)]

    def tree(self, place: str = "") -> dict[str, Entry]:
        """Return every file below a folder by its path from there; nothing where it is missing."""
        path = self._path(place)
        try:
            found = self._asked(path, lambda: self._fs.find(path, detail=True), place)
        except MissingError:
            return {}
        if len(found) > MOST_ENTRIES:
            raise CheckpointError(
                f"has {len(found):,} files below it, and {MOST_ENTRIES:,} are the most",
                path=self.shown(place),
            )
        names = ((str(name).rstrip("/"), each) for name, each in found.items())
        files = {self._below(name, path): each for name, each in names if name != path}
        return {name: _entry(files[name], name) for name in sorted(files)}

    def glob(self, pattern: str) -> list[tuple[str, bool]]:
        """Return what a glob below this folder finds: relative paths, and whether each is a folder.

        Raises
        ------
        CkptshrinkError
            The store can't be listed; a folder that is not there has nothing in it.
        """
        path = self._path(pattern)
        root = self._root
        try:
            found = self._asked(root, lambda: self._fs.glob(path, detail=True), "")
            if not found:  # a walk passes over what it can't list: that is to be heard of
                self._asked(root, lambda: self._fs.ls(root, detail=False), "")
        except MissingError:
            return []
        names = ((str(n).rstrip("/"), each.get("type") == "directory") for n, each in found.items())
        return sorted((self._below(name, self._root), folder) for name, folder in names)

    def read(self, place: str, most: int) -> bytes | None:
        """Return a file, or its first `most` bytes; None where there is none."""
        path = self._path(place)

        def start() -> bytes:
            with self._fs.open(path, "rb", cache_type="none", block_size=1 << 20) as file:
                return bytes(file.read(most))

        try:
            return self._asked(path, start, place)
        except MissingError:
            return None

    def has(self, place: str) -> bool:
        """Return whether there is a file."""
        found = self.entry(place)
        return found is not None and not found.is_folder

    def fetch(self, place: str, to: Path, nbytes: int | None) -> None:
        """Copy a file of the store to this machine, as a stream.

        Parameters
        ----------
        to : Path
            Whose folder exists.
        nbytes : int or None
            What the store says of its size.

        Raises
        ------
        TransientError
            It came short, or the disk here is full.
        """
        path = self._path(place)
        self._do("read", lambda: self._fs.get_file(path, str(to)), place)
        got = to.stat().st_size if to.is_file() else -1
        if nbytes is not None and got != nbytes:
            raise TransientError(
                f"{got:,} bytes of it came, and the store says {nbytes:,}", path=self.shown(place)
            )

    def send(self, file: Path, place: str) -> None:
        """Copy a file of this machine into the store, in the place of whatever it was."""
        path = self._path(place)
        if scheme_of(self.url) in _RENAMED:
            head, slash, name = path.rpartition("/")
            part = f"{head}{slash}.{name}.part-{os.getpid()}"
            try:
                self._put(file, part, place)
                self._do("write", lambda: self._fs.mv(part, path), place)
            except Exception:
                with suppress(CkptshrinkError):
                    self._removed(part, place)
                raise
        else:
            self._put(file, path, place)

    def write(self, place: str, chunks: Iterable[bytes]) -> None:
        """Write a file in the place of whatever it was."""
        with scratch_folder() as folder:
            ready = folder / "ready"
            with ready.open("wb") as file:
                file.writelines(chunks)
            self.send(ready, place)

    def remove(self, place: str) -> None:
        """Remove a file; it may be gone already."""
        self._removed(self._path(place), place)

    def check(self) -> None:
        """Refuse a store that is not there, can't be listed, or takes nothing by its kind.

        No file is tried out: that would be a write of a batch with nothing to do, and in a
        repository a commit. The first upload meets what only a write meets.

        Raises
        ------
        CkptshrinkError
        """
        if scheme_of(self.url) in _READ_ONLY:
            raise OutputError(f"nothing is written by {scheme_of(self.url)}", path=self.shown())
        root = self._root
        try:
            self._do("write", lambda: self._fs.ls(root, detail=False), "")
        except MissingError:  # a folder of a store appears with its first file, a bucket does not
            top = "/".join(path_of(self.url).split("/")[: _BUCKETS.get(scheme_of(self.url), 0)])
            if not top or top == root:
                missing = bool(top)
            else:
                missing = FarFolder(f"{scheme_of(self.url)}://{top}").entry() is None
        else:
            missing = False
        if missing:
            raise self._no_bucket()

    def _put(self, file: Path, path: str, place: str) -> None:
        try:
            self._do("write", lambda: self._fs.put_file(str(file), path), place)
            return
        except MissingError:
            if scheme_of(self.url) in _BUCKETS:
                raise self._no_bucket() from None
        parent = path.rpartition("/")[0]  # where folders are real, they are made first
        self._do("write", lambda: self._fs.makedirs(parent, exist_ok=True), place)
        self._do("write", lambda: self._fs.put_file(str(file), path), place)

    def _no_bucket(self) -> OutputError:
        return OutputError(
            "there is no such bucket or repository, and none is made",
            path=self.shown(),
            hint=hint_of(self.url),
        )

    def _removed(self, path: str, place: str) -> None:
        with suppress(MissingError):
            self._do("write", lambda: self._fs.rm_file(path), place)

    def _path(self, place: str) -> str:
        return f"{self._root}/{place}" if place else self._root

    def _below(self, name: str, folder: str) -> str:
        """Return a listed name from a folder on; a store may list what it likes."""
        relative = name[len(folder) + 1 :] if name.startswith(f"{folder}/") else ""
        if not is_inside(relative):
            raise CheckpointError(
                f"the store lists {printable(name)!r:.200}, which is no name of a file in it",
                path=self.shown(),
            )
        return relative

    def _asked(self, path: str, call: Callable[[], T], place: str) -> T:
        """Ask the store, and not what is remembered of it: others write to it too.

        Nor is the answer kept: it would be of every model of a zoo.
        """
        self._forget(path)
        try:
            return self._do("read", call, place)
        finally:
            self._forget(path)

    def _forget(self, path: str) -> None:
        try:
            self._fs.invalidate_cache(path)
        except Exception:  # it may look the path up, and remember that nothing was there
            with suppress(Exception):
                self._fs.invalidate_cache()

    def _do(self, way: Way, call: Callable[[], T], place: str) -> T:
        """Make a call of the library, with what it raises as an error of ours."""
        try:
            return call()
        except CkptshrinkError:
            raise
        except Exception as error:
            failed = _error_of(error, way, self.url, place)
        # raised out here, so that it does not bring along what the library said, secrets and all
        raise failed


def check_scheme(url: str) -> None:
    """Refuse a URL that no library here opens, without asking anybody.

    Raises
    ------
    PlanError
        The hint says what to install.
    """
    if "::" in url:
        raise PlanError("is a chain of URLs, and they are taken one at a time", path=shown(url))
    if not path_of(url):
        raise PlanError("leads nowhere", path=shown(url))
    scheme = scheme_of(url)
    try:
        from fsspec import get_filesystem_class
    except ImportError:
        get_filesystem_class = None
    if get_filesystem_class is None:
        extra = _EXTRA.get(scheme, "cluster")
        raise PlanError(
            "URLs need fsspec", path=shown(url), hint=f"pip install 'ckptshrink[{extra}]'"
        )
    hint: str | None = None
    try:
        get_filesystem_class(scheme)
        return
    except ImportError as error:
        what = f"the library for {scheme}:// is not installed"
        extra = _EXTRA.get(scheme, "")
        hint = f"pip install 'ckptshrink[{extra}]'" if extra else printable(str(error))
    except ValueError:
        what = f"{printable(scheme)}:// is no scheme that fsspec knows"
    raise PlanError(what, path=shown(url), hint=hint)


def _opened(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    if scheme_of(url) == "hf":  # its bars would be all that a log has
        from huggingface_hub.utils.tqdm import disable_progress_bars

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that HF_HUB_DISABLE_PROGRESS_BARS=0 wants them
            disable_progress_bars()

    found: tuple[Any, str] = url_to_fs(url)
    return found


def _entry(info: dict[str, Any], name: str) -> Entry:
    size = info.get("size")
    found = dict(_marks(info))
    if "mtime" in found:  # "created" is the time of the last chmod then
        found.pop("created", None)
    return Entry(
        name,
        info.get("type") == "directory",
        int(size) if isinstance(size, int | float) and size >= 0 else None,
        tuple(sorted(found.items())),
        bool(info.get("islink")) or info.get("type") == "link",
    )


def _marks(info: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in info.items():
        plain = "".join(c for c in str(key).lower() if c.isalnum())
        if plain in _MARKS and value is not None:
            if isinstance(value, datetime):  # a listing has it as a number
                value = value.timestamp()
            if isinstance(value, dict):
                value = sorted((str(k), str(v)) for k, v in value.items())
            yield plain, str(value)


def _error_of(error: Exception, way: Way, url: str, place: str) -> CkptshrinkError:
    """Return what went wrong as an error of ours; what may go better the next time is transient."""
    where = "/".join(part for part in (shown(url).rstrip("/"), printable(place)) if part)
    status = _status(error)
    said = scrubbed(str(error), url)[:_MOST_SAID]
    named = f"{type(error).__name__}: {said}" if said else type(error).__name__
    wrong: type[CkptshrinkError] = CheckpointError if way == "read" else OutputError
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        # some say so of every answer but a good one, and of none
        status = _status(error.__cause__)
        if _is_of_network(error.__cause__) or (status or 0) >= 500 or status in {408, 425, 429}:
            named = type(error.__cause__).__name__ if status is None else f"HTTP status {status}"
            return TransientError(f"can't be {_done(way)}: {named}", path=where)
        if scheme_of(url) == "hf":  # a private repository is not there for those who may not see it
            status = None
    if status in _HTTP_MISSING or (isinstance(error, FileNotFoundError) and status is None):
        return MissingError("there is no such file or folder", path=where, hint=hint_of(url))
    if status in _HTTP_REFUSED or (isinstance(error, PermissionError) and status is None):
        return wrong("permission denied", path=where, hint=hint_of(url))
    if isinstance(error, NotADirectoryError | IsADirectoryError | FileExistsError):
        return wrong(f"can't be {_done(way)}: {named}", path=where)
    if status in _HTTP_WRONG or isinstance(error, ValueError | NotImplementedError | TypeError):
        return wrong(f"can't be {_done(way)}: {named}", path=where)
    if isinstance(error, ImportError):
        return PlanError(f"a library is missing: {named}", path=where)
    hint = None
    if isinstance(error, OSError) and is_transient(error):
        reason = os.strerror(error.errno) if error.errno else named
        if way == "read" and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            hint = "files are fetched to the folder that TMPDIR names"
        return TransientError(f"can't be {_done(way)}: {reason}", path=where, hint=hint)
    return TransientError(f"can't be {_done(way)}: {named}", path=where)


def _is_of_network(error: BaseException) -> bool:
    """Return whether nobody answered, by the kind of a library's error."""
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
        return False
    package = type(error).__module__.partition(".")[0]
    return _status(error) is None and (isinstance(error, OSError) or package in _NETWORK)


def _done(way: Way) -> str:
    return "read" if way == "read" else "written"


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error tells of, by whatever library."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and 400 <= value < 600:
                return value
    return None


def hint_of(url: str) -> str:
    """Return what to do about a URL that leads to nothing that can be read."""
    if scheme_of(url) == "hf":
        return "is it there? a private or gated one needs HF_TOKEN, or: hf auth login"
    return "is it there, and may you read it?"
