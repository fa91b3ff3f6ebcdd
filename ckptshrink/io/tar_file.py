"""Tar archives, packed by gzip or not: an index that is checked before it is believed.

Python's tarfile takes a broken header for the end, and the last of two members of one name; it
follows links, and unpacks as much as it is told to. Nothing is ever written under a member's name
here: what is packed goes to a temporary file without a name, and is read by offset.
"""

import os
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from ckptshrink.digest import CHUNK
from ckptshrink.errors import (
    CorruptCheckpointError,
    UnsafeCheckpointError,
    printable,
)
from ckptshrink.io.files import SourceFile, unpacking

GZIP: Final = b"\x1f\x8b"
BLOCK: Final = 512

_INFLATE_FLOOR: Final = 256 << 20
_INFLATE_RATIO: Final = 64
_MAX_MEMBERS: Final = 100_000
_MAX_EXTENSION: Final = 1 << 20
_GZIP_BITS: Final = 16 + zlib.MAX_WBITS
_HINT: Final = "fetch the file again"

_FILES: Final = (b"\0", b"0", b"7")  # as before POSIX, plain, contiguous
_FOLDER: Final = b"5"
_KINDS: Final = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a character device",
    b"4": "a block device", b"6": "a named pipe", b"S": "a sparse file",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file or a folder in an archive.

    Attributes
    ----------
    name : str
        Below the archive's root, components joined by ``/``.
    is_folder : bool
    start, nbytes : int
        Where its bytes lie in the unpacked archive.
    """

    name: str
    is_folder: bool
    start: int = 0
    nbytes: int = 0


class TarIndex:
    """The members of a tar archive, in their order.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    is_packed : bool
        Whether it is packed by gzip. It is unpacked once, into a temporary file without a name.
    members : dict of str to TarMember

    Raises
    ------
    CorruptCheckpointError
        It is cut short, a checksum differs, or headers make no sense.
    UnsafeCheckpointError
        A member is neither a file nor a folder, lies outside, or shares its name; or it unpacks
        out of proportion.
    CheckpointError
        It can't be read, or there is no room to unpack it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with ExitStack() as opened:
            file = SourceFile(path)
            opened.callback(file.close)
            self.is_packed = file.read(0, min(2, file.size)).tobytes() == GZIP
            if self.is_packed:
                packed, file = file, _unpacked(file)
                packed.close()
                opened.callback(file.close)
            self._file = file
            self.members: dict[str, TarMember] = {}
            self._parents: set[str] = set()
            for member in self._walk():
                self._add(member)
            opened.pop_all()

    def open(self, member: TarMember) -> SourceFile:
        """Return a member as a file of its own, to be closed apart from this one."""
        return self._file.window(member.start, member.nbytes, self.path / member.name)

    def close(self) -> None:
        """Close the archive; files that `open` returned stay open."""
        self._file.close()

    def _add(self, member: TarMember) -> None:
        name = member.name
        above = [str(folder) for folder in PurePosixPath(name).parents][:-1]
        inside = any(not self.members[a].is_folder for a in above if a in self.members)
        if name in self.members:
            raise self._unsafe(f"has two members called {printable(name):.200}")
        if inside or (not member.is_folder and name in self._parents):
            raise self._unsafe(f"has a file that is a folder as well: {printable(name):.200}")
        if len(self.members) >= _MAX_MEMBERS:
            raise self._unsafe(f"has more than {_MAX_MEMBERS:,} members")
        self._parents.update(above)
        self.members[name] = member

    def _walk(self) -> Iterator[TarMember]:
        """Yield the members, each header checked; what follows the end must be zeros."""
        at = 0
        said: dict[str, str] = {}
        while True:
            header = self._bytes(at, BLOCK)
            at += BLOCK
            if not header.strip(b"\0"):
                break
            self._check_sum(header)
            kind, nbytes = header[156:157], self._number(header[124:136])
            if kind in (b"x", b"g", b"L", b"K"):
                if nbytes > _MAX_EXTENSION:
                    raise self._unsafe(f"has a header of {nbytes:,} bytes")
                said |= self._extension(kind, self._bytes(at, nbytes))
                at += _padded(nbytes)
                continue
            name = said.get("path") or self._stored_name(header)
            if "size" in said:
                nbytes = int(said["size"])
            said = {}
            member = self._member(kind, name, at, nbytes)
            if at + member.nbytes > self._file.size:
                raise self._corrupt(f"ends inside {printable(name):.200}: it was cut short")
            at += _padded(member.nbytes)
            if member.name:  # not the root itself
                yield member
        for chunk in self._file.chunks(at, self._file.size - at):
            if bytes(chunk).strip(b"\0"):
                raise self._corrupt("has bytes after its end", None)

    def _member(self, kind: bytes, name: str, at: int, nbytes: int) -> TarMember:
        is_folder = kind == _FOLDER or (kind == b"\0" and name.endswith("/"))
        shown = f"{printable(name):.200}"
        if not is_folder and kind not in _FILES:
            what = _KINDS.get(kind, f"a member of type {kind!r}")
            raise self._unsafe(f"holds {what}, which is not read: {shown}")
        if is_folder and nbytes:
            raise self._corrupt(f"has a folder of {nbytes:,} bytes: {shown}")
        if not name.isprintable():
            raise self._unsafe(f"has a member called {shown}")
        plain = safe_name(name)
        if plain is None or (not plain and not is_folder):
            raise self._unsafe(f"holds a file that would lie outside: {shown}")
        return TarMember(plain, is_folder, at, nbytes)

    def _stored_name(self, header: bytes) -> str:
        name = header[:100].partition(b"\0")[0]
        # in GNU's own format the place of the prefix has other fields
        prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
        return self._text(prefix + b"/" + name if prefix else name)

    def _extension(self, kind: bytes, data: bytes) -> dict[str, str]:
        """Return what a header in front of a member says of it, as far as it matters."""
        if kind in b"LK":
            return {"path": self._text(data.partition(b"\0")[0])} if kind == b"L" else {}
        found = {}
        while data:
            length, _, rest = data.partition(b" ")
            n = int(length) if length.isdigit() and len(length) < 8 else 0
            record, data = rest[: n - len(length) - 1], data[n:]
            key, equals, value = record.partition(b"=")
            if n <= len(length) + 1 or not equals or not value.endswith(b"\n"):
                raise self._corrupt("has a broken extended header")
            if key.startswith(b"GNU.sparse"):
                raise self._unsafe("holds a sparse file, which is not read")
            if key in (b"path", b"size"):
                found[key.decode()] = self._text(value[:-1])
        if kind == b"g" and found:
            raise self._unsafe("gives all its members one name or size")
        size = found.get("size", "0")
        if not (size.isascii() and size.isdigit() and len(size) < 20):
            raise self._corrupt("has a broken extended header")
        return found

    def _check_sum(self, header: bytes) -> None:
        counted = header[:148] + b" " * 8 + header[156:]
        # unsigned by the standard; signed by some old programs
        sums = {sum(counted), sum(b - 256 if b > 127 else b for b in counted)}
        if self._number(header[148:156]) not in sums:
            raise self._corrupt("has a tar header with another checksum than its content")

    def _number(self, field: bytes) -> int:
        if field[:1] == b"\x80":
            return int.from_bytes(field[1:], "big")
        digits = field.strip(b" \0")
        if not digits:
            return 0
        if set(digits) - set(b"01234567"):
            raise self._corrupt("has a broken tar header")
        return int(digits, 8)

    def _bytes(self, at: int, nbytes: int) -> bytes:
        if at + nbytes > self._file.size:
            raise self._corrupt("is a tar archive without its end: it was cut short")
        return self._file.read(at, nbytes).tobytes()

    def _text(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self._unsafe(f"has a member called {raw!r:.200}") from error

    def _corrupt(self, message: str, hint: str | None = _HINT) -> CorruptCheckpointError:
        return CorruptCheckpointError(message, path=self.path, hint=hint)

    def _unsafe(self, message: str) -> UnsafeCheckpointError:
        hint = "unpack it where you trust it, and give the weights inside"
        return UnsafeCheckpointError(message, path=self.path, hint=hint)


def safe_name(name: str) -> str | None:
    """Return a member's name below the root, ``""`` for the root; None where it leads elsewhere.

    Examples
    --------
    >>> safe_name("./vocabulary/")
    'vocabulary'
    >>> safe_name("../x") is None
    True
    """
    parts = PurePosixPath(name).parts
    if not name or name.startswith("/") or ".." in parts or not name.isprintable():
        return None
    return "/".join(parts)


def begins_as_tar(start: bytes) -> bool:
    """Tell whether bytes are the beginning of a tar archive, packed by gzip or not."""
    if start.startswith(GZIP):
        try:
            start = zlib.decompressobj(_GZIP_BITS).decompress(start, BLOCK)
        except zlib.error:
            return False
    return start[257:262] == b"ustar"


def _padded(nbytes: int) -> int:
    return -(-nbytes // BLOCK) * BLOCK


def _unpacked(file: SourceFile) -> SourceFile:
    """Return what a gzip file holds, in a temporary file without a name."""
    limit = max(_INFLATE_FLOOR, _INFLATE_RATIO * file.size)
    nbytes = 0
    with unpacking(file.path) as spool:
        for data in _inflated(file):
            nbytes += len(data)
            if nbytes > limit:
                raise UnsafeCheckpointError(
                    f"unpacks from {file.size:,} to more than {limit:,} bytes",
                    path=file.path,
                    hint="gunzip it where you trust it, and give what comes out",
                )
            spool.write(data)
        spool.flush()
        return SourceFile.opened(os.dup(spool.fileno()), file.path)


def _inflated(file: SourceFile) -> Iterator[bytes]:
    """Yield what the members of a gzip file hold; zlib compares their checksums and lengths."""
    inflater = zlib.decompressobj(_GZIP_BITS)
    begun = False
    try:
        for chunk in file.chunks(0, file.size):
            waiting = bytes(chunk)
            while True:
                if not begun:
                    waiting = waiting.lstrip(b"\0")  # tapes pad with zeros
                    if not waiting:
                        break
                    begun = True
                data = inflater.decompress(waiting, CHUNK)
                yield data
                waiting = inflater.unconsumed_tail
                if inflater.eof:
                    waiting, begun = inflater.unused_data, False
                    inflater = zlib.decompressobj(_GZIP_BITS)
                elif not waiting and len(data) < CHUNK:
                    break
    except zlib.error as error:
        raise CorruptCheckpointError(
            f"is damaged: gzip finds {str(error).rpartition(': ')[2]}", path=file.path, hint=_HINT
        ) from error
    if begun:
        raise CorruptCheckpointError(
            "ends inside its gzip stream: it was cut short", path=file.path, hint=_HINT
        )
