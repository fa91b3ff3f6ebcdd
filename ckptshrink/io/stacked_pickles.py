"""Pickles that lie one after the other in a file, with other bytes behind or between them."""

from typing import Final

from ckptshrink.errors import TruncatedPickleError, UnsafeCheckpointError
from ckptshrink.io.files import SourceFile
from ckptshrink.io.inert_pickle import Decoded, decode
from ckptshrink.io.pickle_machine import MAX_BYTES

LARGE: Final = 1 << 20
"""A first window for a pickle of a whole object."""

_GROWTH: Final = 8


def decode_at(
    file: SourceFile, start: int, stop: int | None = None, window: int = LARGE
) -> Decoded:
    """Decode the pickle at an offset, reading more of the file as long as it has no end.

    Where a stacked pickle ends is known only from reading it, and gigabytes can follow.

    Parameters
    ----------
    file : SourceFile
    start : int
        Where the pickle begins.
    stop : int, optional
        Where it must have ended; the end of the file if not given.
    window : int
        Bytes to read at first.

    Returns
    -------
    Decoded
        Its `end` counts from the beginning of the file.

    Raises
    ------
    CorruptCheckpointError, UnsafeCheckpointError
        See `decode`.
    """
    stop = file.size if stop is None else stop
    while True:
        data = file.read(start, min(window, max(stop - start, 0))).tobytes()
        try:
            decoded = decode(data, path=file.path)
        except TruncatedPickleError:
            if start + len(data) >= stop:
                raise
            if len(data) > MAX_BYTES:
                raise UnsafeCheckpointError(
                    f"a pickle of more than {MAX_BYTES:,} bytes", path=file.path
                ) from None
            window *= _GROWTH
        else:
            return Decoded(decoded.value, start + decoded.end, decoded.persistent)
