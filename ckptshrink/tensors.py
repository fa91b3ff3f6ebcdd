"""Names, shapes, dtypes and byte arithmetic of stored tensors. Imports neither torch nor numpy.

Dtypes are safetensors codes (``"F32"``, ``"BF16"``), in every format.
"""

import math
from dataclasses import dataclass
from typing import Final

ITEMSIZE: Final[dict[str, int]] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
    "C64": 8,
}  # fmt: skip
"""Bytes per element of each dtype code."""

FACTORABLE: Final[frozenset[str]] = frozenset({"F64", "F32", "F16", "BF16"})
"""Dtypes in which a matrix can be factorized."""


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A stored tensor without its payload.

    Attributes
    ----------
    name : str
        Fully qualified name, as in the state dict or the HDF5 path without the leading slash.
    shape : tuple of int
    dtype : str
        A key of `ITEMSIZE`.
    nbytes : int
        Bytes of the payload, ``prod(shape) * itemsize``.
    file : str
        Name of the file that holds it, relative to the checkpoint's folder.
    shares_with : str or None
        Name of an earlier tensor of which this one is the very same elements of the same storage.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: str
    shares_with: str | None = None

    @property
    def n_params(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_plain_matrix(self) -> bool:
        """Whether it can be factorized as it is."""
        return len(self.shape) == 2 and self.dtype in FACTORABLE


def nbytes_of(shape: tuple[int, ...], dtype: str) -> int:
    """Return the bytes that a dense tensor of this shape and dtype takes."""
    return math.prod(shape) * ITEMSIZE[dtype]


_UNITS: Final = ("bytes", "kB", "MB", "GB", "TB")


def size(nbytes: float) -> str:
    """Return bytes in decimal units, with three digits.

    Examples
    --------
    >>> size(999), size(1_500_000), size(374_434_792)
    ('999 bytes', '1.50 MB', '374 MB')
    """
    for unit in _UNITS:
        if nbytes < 999.5 or unit == _UNITS[-1]:
            break
        nbytes /= 1000
    digits = 0 if unit == "bytes" else 2 if nbytes < 9.995 else 1 if nbytes < 99.95 else 0
    return f"{nbytes:.{digits}f} {unit}"
