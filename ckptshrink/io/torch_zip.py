"""The zip container of torch and Keras: an index checked before it is believed, and checksums.

Python's zipfile takes the last of two entries of one name and torch the first, torch does not look
at checksums (a flipped byte loads in silence), and both inflate whatever they are told to.
"""

import itertools
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ckptshrink.digest import CHUNK
from ckptshrink.errors import (
    CorruptCheckpointError,
    UnsafeCheckpointError,
)
from ckptshrink.io.files import SourceFile

ZIP_MAGIC: Final = b"PK\x03\x04"
"""First bytes of a zip file that has entries."""

STORED: Final = 0
DEFLATED: Final = 8
UTF8_NAME: Final = 0x800

_MAX_DIRECTORY: Final = 64 << 20
_MAX_ENTRIES: Final = 100_000
_INFLATE_FLOOR: Final = 64 << 20
_INFLATE_RATIO: Final = 16
_ENCRYPTED: Final = 0x1 | 0x20 | 0x40 | 0x2000  # with patches and masked headers, never seen
_CRC_FOLLOWS: Final = 0x8
_MASK16: Final = 0xFFFF
_MASK32: Final = 0xFFFF_FFFF
_END: Final = struct.Struct("<4s4H2LH")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR: Final = struct.Struct("<4sLQL")
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_MAX_COMMENT: Final = 0xFFFF
_REPACK_HINT: Final = "load it where you trust it, and torch.save it again"


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """An entry: its name, how it is packed, its checksum, and where its bytes lie.

    Attributes
    ----------
    name : str
    raw_name : bytes
        As stored.
    flags, method, crc : int
    packed : int
        Bytes in the file.
    nbytes : int
        Bytes when unpacked.
    header : int
        Offset of the local header.
    start : int
        Offset of the packed bytes.
    """

    name: str
    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    nbytes: int
    header: int
    start: int = 0


class ZipEnd:
    """Where a zip file's directory lies, looked at before anything goes through the directory.

    Parameters
    ----------
    file : SourceFile
    hint : str
        What the user can do about a file that asks for too much.

    Attributes
    ----------
    start, nbytes, count : int
        Offset, bytes and number of entries of the directory.

    Raises
    ------
    CorruptCheckpointError
        The file is cut short, or its end records disagree.
    UnsafeCheckpointError
        There are too many entries.
    """

    def __init__(self, file: SourceFile, hint: str = _REPACK_HINT) -> None:
        self.file = file
        self._hint = hint
        self.start, self.nbytes, self.count = self._find_directory()

    def corrupt(self, message: str, hint: str | None = None) -> CorruptCheckpointError:
        """Return an error about the file."""
        return CorruptCheckpointError(message, path=self.file.path, hint=hint)

    def unsafe(self, message: str) -> UnsafeCheckpointError:
        """Return an error about what the file asks for."""
        return UnsafeCheckpointError(message, path=self.file.path, hint=self._hint)

    def _bytes(self, offset: int, nbytes: int) -> bytes:
        return self.file.read(offset, nbytes).tobytes()

    def _find_directory(self) -> tuple[int, int, int]:
        """Return offset, bytes and number of entries of the central directory."""
        tail_start = max(0, self.file.size - _END.size - _MAX_COMMENT)
        tail = self._bytes(tail_start, self.file.size - tail_start)
        at = tail.rfind(b"PK\x05\x06")
        while at >= 0:
            # A comment can contain the signature: the record is the one that ends with the file.
            if at + _END.size <= len(tail):
                end = _END.unpack_from(tail, at)
                if at + _END.size + end[7] == len(tail):
                    return self._directory_place(tail_start + at, end)
            at = tail.rfind(b"PK\x05\x06", 0, at)
        raise self.corrupt(
            "is a zip file without its end: it was cut short", "fetch the file again"
        )

    def _directory_place(self, end_at: int, end: tuple[int, ...]) -> tuple[int, int, int]:
        disk, directory_disk, here, count, nbytes, start = end[1:7]
        if not {disk, directory_disk} <= {0, _MASK16}:
            raise self.corrupt("is one part of a zip file of several")
        stop = end_at
        locator_at = end_at - _LOCATOR.size
        if locator_at >= 0 and (at := self._locator(locator_at)) is not None:
            stop = at
            if at + _END64.size > locator_at:
                raise self.corrupt("its zip64 record is misplaced")
            wide = _END64.unpack(self._bytes(at, _END64.size))
            if wide[0] != b"PK\x06\x06" or at + 12 + wide[1] != locator_at:
                raise self.corrupt("its zip64 record is misplaced")
            narrow = ((count, _MASK16), (nbytes, _MASK32), (start, _MASK32))
            for (value, mask), wider in zip(narrow, wide[7:10], strict=True):
                if value not in (mask, wider):
                    raise self.corrupt("its two end records disagree")
            here, count, nbytes, start = wide[6:10]
            disk, directory_disk = wide[4], wide[5]
        if disk or directory_disk or here != count:
            raise self.corrupt("is one part of a zip file of several")
        if start + nbytes != stop:
            raise self.corrupt("its zip directory is not where its end record puts it")
        if nbytes > _MAX_DIRECTORY or count > _MAX_ENTRIES:
            raise self.unsafe(f"has {count:,} zip entries")
        return start, nbytes, count

    def _locator(self, at: int) -> int | None:
        signature, _, offset, _ = _LOCATOR.unpack(self._bytes(at, _LOCATOR.size))
        return int(offset) if signature == b"PK\x06\x07" else None


def check_number_of_entries(file: SourceFile) -> None:
    """Refuse a file of more entries than `ZipIndex` reads, before zipfile goes through them.

    It believes the size of the directory and not the number, and takes 4 us for each entry.

    Raises
    ------
    UnsafeCheckpointError
    """
    try:
        end = ZipEnd(file)
        start, nbytes = end.start, end.nbytes
    except CorruptCheckpointError:  # zipfile may make something of it
        nbytes = min(file.size, _MAX_DIRECTORY)
        start = file.size - nbytes
    chunks = file.chunks(start, nbytes)
    count = sum(bytes(chunk).count(b"PK\x01\x02") for chunk in chunks)
    if count > _MAX_ENTRIES:
        raise UnsafeCheckpointError(f"has {count:,} zip entries", path=file.path, hint=_REPACK_HINT)


class ZipIndex(ZipEnd):
    """The entries of a zip file in the order of its central directory.

    Parameters
    ----------
    file : SourceFile
    hint : str
        What the user can do about a file that asks for too much.

    Attributes
    ----------
    entries : dict of str to ZipEntry

    Raises
    ------
    CorruptCheckpointError
        The file is cut short, or its headers disagree.
    UnsafeCheckpointError
        Entries overlap, share a name, have a name that leads elsewhere, are encrypted, or inflate
        out of proportion.
    """

    def __init__(self, file: SourceFile, hint: str = _REPACK_HINT) -> None:
        super().__init__(file, hint)
        self.entries: dict[str, ZipEntry] = {}
        for entry in self._directory(self.start, self.nbytes, self.count):
            if entry.name in self.entries:
                raise self.unsafe(f"has two entries called {entry.name!r:.200}")
            self.entries[entry.name] = entry
        self._check_overlap(self.start)
        inflated = sum(e.nbytes for e in self.entries.values() if e.method == DEFLATED)
        if inflated > max(_INFLATE_FLOOR, _INFLATE_RATIO * file.size):
            raise self.unsafe(f"inflates from {file.size:,} to {inflated:,} bytes")

    def chunks(self, entry: ZipEntry) -> Iterator[memoryview]:
        """Yield an entry's unpacked bytes; after the last, compare their checksum.

        Raises
        ------
        CorruptCheckpointError
            The bytes don't inflate, or have another checksum.
        """
        crc = 0
        packed = self.file.chunks(entry.start, entry.packed)
        for chunk in packed if entry.method == STORED else self._inflate(entry, packed):
            crc = zlib.crc32(chunk, crc)
            yield chunk
        self._compare(entry, crc)

    def read(self, entry: ZipEntry) -> NDArray[np.uint8]:
        """Return an entry's unpacked bytes in a new array; raises as `chunks` does."""
        if entry.method == STORED:  # straight into the array, not through a buffer
            data = self.file.read(entry.start, entry.nbytes)
            self._compare(entry, zlib.crc32(data.data))
            return data
        data, at = np.empty(entry.nbytes, np.uint8), 0
        for chunk in self.chunks(entry):
            data.data[at : at + len(chunk)] = chunk
            at += len(chunk)
        return data

    def _compare(self, entry: ZipEntry, crc: int) -> None:
        if crc != entry.crc:
            raise self.corrupt(
                f"entry {entry.name!r:.200} has another checksum than its content",
                "fetch the file again",
            )

    def _directory(self, start: int, nbytes: int, count: int) -> Iterator[ZipEntry]:
        data = self._bytes(start, nbytes)
        at = 0
        for _ in range(count):
            if at + _CENTRAL.size > nbytes or data[at : at + 4] != b"PK\x01\x02":
                raise self.corrupt("its zip directory is broken")
            fields = _CENTRAL.unpack_from(data, at)
            flags, method, crc, packed, unpacked = *fields[3:5], *fields[7:10]
            n_name, n_extra, n_comment, disk = fields[10:14]
            name_at = at + _CENTRAL.size
            extra = data[name_at + n_name : name_at + n_name + n_extra]
            at = name_at + n_name + n_extra + n_comment
            if at > nbytes or disk not in (0, _MASK16):
                raise self.corrupt("its zip directory is broken")
            raw = data[name_at : name_at + n_name]
            unpacked, packed, header = self._wide(extra, [unpacked, packed, fields[16]])
            entry = ZipEntry(self._name(raw), raw, flags, method, crc, packed, unpacked, header)
            yield self._located(entry, start)
        if at != nbytes:
            raise self.corrupt("its zip directory is broken")

    def _wide(self, extra: bytes, narrow: list[int]) -> list[int]:
        """Return sizes and offset, the ones that don't fit 32 bits from the zip64 extra field."""
        at = 0
        while at + 4 <= len(extra):
            kind, nbytes = struct.unpack_from("<2H", extra, at)
            field = extra[at + 4 : at + 4 + nbytes]
            at += 4 + nbytes
            if kind == 1:
                for i, value in enumerate(narrow):
                    if value == _MASK32 and len(field) >= 8:
                        narrow[i] = int.from_bytes(field[:8], "little")
                        field = field[8:]
        return narrow

    def _name(self, raw: bytes) -> str:
        try:
            name = str(raw, "utf-8")
        except UnicodeDecodeError:
            name = str(raw, "latin-1")
        if not name or name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise self.unsafe(f"has an entry called {name!r:.200}")
        return name

    def _located(self, entry: ZipEntry, directory: int) -> ZipEntry:
        """Return the entry with the place of its bytes, after a look at its local header."""
        if entry.flags & _ENCRYPTED:
            raise self.unsafe(f"entry {entry.name!r:.200} is encrypted")
        if entry.method not in (STORED, DEFLATED):
            raise self.unsafe(f"entry {entry.name!r:.200} is packed by method {entry.method}")
        if entry.method == STORED and entry.packed != entry.nbytes:
            raise self.corrupt(f"entry {entry.name!r:.200} has two sizes")
        if entry.header + _LOCAL.size + len(entry.raw_name) > directory:
            raise self.corrupt(f"entry {entry.name!r:.200} lies outside the file")
        head = self._bytes(entry.header, _LOCAL.size + len(entry.raw_name))
        fields = _LOCAL.unpack_from(head)
        n_name, n_extra = fields[9:11]
        follows = bool(fields[2] & _CRC_FOLLOWS)  # then checksum and sizes can be 0 here
        agree = (
            fields[0] == ZIP_MAGIC
            and n_name == len(entry.raw_name)
            and head[_LOCAL.size :] == entry.raw_name
            and fields[3] == entry.method
            and not fields[2] & _ENCRYPTED
            and (fields[6] == entry.crc or (follows and fields[6] == 0))
            and all(
                local in (size, _MASK32) or (follows and local == 0)
                for local, size in zip(fields[7:9], (entry.packed, entry.nbytes), strict=True)
            )
        )
        if not agree:
            raise self.corrupt(f"entry {entry.name!r:.200} and its local header disagree")
        start = entry.header + _LOCAL.size + n_name + n_extra
        if start + entry.packed > directory:
            raise self.corrupt(f"entry {entry.name!r:.200} lies outside the file")
        # by hand, since replace() takes a third of the time of a directory of very many entries
        return ZipEntry(
            entry.name, entry.raw_name, entry.flags, entry.method, entry.crc, entry.packed,
            entry.nbytes, entry.header, start,
        )  # fmt: skip

    def _check_overlap(self, directory: int) -> None:
        """Refuse bytes that two entries share, and bytes before the first: another file's."""
        ordered = sorted(self.entries.values(), key=lambda entry: entry.header)
        if ordered and ordered[0].header:
            raise self.corrupt(f"has {ordered[0].header:,} bytes before its first zip entry")
        for entry, following in itertools.pairwise(ordered):
            if entry.start + entry.packed > following.header:
                raise self.unsafe(
                    f"entries {entry.name!r:.200} and {following.name!r:.200} overlap"
                )

    def _inflate(self, entry: ZipEntry, packed: Iterator[memoryview]) -> Iterator[memoryview]:
        """Yield inflated bytes, never more than the directory announces."""
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        left = entry.nbytes
        try:
            for chunk in packed:
                waiting: bytes | memoryview = chunk
                while not inflater.eof:
                    limit = min(CHUNK, left + 1)
                    data = inflater.decompress(waiting, limit)
                    waiting = inflater.unconsumed_tail
                    left -= len(data)
                    if left < 0:
                        raise self.corrupt(f"entry {entry.name!r:.200} inflates beyond its size")
                    yield memoryview(data)
                    if not waiting and len(data) < limit:
                        break
        except zlib.error as error:
            raise self.corrupt(f"entry {entry.name!r:.200} does not inflate") from error
        if left or not inflater.eof:
            raise self.corrupt(f"entry {entry.name!r:.200} ends too early")
