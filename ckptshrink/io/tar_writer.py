"""A tar archive in one pass, packed by gzip or not; the same bytes for the same content."""

import tarfile
import zlib
from collections.abc import Iterable
from typing import Final

from ckptshrink.io.torch_zip_writer import Sink

_LEVEL: Final = 1
"""Of gzip: trained weights hardly pack, and level 9 takes minutes for a full-size ELMo."""

_GZIP_BITS: Final = 16 + zlib.MAX_WBITS


class TarWriter:
    """Writes members one after the other, then the end.

    No owner, no time, and modes as for files that anyone may read: what an archive's member was
    called is kept, where and when it was made is not.

    Parameters
    ----------
    out : Sink
    is_packed : bool
        Whether to pack by gzip, whose header has no name and no time either.
    """

    def __init__(self, out: Sink, *, is_packed: bool) -> None:
        self._out = out
        self._packer = zlib.compressobj(_LEVEL, wbits=_GZIP_BITS) if is_packed else None
        self._at = 0

    def folder(self, name: str) -> None:
        """Append a folder."""
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        self._write(entry.tobuf(tarfile.PAX_FORMAT))

    def add(self, name: str, nbytes: int, chunks: Iterable[memoryview | bytes]) -> int:
        """Append a file and return the number of bytes that its chunks had.

        Parameters
        ----------
        nbytes : int
            What the chunks must add up to; the caller compares.
        """
        entry = tarfile.TarInfo(name)
        entry.size = nbytes
        self._write(entry.tobuf(tarfile.PAX_FORMAT))
        written = 0
        for chunk in chunks:
            written += len(chunk)
            self._write(chunk)
        self._write(bytes(-self._at % tarfile.BLOCKSIZE))
        return written

    def close(self) -> None:
        """Write the end."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self._at % tarfile.RECORDSIZE))
        if self._packer is not None:
            self._out.write(self._packer.flush())

    def _write(self, data: bytes | memoryview) -> None:
        self._at += len(data)
        packed = data if self._packer is None else self._packer.compress(data)
        if packed:
            self._out.write(packed)
