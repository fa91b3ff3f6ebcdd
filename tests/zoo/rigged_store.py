"""A store in memory that counts what it is asked, fails where a test says so, and lists lies.

It is registered with fsspec as ``rigged://``, so that everything above it is as it is of a real
store.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

WRITES = ("put", "rm")


class Killed(BaseException):
    """What a run ends with that was killed: nothing it does after that has an effect."""


@dataclass
class Rig:
    """What the store does to whoever uses it.

    Attributes
    ----------
    calls : list of (str, str)
        What was asked, and of what.
    fail_at : int
        The number of the call that fails, from 1.
    error : BaseException or None
        What it fails with; `Killed` ends everything.
    done : bool
        Whether the failing call has its effect all the same, of an upload half of it.
    """

    calls: list[tuple[str, str]] = field(default_factory=list)
    fail_at: int = 0
    error: BaseException | None = None
    done: bool = False
    dead: bool = False
    depth: int = 0
    lies: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def fired(self) -> bool:
        return len(self.calls) >= self.fail_at

    def of(self, *kinds: str) -> list[str]:
        return [path for kind, path in self.calls if kind in kinds]


class RiggedFileSystem(MemoryFileSystem):
    """See the module."""

    protocol = "rigged"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    rig: ClassVar[Rig] = Rig()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("rigged://"))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        def listed() -> Any:
            found = super(RiggedFileSystem, self).ls(path, detail=True, **kwargs)
            found = [self._marked(each) for each in found]
            found += self.rig.lies.get(self._strip_protocol(path), [])
            return found if detail else sorted(each["name"] for each in found)

        return self._step("ls", path, listed)

    def info(self, path: str, **kwargs: Any) -> Any:
        return self._step("info", path, lambda: self._marked(MemoryFileSystem.info(self, path)))

    def find(self, path: str, *args: Any, detail: bool = False, **kwargs: Any) -> Any:
        def found() -> Any:
            every = MemoryFileSystem.find(self, path, *args, detail=True, **kwargs)
            every = {name: self._marked(each) for name, each in every.items()}
            for lie in self.rig.lies.get(self._strip_protocol(path), []):
                every[lie["name"]] = lie
            return every if detail else sorted(every)

        return self._step("find", path, found)

    def glob(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return self._step("glob", path, lambda: MemoryFileSystem.glob(self, path, *args, **kwargs))

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:  # type: ignore[override]
        self._step("get", rpath, lambda: Path(lpath).write_bytes(self._bytes(rpath)))

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        kind = "read" if mode == "rb" else "put"
        return self._step(kind, path, lambda: MemoryFileSystem.open(self, path, mode, **kwargs))

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:  # type: ignore[override]
        data = Path(lpath).read_bytes()
        put = MemoryFileSystem.pipe_file
        self._step(
            "put", rpath, lambda: put(self, rpath, data),
            half=lambda: put(self, rpath, data[: len(data) // 2]),
        )  # fmt: skip

    def rm_file(self, path: str) -> None:
        self._step("rm", path, lambda: MemoryFileSystem._rm(self, path))

    def _bytes(self, path: str) -> bytes:
        try:
            return bytes(self.store[self._strip_protocol(path)].getvalue())
        except KeyError as error:
            raise FileNotFoundError(path) from error

    def _marked(self, info: dict[str, Any]) -> dict[str, Any]:
        plain = {key: info[key] for key in ("name", "size", "type")}
        if self._strip_protocol(info["name"]) in self.store:
            plain["ETag"] = hashlib.md5(self._bytes(info["name"])).hexdigest()
        return plain

    def _step(
        self, kind: str, path: str, act: Callable[[], Any], half: Callable[[], Any] | None = None
    ) -> Any:
        rig = self.rig
        if rig.dead:
            raise Killed
        if rig.depth:  # a call that another call makes
            return act()
        rig.calls.append((kind, self._strip_protocol(path)))
        fails = rig.error is not None and len(rig.calls) == rig.fail_at
        if fails and not rig.done:
            act = _nothing
        elif fails:
            act = half or act
        rig.depth += 1
        try:
            found = act()
        finally:
            rig.depth -= 1
        if fails and rig.error is not None:
            rig.dead = isinstance(rig.error, Killed)
            raise rig.error
        return found


def _nothing() -> None:
    pass


fsspec.register_implementation("rigged", RiggedFileSystem, clobber=True)


def files() -> dict[str, bytes]:
    """Return everything in the store."""
    return {name: bytes(file.getvalue()) for name, file in RiggedFileSystem.store.items()}


def put(place: str, data: bytes) -> None:
    """Put a file into the store, or change one."""
    MemoryFileSystem.pipe_file(fsspec.filesystem("rigged"), place, data)


def put_tree(folder: Path, place: str) -> None:
    """Put every file below a folder into the store."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            put(f"{place}/{path.relative_to(folder).as_posix()}", path.read_bytes())


@contextmanager
def rigged(**settings: Any) -> Iterator[Rig]:
    """Count, and fail as told, until the end of the block."""
    before, RiggedFileSystem.rig = RiggedFileSystem.rig, Rig(**settings)
    try:
        yield RiggedFileSystem.rig
    finally:
        RiggedFileSystem.rig = before


@contextmanager
def empty_store() -> Iterator[None]:
    """Have nothing in the store, before and after."""
    for _ in range(2):
        RiggedFileSystem.store.clear()
        RiggedFileSystem.pseudo_dirs[:] = [""]
        if _ == 0:
            yield
