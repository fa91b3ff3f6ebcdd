"""Texts of variable length in attributes, read from the bytes of the file and not by the library.

Keras keeps a model's config, the names of its layers and of their weights in such texts. They lie
in a heap elsewhere in the file, and HDF5 2.0 allocates whatever length is claimed of one (4 GiB
were seen) and steps over a heap object of size 0 for ever. Here every length is held to the file.

The layouts are those of the HDF5 File Format Specification: superblock (II), object header (IV.A),
attribute message (IV.A.2.m), global heap (III.E).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ckptshrink.errors import CorruptCheckpointError, UnsafeCheckpointError
from ckptshrink.io.files import SourceFile

_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
_UNDEFINED: Final = 0xFFFF_FFFF_FFFF_FFFF
_ATTRIBUTE: Final = 0x0C
_CONTINUATION: Final = 0x10
_SHARED: Final = 0x02
_REFERENCE: Final = struct.Struct("<LQL")
"""What stands for a text: its length, the address of its heap collection, its number in that."""

_MAX_HEADER: Final = 4 << 20
_MAX_BLOCKS: Final = 1000
_MAX_TEXT: Final = 16 << 20
_MAX_TEXTS: Final = 64 << 20
_MAX_HEAP_OBJECTS: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class _Block:
    """A run of a file that holds messages of an object header, and how each of them begins."""

    start: int
    stop: int
    is_v2: bool
    has_order: bool


class Texts:
    """The attribute texts of variable length of one file.

    Parameters
    ----------
    file : SourceFile
    """

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._base = self._find_base()
        self._header: int | None = None
        self._by_name: dict[bytes, list[bytes]] = {}
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}
        self._n_heap_objects = 0
        self._nbytes = 0

    def of(self, header: int, name: bytes, count: int) -> list[bytes] | None:
        """Return the texts of an attribute, or None where it is kept in a way that is not read.

        Parameters
        ----------
        header : int
            Address of the header of the object that has the attribute, as `h5o.get_info` says it.
        name : bytes
        count : int
            How many texts there are.

        Raises
        ------
        CorruptCheckpointError
            A header, heap or text ends after the file or its own frame.
        UnsafeCheckpointError
            Texts or heaps are out of proportion.
        """
        if self._base is None:
            return None
        for found in self._of_header(header).get(name, ()):
            if len(found) >= count * _REFERENCE.size:
                return [self._text(*_REFERENCE.unpack_from(found, 16 * i)) for i in range(count)]
        return None  # kept in a heap of its own, as of many or large attributes

    def _of_header(self, header: int) -> dict[bytes, list[bytes]]:
        """Return the data of the attributes of texts of one object, by name; kept for the next."""
        if self._header != header:
            by_name: dict[bytes, list[bytes]] = {}
            for message in self._attributes((self._base or 0) + header):
                name, data = _references(message)
                if data is not None:
                    by_name.setdefault(name, []).append(data)
            self._header, self._by_name = header, by_name
        return self._by_name

    def _find_base(self) -> int | None:
        """Return what addresses are relative to, or None if they are not of 8 bytes."""
        at = 0
        while at + 64 <= self._file.size:
            head = bytes(self._file.read(at, 64))
            if head.startswith(_SIGNATURE):
                version = head[8]
                widths = head[13:15] if version < 2 else head[9:11]
                place = {0: 24, 1: 28, 2: 12, 3: 12}.get(version)
                if place is None or widths != b"\x08\x08":
                    return None
                return int.from_bytes(head[place : place + 8], "little")
            at = at * 2 or 512
        return None

    def _attributes(self, header: int) -> Iterator[bytes]:
        """Yield the attribute messages of an object header."""
        blocks = [self._first_block(header)]
        seen = {blocks[0].start}
        left = _MAX_HEADER
        while blocks:
            block = blocks.pop()
            left -= block.stop - block.start
            if left < 0 or len(seen) > _MAX_BLOCKS:
                raise UnsafeCheckpointError(f"an object's header has over {_MAX_HEADER:,} bytes")
            for kind, flags, data in self._messages(block):
                if kind == _ATTRIBUTE and not flags & _SHARED:
                    yield data
                elif kind == _CONTINUATION and len(data) >= 16:
                    address, size = struct.unpack_from("<2Q", data)
                    following = self._next_block(address, size, block)
                    if following.start in seen:
                        raise CorruptCheckpointError("an object's header goes round in a circle")
                    seen.add(following.start)
                    blocks.append(following)

    def _first_block(self, header: int) -> _Block:
        head = bytes(self._file.read(header, min(32, max(0, self._file.size - header))))
        if head[:1] == b"\x01" and len(head) >= 16:
            nbytes = int.from_bytes(head[8:12], "little")
            return _Block(header + 16, header + 16 + nbytes, is_v2=False, has_order=False)
        if head[:5] == b"OHDR\x02" and len(head) == 32:
            flags = head[5]
            at = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
            width = 1 << (flags & 3)
            nbytes = int.from_bytes(head[at : at + width], "little")
            start = header + at + width
            return _Block(start, start + nbytes, is_v2=True, has_order=bool(flags & 4))
        raise CorruptCheckpointError("an object has no header where it should be")

    def _next_block(self, address: int, nbytes: int, block: _Block) -> _Block:
        start = (self._base or 0) + address
        if not block.is_v2:
            return _Block(start, start + nbytes, is_v2=False, has_order=False)
        # a signature of 4 bytes before the messages, and a checksum of 4 behind
        return _Block(start + 4, start + nbytes - 4, is_v2=True, has_order=block.has_order)

    def _messages(self, block: _Block) -> Iterator[tuple[int, int, bytes]]:
        """Yield type, flags and content of every message in a block."""
        nbytes = block.stop - block.start
        if not 0 <= nbytes <= _MAX_HEADER:
            raise UnsafeCheckpointError(f"an object's header has over {_MAX_HEADER:,} bytes")
        data = bytes(self._file.read(block.start, nbytes))
        prefix = 4 + 2 * block.has_order if block.is_v2 else 8
        at = 0
        while at + prefix <= nbytes:
            if block.is_v2:
                kind, size, flags = struct.unpack_from("<BHB", data, at)
            else:
                kind, size, flags = struct.unpack_from("<2HB", data, at)
            at += prefix
            if at + size > nbytes:
                raise CorruptCheckpointError("a message of an object's header is cut short")
            yield kind, flags, data[at : at + size]
            at += size

    def _text(self, length: int, address: int, number: int) -> bytes:
        if length == 0 or address in {0, _UNDEFINED}:
            return b""
        start, nbytes = self._heap(address).get(number, (0, 0))
        if length > nbytes:
            raise CorruptCheckpointError(
                f"an attribute's text takes {length:,} bytes, and its place in the heap {nbytes:,}"
            )
        self._nbytes += length
        if length > _MAX_TEXT or self._nbytes > _MAX_TEXTS:
            raise UnsafeCheckpointError(f"its attributes hold over {_MAX_TEXT:,} bytes of text")
        return bytes(self._file.read(start, length)).split(b"\0", 1)[0]

    def _heap(self, address: int) -> dict[int, tuple[int, int]]:
        """Return offset and bytes of every object of a heap collection, by number."""
        if address in self._heaps:
            return self._heaps[address]
        start = (self._base or 0) + address
        head = bytes(self._file.read(start, 16))
        stop = start + int.from_bytes(head[8:16], "little")
        if head[:5] != b"GCOL\x01" or stop > self._file.size:
            raise CorruptCheckpointError("there is no heap where an attribute's text should be")
        found: dict[int, tuple[int, int]] = {}
        at = start + 16
        while at + 16 <= stop:
            number, nbytes = struct.unpack("<H6xQ", self._file.read(at, 16).tobytes())
            if number == 0:  # the free space at its end
                break
            if at + 16 + nbytes > stop:
                raise CorruptCheckpointError("an object of a heap ends after the heap")
            found[number] = (at + 16, nbytes)
            at += 16 + nbytes + -nbytes % 8
            self._n_heap_objects += 1
            if self._n_heap_objects > _MAX_HEAP_OBJECTS:
                raise UnsafeCheckpointError(f"has over {_MAX_HEAP_OBJECTS:,} objects in heaps")
        self._heaps[address] = found
        return found


def _references(message: bytes) -> tuple[bytes, bytes | None]:
    """Return name and data of an attribute message; None for the data if it is not of texts.

    The data of texts of variable length is a `_REFERENCE` each.
    """
    if len(message) < 8:
        return b"", None
    version, flags, n_name, n_type, n_space = struct.unpack_from("<2B3H", message)
    if version not in {1, 2, 3} or (version > 1 and flags):  # flags: its type lies elsewhere
        return b"", None
    at = 9 if version == 3 else 8
    runs = []
    for nbytes in (n_name, n_type, n_space):
        runs.append(message[at : at + nbytes])
        at += nbytes + (-nbytes % 8 if version == 1 else 0)
    stored_name, kind, _ = runs
    # class 9 of a datatype is "variable length", and its bits say: 1 for text
    is_text = len(kind) >= 8 and kind[0] & 0xF == 9 and kind[1] & 0xF == 1
    return stored_name.split(b"\0", 1)[0], message[at:] if is_text else None
