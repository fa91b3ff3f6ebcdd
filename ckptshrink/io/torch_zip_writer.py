"""A zip file in one pass, as torch lays it out: stored entries, aligned, their checksums behind."""

import struct
import zlib
from collections.abc import Iterable
from typing import Final, Protocol

from ckptshrink.io.torch_zip import UTF8_NAME

ALIGNMENT: Final = 64
"""Every entry's bytes begin at a multiple of this, so that a mapped tensor is aligned too."""

_FLAGS: Final = 0x8 | UTF8_NAME  # checksum and sizes follow the bytes
_MADE_BY: Final = 0x31E
_VERSION64: Final = 45
_MASK16: Final = 0xFFFF
_MASK32: Final = 0xFFFF_FFFF
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_ZIP64: Final = struct.Struct("<2H2Q")
_PAD: Final = struct.Struct("<2sH")


class Sink(Protocol):
    """What a file is written to: nothing but `write` is asked of it."""

    def write(self, data: bytes | bytearray | memoryview, /) -> object:
        """Append bytes; they are not kept after the call."""
        ...


class ZipWriter:
    """Writes stored entries one after the other, then the directory.

    Sizes are known before an entry and its checksum only after, since nothing is read twice and
    the output can't be sought: the checksum follows the bytes, as in the files that torch writes.
    The same holds for every other field, dates of zero included, so that a copy of a file of torch
    below 4 GiB with nothing exchanged is that file byte by byte.

    Parameters
    ----------
    out : Sink
    """

    def __init__(self, out: Sink) -> None:
        self._out = out
        self._at = 0
        self._directory: list[bytes] = []

    def add(self, name: bytes, nbytes: int, chunks: Iterable[memoryview | bytes]) -> int:
        """Append an entry and return the number of bytes that its chunks had.

        Parameters
        ----------
        name : bytes
            UTF-8.
        nbytes : int
            What the chunks must add up to; the caller compares.
        chunks : iterable of bytes-like
        """
        wide = nbytes >= _MASK32
        header = self._at
        # Checksum and sizes are zero here; a zip64 field says that those behind have 8 bytes.
        extra = _ZIP64.pack(1, 16, 0, 0) if wide else b""
        payload = header + _LOCAL.size + len(name) + len(extra) + _PAD.size
        padding = -payload % ALIGNMENT
        extra += _PAD.pack(b"FB", padding) + b"Z" * padding
        size, version = (_MASK32, _VERSION64) if wide else (0, 0)
        fixed = (version, _FLAGS, 0, 0, 0, 0, size, size, len(name), len(extra))
        self._write(_LOCAL.pack(b"PK\x03\x04", *fixed) + name + extra)
        crc = written = 0
        for chunk in chunks:
            crc = zlib.crc32(chunk, crc)
            written += memoryview(chunk).nbytes
            self._write(chunk)
        sizes = struct.pack("<2Q" if wide else "<2L", nbytes, nbytes)
        self._write(b"PK\x07\x08" + struct.pack("<L", crc) + sizes)
        self._directory.append(_central(name, crc, nbytes, header))
        return written

    def close(self) -> None:
        """Write the directory and the end records, the zip64 ones always, as torch does."""
        start, count = self._at, len(self._directory)
        for record in self._directory:
            self._write(record)
        nbytes, end = self._at - start, self._at
        wide = (44, _MADE_BY, _VERSION64, 0, 0, count, count, nbytes, start)
        self._write(struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", *wide))
        self._write(struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1))
        count, nbytes, start = min(count, _MASK16), min(nbytes, _MASK32), min(start, _MASK32)
        self._write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, nbytes, start, 0))

    def _write(self, data: bytes | memoryview) -> None:
        if nbytes := memoryview(data).nbytes:
            self._out.write(data)
            self._at += nbytes


def _central(name: bytes, crc: int, nbytes: int, header: int) -> bytes:
    """Return an entry's record in the directory."""
    large = [value for value in (nbytes, nbytes, header) if value >= _MASK32]
    extra = struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) if large else b""
    version = _VERSION64 if large else 0
    size, offset = min(nbytes, _MASK32), min(header, _MASK32)
    fixed = (version, version, _FLAGS, 0, 0, 0, crc, size, size, len(name), len(extra))
    return _CENTRAL.pack(b"PK\x01\x02", *fixed, 0, 0, 0, 0, offset) + name + extra
