"""The oldest container of torch.save (0.1 to 0.1.9): a tar file of pickles and raw values.

Four members: ``sys_info``; ``pickle`` with the object, in which tensors are persistent ids;
``tensors`` with a storage, sizes, strides and an offset for each id; ``storages`` with the values,
and then with the storages that are parts of others. Python's tarfile would extract and follow links
and trust sizes: the walk here only looks at headers, and never leaves the file.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ckptshrink.errors import (
    CheckpointError,
    CorruptCheckpointError,
    UnknownFormatError,
    UnsafeCheckpointError,
)
from ckptshrink.io.files import SourceFile
from ckptshrink.io.inert_pickle import Decoded
from ckptshrink.io.pickle_records import Items, Persistent, Token, Value, as_items, as_pairs
from ckptshrink.io.stacked_pickles import LARGE, decode_at
from ckptshrink.io.torch_tensors import (
    MAX_COUNT,
    MAX_DIMS,
    STORAGES,
    StorageId,
    StoredView,
    TensorTable,
)
from ckptshrink.tensors import ITEMSIZE

_BLOCK: Final = 512
_MAX_MEMBERS: Final = 64
_MAX_PAX: Final = 1 << 16
_MAX_RECORDS: Final = 200_000
_SMALL: Final = 1 << 12
_MEMBERS: Final = ("sys_info", "pickle", "tensors", "storages")
_COUNT: Final = 8
_PLAIN: Final = (b"0", b"\0")
_EXTENDED, _GLOBAL = b"x", b"g"


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a tar file: its name, and where its bytes lie."""

    name: str
    start: int
    nbytes: int

    @property
    def stop(self) -> int:
        """Where its bytes end."""
        return self.start + self.nbytes


def is_torch_tar(file: SourceFile) -> bool:
    """Tell whether a tar file's first member is one of those that torch wrote."""
    try:
        return next((m.name in _MEMBERS for m in _walk(file)), False)
    except CheckpointError:
        return False


def tar_members(file: SourceFile) -> dict[str, Member]:
    """Return the members of a tar file that torch reads, by name.

    Raises
    ------
    CorruptCheckpointError
        A header is broken, a member reaches out of the file, is missing, or is there twice.
    UnsafeCheckpointError
        There are more members than torch ever wrote, or one is a link or another special file.
    """
    members: dict[str, Member] = {}
    for member in _walk(file):
        if member.stop > file.size:
            raise _corrupt(file, f"ends inside its member {member.name!r:.80}: it was cut short")
        if member.name in members:
            raise _corrupt(file, f"has two members called {member.name!r:.80}")
        members[member.name] = member
    if missing := [name for name in _MEMBERS if name not in members]:
        raise _corrupt(file, f"has no member {missing[0]!r}: it was cut short")
    return members


def _walk(file: SourceFile) -> Iterator[Member]:
    at = n_headers = 0
    extended: dict[str, str] = {}
    while at + _BLOCK <= file.size:
        header = file.read(at, _BLOCK).tobytes()
        if not any(header):
            return
        n_headers += 1
        if n_headers > _MAX_MEMBERS:
            raise UnsafeCheckpointError(f"has more than {_MAX_MEMBERS} members", path=file.path)
        _check_sum(file, header, at)
        kind, start = header[156:157], at + _BLOCK
        if kind in (_EXTENDED, _GLOBAL):
            nbytes = _number(file, header[124:136])
            if nbytes > _MAX_PAX or start + nbytes > file.size:
                raise _corrupt(file, f"has an extended tar header of {nbytes:,} bytes")
            if kind == _EXTENDED:  # Python 3 wrote one for each member, for a fractional time
                extended = _records(file, file.read(start, nbytes).tobytes())
        elif kind in _PLAIN:
            name = extended.get("path") or str(header[:100].split(b"\0")[0], "utf-8", "replace")
            wide = extended.get("size", "")
            if wide and not (wide.isascii() and wide.isdigit() and len(wide) < 20):
                raise _corrupt(file, "has a member of no proper size")
            nbytes = int(wide) if wide else _number(file, header[124:136])
            extended = {}
            yield Member(name, start, nbytes)
        else:
            raise UnsafeCheckpointError(
                "has a tar member that is no plain file", path=file.path, hint="get the file again"
            )
        at = start + -(-nbytes // _BLOCK) * _BLOCK


def _check_sum(file: SourceFile, header: bytes, at: int) -> None:
    """Compare the sum of a header's bytes, its own field counted as blanks."""
    expected = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if _number(file, header[148:156]) != expected:
        raise _corrupt(file, f"its tar header at byte {at:,} has another checksum")


def _number(file: SourceFile, field: bytes) -> int:
    """Return a number of a header: octal digits, or binary where they would not do."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    if not digits or any(d not in b"01234567" for d in digits):
        raise _corrupt(file, "has a tar header with a number that is none")
    return int(digits, 8)


def _records(file: SourceFile, data: bytes) -> dict[str, str]:
    """Return the records of an extended header: length, blank, key, ``=``, value, line end."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        digits, _, _ = data[at : at + 6].partition(b" ")
        nbytes = int(digits) if digits.isdigit() else 0
        key, equals, value = data[at + len(digits) + 1 : at + nbytes - 1].partition(b"=")
        if nbytes <= len(digits) + 1 or at + nbytes > len(data) or not equals:
            raise _corrupt(file, "has an extended tar header that is broken")
        found[str(key, "utf-8", "replace")] = str(value, "utf-8", "replace")
        at += nbytes
    return found


class TarContainer:
    """A tar file of torch 0.1 to 0.1.9.

    Parameters
    ----------
    file : SourceFile
    watch : callable, optional
        Told of every pickle before it is decoded: where it begins, and where it must have ended.

    Raises
    ------
    UnknownFormatError
        It was written on a big-endian machine, or in another version of the container.
    CorruptCheckpointError, UnsafeCheckpointError
        See `tar_members` and `decode`.

    Attributes
    ----------
    pickled : Decoded
        The saved object.
    places : dict of str to (int, int)
        Offset and bytes of each storage by key, in stored order.
    """

    format = "torch-tar"
    constants: Value = None

    def __init__(self, file: SourceFile, watch: Callable[[int, int], object] | None = None) -> None:
        self._file = file
        self._watch = watch
        self._members = tar_members(file)
        self._check_system()
        self.pickled = self._decoded(self._members["pickle"], window=LARGE)
        self.places: dict[str, tuple[int, int]] = {}
        self.notes: tuple[str, ...] = ()

    def table(self) -> "TarTable":
        """Return the storages and tensors, each checked against the file."""
        table = TarTable(self._file.path)
        self._read_storages(table)
        self._read_tensors(table)
        table.check(self.pickled.persistent)
        return table

    def locate(self, storages: Mapping[str, tuple[int, int]]) -> None:
        """Do nothing: this container's own lists say where a storage lies, the pickle does not."""

    def read(self, key: str, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Return bytes of a storage; this container has no checksums."""
        return self._file.read(self.places[key][0] + start, nbytes)

    def chunks(self, key: str, start: int, nbytes: int) -> Iterator[memoryview]:
        """Yield bytes of a storage."""
        return self._file.chunks(self.places[key][0] + start, nbytes)

    def _decoded(self, member: Member, at: int | None = None, window: int = _SMALL) -> Decoded:
        start = member.start if at is None else at
        if self._watch is not None:
            self._watch(start, member.stop)
        return decode_at(self._file, start, member.stop, window)

    def _check_system(self) -> None:
        pairs = as_pairs(self._decoded(self._members["sys_info"]).value)
        system = {key: value for key, value in pairs or () if isinstance(key, str)}
        if system.get("protocol_version") != 1000:
            raise UnknownFormatError("has an unknown version of torch.save", path=self._file.path)
        if system.get("little_endian") is not True:
            raise UnknownFormatError("has big-endian values", path=self._file.path)

    def _count(self, decoded: Decoded, what: str) -> int:
        n = decoded.value
        if type(n) is not int or n < 0:
            raise self._corrupt(f"has no proper number of {what}")
        if n > _MAX_RECORDS:
            raise UnsafeCheckpointError(f"has {n:,} {what}", path=self._file.path)
        return n

    def _read_storages(self, table: "TarTable") -> None:
        member = self._members["storages"]
        head = self._decoded(member)
        at = head.end
        for _ in range(self._count(head, "storages")):
            record = self._decoded(member, at)
            key, _, kind = self._triple(record.value)
            dtype = STORAGES.get(kind.name) if isinstance(kind, Token) else None
            if dtype is None:
                # the next storage begins behind this one, whose bytes are not known
                what = kind.name if isinstance(kind, Token) else "no storage class"
                raise CheckpointError(f"has values of type {what:.80}", path=self._file.path)
            n = self._int(record.end, _COUNT, member)
            at = record.end + _COUNT + n * ITEMSIZE[dtype]
            if n < 0 or at > member.stop:
                raise self._corrupt("ends inside its storages: it was cut short")
            table.add_storage(_key(key), dtype, n)
            self.places[_key(key)] = (record.end + _COUNT, n * ITEMSIZE[dtype])
        views = as_items(self._decoded(member, at, window=LARGE).value)
        for view in views.items if views is not None else ():
            parts = as_items(view)
            if parts is None or len(parts.items) != 4:
                raise self._corrupt("has a part of a storage that is none")
            table.add_part(*parts.items)

    def _read_tensors(self, table: "TarTable") -> None:
        member = self._members["tensors"]
        head = self._decoded(member)
        at = head.end
        for _ in range(self._count(head, "tensors")):
            record = self._decoded(member, at)
            key, storage, _ = self._triple(record.value)
            n_dims = self._int(record.end, 4, member)  # of eight bytes, of which torch reads four
            if not 0 <= n_dims <= MAX_DIMS:
                raise self._corrupt(f"has a tensor of {n_dims} dimensions")
            at = record.end + 8 + 8 * (2 * n_dims + 1)
            if at > member.stop:
                raise self._corrupt("ends inside its tensors: it was cut short")
            numbers = [
                int(n) for n in self._file.read(record.end + 8, at - record.end - 8).view("<i8")
            ]
            table.add_tensor(_key(key), storage, numbers)

    def _triple(self, value: Value) -> list[Value]:
        if not isinstance(value, Items) or len(value.items) != 3:
            raise self._corrupt("has a storage or tensor without its key")
        return value.items

    def _int(self, at: int, nbytes: int, member: Member) -> int:
        if at + nbytes > member.stop:
            raise self._corrupt(f"ends inside its {member.name}: it was cut short")
        return int.from_bytes(self._file.read(at, nbytes).tobytes(), "little", signed=True)

    def _corrupt(self, message: str) -> CorruptCheckpointError:
        return _corrupt(self._file, message)


class TarTable(TensorTable):
    """The storages of a tar container, and its tensors by the persistent ids that stand for them.

    Parameters
    ----------
    path : Path
        For messages.
    """

    def __init__(self, path: Path) -> None:
        super().__init__((), path)
        self._stored: dict[str, StorageId] = {}
        self._tensors: dict[str, StoredView | None] = {}

    def add_storage(self, key: str, dtype: str, numel: int) -> None:
        """Note a storage of its own."""
        if key in self._stored:
            raise self._error(CorruptCheckpointError, f"has two storages {key!r:.80}")
        self._stored[key] = StorageId(key, dtype, False, 0, numel)
        self.storages[key] = (numel * ITEMSIZE[dtype], ITEMSIZE[dtype])

    def add_part(self, key: Value, root: Value, first: Value, numel: Value) -> None:
        """Note a storage that is a part of another one."""
        whole = self._stored.get(_key(root))
        if type(first) is not int or type(numel) is not int or whole is None:
            raise self._error(CorruptCheckpointError, "has a part of a storage that is none")
        if _key(key) in self._stored or not 0 <= first <= first + numel <= whole.numel:
            raise self._error(CorruptCheckpointError, "a storage that reaches out of its parent")
        self._stored[_key(key)] = StorageId(
            whole.key, whole.dtype, False, whole.first + first, numel
        )

    def add_tensor(self, key: str, storage: Value, numbers: list[int]) -> None:
        """Note a tensor: its sizes, its strides and its offset, one after the other."""
        n_dims = len(numbers) // 2
        shape, strides = tuple(numbers[:n_dims]), tuple(numbers[n_dims:-1])
        if key in self._tensors or min(numbers) < 0 or max(numbers) >= MAX_COUNT:
            raise self._error(CorruptCheckpointError, "has no proper size, stride or offset")
        found = self._stored.get(_key(storage))
        if found is None:
            # One without a storage has no elements, and torch itself can't load it.
            if storage is not None:
                raise self._error(CorruptCheckpointError, "has no storage")
            self._tensors[key] = None
            return
        if n_dims == 0:  # before zero-dimensional tensors, this was one without elements
            shape, strides = (0,), (1,)
        self._tensors[key] = self.placed(found, found.dtype, numbers[-1], shape, strides)

    def check(self, persistent: tuple[Persistent, ...]) -> None:
        """Refuse an id that stands for nothing, as torch does."""
        for reference in persistent:
            pid = reference.pid
            if isinstance(pid, Items):  # a class, and its source
                continue
            if _key(pid) not in self._tensors and _key(pid) not in self._stored:
                raise self._error(CorruptCheckpointError, "a reference to no storage or tensor")

    def referred(self, reference: Persistent) -> StoredView | None:
        """Return the tensor that a persistent id is, None for a class or a bare storage."""
        pid = reference.pid
        return None if isinstance(pid, Items) else self._tensors.get(_key(pid))


def _key(value: Value) -> str:
    """Return an address as text: a number in the lists, its digits in the pickle."""
    return str(value) if isinstance(value, int | str) else ""


def _corrupt(file: SourceFile, message: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(message, path=file.path, hint="fetch the file again")
