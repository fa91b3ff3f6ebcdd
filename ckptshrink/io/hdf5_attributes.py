"""Attributes of HDF5 objects as JSON values: read with limits, and written again."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from ckptshrink.errors import UnsafeCheckpointError
from ckptshrink.io.hdf5_dataset import numpy_dtype, shown
from ckptshrink.io.hdf5_library import h5a, h5py, h5s, h5t

MAX_ATTRIBUTES: Final = 10_000
"""Most attributes of one object."""

_MAX_NBYTES: Final = 1 << 20
_CHARSETS: Final = {h5t.CSET_ASCII: "ascii", h5t.CSET_UTF8: "utf-8"}


@dataclass(frozen=True, slots=True)
class Attribute:
    """A number, a text, or a list of either.

    Attributes
    ----------
    name : str
    dtype : str
        numpy's code for numbers (``"<f4"``), ``"utf-8"`` or ``"ascii"`` for text.
    length : int or None
        Bytes of a text of fixed length; None for any length, and for numbers.
    value : int, float, bool, str or a list of them
    """

    name: str
    dtype: str
    length: int | None
    value: Any

    def record(self) -> dict[str, Any]:
        """Return the attribute as a JSON value; ``Attribute(**value)`` makes it again."""
        return asdict(self)


def read_attributes(item: Any) -> tuple[tuple[Attribute, ...], tuple[str, ...]]:
    """Return the attributes of an object, and the quoted names of those that JSON can't say.

    Raises
    ------
    UnsafeCheckpointError
        There are more than `MAX_ATTRIBUTES`.
    """
    count = h5a.get_num_attrs(item)
    if count > MAX_ATTRIBUTES:
        raise UnsafeCheckpointError(f"an object has more than {MAX_ATTRIBUTES:,} attributes")
    kept: list[Attribute] = []
    left_out: list[str] = []
    for index in range(count):
        opened = h5a.open(item, index=index)
        attribute = _attribute(opened)
        if attribute is None:
            left_out.append(shown(opened.name))
        else:
            kept.append(attribute)
    return tuple(kept), tuple(left_out)


def write_attributes(target: h5py.HLObject, attributes: Iterable[Attribute]) -> None:
    """Give an object these attributes, in the order given."""
    for attribute in attributes:
        value: Any = attribute.value
        if attribute.dtype not in _CHARSETS.values():
            dtype = np.dtype(attribute.dtype)
        else:
            dtype = h5py.string_dtype(attribute.dtype, attribute.length)
            if isinstance(value, list):
                value = [text.encode() for text in value]
        target.attrs.create(attribute.name, np.asarray(value, dtype), dtype=dtype)


def _attribute(item: h5a.AttrID) -> Attribute | None:
    if item.get_space().get_simple_extent_type() == h5s.NULL or len(item.shape) > 1:
        return None
    if item.get_storage_size() > _MAX_NBYTES:
        return None
    kind = item.get_type()
    is_text = isinstance(kind, h5t.TypeStringID)
    number = numpy_dtype(kind)
    if not is_text and number is None:
        return None
    data = np.empty(item.shape, kind.dtype if number is None else number[0])
    item.read(data)
    value = data.tolist()
    try:
        name = item.name.decode()
        if is_text:
            value = [_decoded(v) for v in value] if item.shape else _decoded(value)
        json.dumps(value, allow_nan=False)
    except ValueError:  # a text that is not UTF-8, NaN, an infinity
        return None
    if number is not None:
        return Attribute(name, number[0].str, None, value)
    length = None if kind.is_variable_str() else kind.get_size()
    return Attribute(name, _CHARSETS.get(kind.get_cset(), "utf-8"), length, value)


def _decoded(text: bytes | str) -> str:
    found = text.decode() if isinstance(text, bytes) else text
    found.encode()  # h5py hands out bytes that are not UTF-8 as lone surrogates
    return found
