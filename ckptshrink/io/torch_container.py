"""The containers that torch has written: a zip file, pickles followed by storages, a tar file."""

from collections.abc import Iterator, Mapping
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ckptshrink.digest import CHUNK
from ckptshrink.errors import CorruptCheckpointError, UnknownFormatError
from ckptshrink.io.files import SourceFile
from ckptshrink.io.inert_pickle import Decoded, decode
from ckptshrink.io.pickle_machine import MAX_BYTES
from ckptshrink.io.pickle_records import Value, as_items, as_pairs
from ckptshrink.io.stacked_pickles import decode_at
from ckptshrink.io.torch_tar import TarContainer, is_torch_tar
from ckptshrink.io.torch_tensors import TensorTable
from ckptshrink.io.torch_zip import STORED, ZipEntry, ZipIndex

LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
"""First of the stacked pickles of the legacy container."""

_MAGIC_FORMS: Final = (LEGACY_MAGIC.to_bytes(10, "little"), str(LEGACY_MAGIC).encode())
_MAGIC_WITHIN: Final = 40
_LEGACY_VERSION: Final = 1001
_MAX_ORDER: Final = 64
_COUNT: Final = 8
_CONSTANTS: Final = "constants"


class Container(Protocol):
    """What all containers offer: the pickled object, and the bytes of storages by key."""

    @property
    def pickled(self) -> Decoded:
        """The saved object."""
        ...

    @property
    def format(self) -> str:
        """``"torch-zip"``, ``"torchscript"``, ``"torch-legacy"`` or ``"torch-tar"``."""
        ...

    @property
    def constants(self) -> Value:
        """What a TorchScript program keeps beside its object; None elsewhere."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the container."""
        ...

    def table(self) -> TensorTable:
        """Return the storages that the pickle refers to, and its tensors.

        Raises
        ------
        CorruptCheckpointError
            See `TensorTable`.
        """
        ...

    def locate(self, storages: Mapping[str, tuple[int, int]]) -> None:
        """Find every storage, given by key its bytes and item size as the pickle has them.

        Raises
        ------
        CorruptCheckpointError
            One is missing, or has another size.
        """
        ...

    def read(self, key: str, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Return bytes of a storage in a new array, their checksum compared if there is one."""
        ...

    def chunks(self, key: str, start: int, nbytes: int) -> Iterator[memoryview]:
        """Yield the same bytes, at most `CHUNK` at a time, each valid until the next is asked."""
        ...


class ZipContainer:
    """A zip file with one root folder: ``data.pkl``, and a storage of key K in ``data/K``.

    A TorchScript archive is one, with a program in ``code/``, which is not looked at, and that
    program's constants, which are pickled and stored in the same way under another name.

    Parameters
    ----------
    file : SourceFile

    Raises
    ------
    UnknownFormatError
        It is a zip file, and not of torch.save.
    CorruptCheckpointError, UnsafeCheckpointError
        See `ZipIndex` and `decode`.
    """

    def __init__(self, file: SourceFile) -> None:
        self.index = ZipIndex(file)
        self._file = file
        self.root = self._find_root()
        self._check_byte_order()
        self.pickled = self._decoded("data.pkl")
        names = self.index.entries
        is_program = f"{self.root}/{_CONSTANTS}.pkl" in names
        self.format = "torchscript" if is_program else "torch-zip"
        self._constants = self._decoded(f"{_CONSTANTS}.pkl") if is_program else None
        self.notes: tuple[str, ...] = ()
        self._checked: set[str] = set()

    @property
    def constants(self) -> Value:
        """What a TorchScript program keeps beside its object; None elsewhere."""
        return self._constants.value if self._constants is not None else None

    def table(self) -> TensorTable:
        """Return the storages that the pickles refer to, and their tensors."""
        table = TensorTable(self.pickled.persistent, self._file.path)
        if self._constants is not None:
            table.add(self._constants.persistent, f"{_CONSTANTS}/")
        return table

    def locate(self, storages: Mapping[str, tuple[int, int]]) -> None:
        """Compare every storage with its entry."""
        for key, (nbytes, _) in storages.items():
            entry = self.index.entries.get(self.entry_name(key))
            if entry is None:
                raise self.index.corrupt(f"storage {key!r:.80} is missing")
            if entry.nbytes != nbytes:
                raise self.index.corrupt(
                    f"storage {key!r:.80} has {entry.nbytes:,} bytes, its pickle says {nbytes:,}"
                )

    def entry_name(self, key: str) -> str:
        """Return the name of the entry of a storage."""
        folder = "" if key.startswith(f"{_CONSTANTS}/") else "data/"
        return f"{self.root}/{folder}{key}"

    def read(self, key: str, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Return bytes of a storage. The first time, its checksum is compared, over all of it."""
        entry = self.index.entries[self.entry_name(key)]
        if entry.method == STORED and entry.name in self._checked:
            return self._file.read(entry.start + start, nbytes)
        if nbytes == entry.nbytes:
            data = self.index.read(entry)
        else:
            data = _cut(self.index.chunks(entry), start, nbytes)
        self._checked.add(entry.name)
        return data

    def chunks(self, key: str, start: int, nbytes: int) -> Iterator[memoryview]:
        """Yield bytes of a storage; of a whole one the checksum is known after the last chunk."""
        entry = self.index.entries[self.entry_name(key)]
        if nbytes == entry.nbytes:
            yield from self.index.chunks(entry)
            self._checked.add(entry.name)
        elif entry.method == STORED:
            self._check(entry)
            yield from self._file.chunks(entry.start + start, nbytes)
        else:
            data = self.read(key, start, nbytes).data
            yield from (data[i : i + CHUNK] for i in range(0, nbytes, CHUNK))

    def _check(self, entry: ZipEntry) -> None:
        if entry.name not in self._checked:
            for _ in self.index.chunks(entry):
                pass
            self._checked.add(entry.name)

    def _find_root(self) -> str:
        parts = [name.split("/") for name in self.index.entries]
        roots = [p[0] for p in parts if len(p) == 2 and p[1] == "data.pkl"]
        if len(roots) != 1:
            raise UnknownFormatError(
                "is a zip file, but not one of torch.save",
                path=self._file.path,
                hint="unpack it if a checkpoint is inside",
            )
        return roots[0]

    def _decoded(self, name: str) -> Decoded:
        entry = self.index.entries[f"{self.root}/{name}"]
        if entry.nbytes > MAX_BYTES:
            raise self.index.unsafe(f"has a pickle of {entry.nbytes:,} bytes")
        return decode(self.index.read(entry).tobytes(), path=self._file.path)

    def _check_byte_order(self) -> None:
        entries, root = self.index.entries, self.root
        order = f"{root}/byteorder"
        if order in entries and entries[order].nbytes < _MAX_ORDER:
            found = self.index.read(entries[order]).tobytes()
            if found.strip() != b"little":
                raise UnknownFormatError(
                    f"has byte order {found.decode('latin-1')!r:.20}, and only little is read",
                    path=self._file.path,
                    hint="torch.load and torch.save it on a little-endian machine",
                )


class LegacyContainer:
    """Five stacked pickles (magic, version, system, object, keys), then count and raw storages.

    Parameters
    ----------
    file : SourceFile

    Raises
    ------
    UnknownFormatError
        The first pickle is not the magic number, or the version is another.
    CorruptCheckpointError, UnsafeCheckpointError
        See `decode`.

    Attributes
    ----------
    places : dict of str to (int, int)
        Offset and bytes of each storage by key, in stored order.
    """

    format = "torch-legacy"
    constants: Value = None

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        magic = decode_at(file, 0)
        if magic.value != LEGACY_MAGIC:
            raise _no_checkpoint(file)
        version = decode_at(file, magic.end)
        if version.value != _LEGACY_VERSION:
            raise UnknownFormatError("has an unknown version of torch.save", path=file.path)
        system = decode_at(file, version.end)
        if as_pairs(system.value) is None:
            raise CorruptCheckpointError("has no system record", path=file.path)
        self.pickled = decode_at(file, system.end)
        keys = decode_at(file, self.pickled.end)
        self._keys = _storage_keys(keys.value, file)
        self._end = keys.end
        self.places: dict[str, tuple[int, int]] = {}
        self.notes: tuple[str, ...] = ()

    def table(self) -> TensorTable:
        """Return the storages that the pickle refers to, and its tensors."""
        return TensorTable(self.pickled.persistent, self._file.path)

    def locate(self, storages: Mapping[str, tuple[int, int]]) -> None:
        """Find every storage behind the pickles, by the counts in front of them."""
        if missing := storages.keys() - set(self._keys):
            raise self._corrupt(f"storage {min(missing)!r:.80} is missing")
        at = self._end
        for key in self._keys:
            if key not in storages:
                raise self._corrupt(f"storage {key!r:.80} is of no known type")
            nbytes, itemsize = storages[key]
            count = int.from_bytes(self._file.read(at, _COUNT).tobytes(), "little", signed=True)
            if count * itemsize != nbytes:
                raise self._corrupt(
                    f"storage {key!r:.80} has {count:,} elements, its pickle says "
                    f"{nbytes // itemsize:,}"
                )
            self.places[key] = (at + _COUNT, nbytes)
            at += _COUNT + nbytes
            if at > self._file.size:
                raise self._corrupt("ends inside its storages: it was cut short")
        if at < self._file.size:
            self.notes = (f"{self._file.size - at:,} bytes after the last storage are not read",)

    def read(self, key: str, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Return bytes of a storage; this container has no checksums."""
        return self._file.read(self.places[key][0] + start, nbytes)

    def chunks(self, key: str, start: int, nbytes: int) -> Iterator[memoryview]:
        """Yield bytes of a storage."""
        return self._file.chunks(self.places[key][0] + start, nbytes)

    def _corrupt(self, message: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(message, path=self._file.path)


def open_container(file: SourceFile) -> Container:
    """Return the container of a file, which its first bytes tell.

    Raises
    ------
    UnknownFormatError
        It is none of torch.
    CorruptCheckpointError, UnsafeCheckpointError
        See `ZipContainer`, `LegacyContainer` and `TarContainer`.
    """
    head = file.read(0, min(file.size, 512)).tobytes()
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return ZipContainer(file)
    # The number itself comes first, in whatever protocol: another pickle need not be decoded.
    if any(magic in head[:_MAGIC_WITHIN] for magic in _MAGIC_FORMS):
        return LegacyContainer(file)
    if head[:1] in (b"\x80", b"(", b"]", b"}", b"c"):
        raise _no_checkpoint(file)
    if head[257:262] == b"ustar":
        if is_torch_tar(file):
            return TarContainer(file)
        raise UnknownFormatError("is a tar archive, but not one of torch", path=file.path)
    if not head:
        raise UnknownFormatError("is empty", path=file.path)
    raise UnknownFormatError("is not a checkpoint of torch.save", path=file.path)


def _no_checkpoint(file: SourceFile) -> UnknownFormatError:
    return UnknownFormatError(
        "is a pickle, but not one of torch.save",
        path=file.path,
        hint="load it where you trust it, and torch.save its tensors",
    )


def _storage_keys(value: Value, file: SourceFile) -> list[str]:
    items = as_items(value)
    keys = [str(k) for k in items.items if isinstance(k, str | int)] if items else []
    if items is None or len(keys) != len(items.items) or len(set(keys)) != len(keys):
        raise CorruptCheckpointError("has no proper list of storages", path=file.path)
    return keys


def _cut(chunks: Iterator[memoryview], start: int, nbytes: int) -> NDArray[np.uint8]:
    """Return a part of a stream, read to its end for the sake of its checksum."""
    data = np.empty(nbytes, np.uint8)
    at = 0
    for chunk in chunks:
        first, last = max(start, at), min(start + nbytes, at + len(chunk))
        if first < last:
            data.data[first - start : last - start] = chunk[first - at : last - at]
        at += len(chunk)
    return data
