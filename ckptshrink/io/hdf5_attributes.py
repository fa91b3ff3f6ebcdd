"""Attributes of HDF5 objects as JSON values: read with limits, and written again.

Read are numbers, texts, and lists of either. `hdf5_texts` reads those of variable length.
"""

import json
import math
from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from ckptshrink.errors import CorruptCheckpointError, UnsafeCheckpointError
from ckptshrink.io.hdf5_dataset import numpy_dtype, shown
from ckptshrink.io.hdf5_index import Attribute
from ckptshrink.io.hdf5_library import h5a, h5o, h5py, h5s, h5t
from ckptshrink.io.hdf5_texts import Texts

MAX_ATTRIBUTES: Final = 10_000
"""Most attributes of one object."""

_MAX_NBYTES: Final = 1 << 20
_CHARSETS: Final = {h5t.CSET_ASCII: "ascii", h5t.CSET_UTF8: "utf-8"}


def read_attributes(item: Any, texts: Texts) -> tuple[tuple[Attribute, ...], tuple[str, ...]]:
    """Return the attributes of an object, and the quoted names of those that are not read.

    Parameters
    ----------
    item : h5py low-level group or dataset
    texts : Texts
        Of the file that the object is in.

    Raises
    ------
    UnsafeCheckpointError
        There are more than `MAX_ATTRIBUTES`, or texts are out of proportion.
    CorruptCheckpointError
        A text lies outside the file, or two attributes have the same name.
    """
    count = h5a.get_num_attrs(item)
    if count > MAX_ATTRIBUTES:
        raise UnsafeCheckpointError(f"an object has more than {MAX_ATTRIBUTES:,} attributes")
    # By name: the library looks for the n-th of dense attributes by sorting all, for each anew.
    names: list[bytes] = []
    h5a.iterate(item, names.append)
    if len(set(names)) != len(names):
        raise CorruptCheckpointError("an object has two attributes of one name")
    kept: list[Attribute] = []
    left_out: list[str] = []
    for name in names:
        opened = h5a.open(item, name)
        attribute = _attribute(opened, item, texts)
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
            # Encoded here, since text that is marked as ASCII need not be.
            one = isinstance(value, str)
            value = value.encode() if one else [text.encode() for text in value]
        target.attrs.create(attribute.name, np.asarray(value, dtype), dtype=dtype)


def _attribute(item: h5a.AttrID, owner: Any, texts: Texts) -> Attribute | None:
    if item.get_space().get_simple_extent_type() == h5s.NULL or len(item.shape) > 1:
        return None
    # The library can't tell the storage of an empty list (the weights of a layer that has none).
    is_empty = 0 in item.shape
    if not is_empty and item.get_storage_size() > _MAX_NBYTES:
        return None
    kind = item.get_type()
    is_text = isinstance(kind, h5t.TypeStringID)
    number = numpy_dtype(kind)
    if not is_text and number is None:
        return None
    if is_text and kind.is_variable_str():
        return _variable_text(item, owner, texts)
    data = np.empty(item.shape, kind.dtype if number is None else number[0])
    if not is_empty:
        item.read(data)
    value = data.tolist()
    try:
        name = item.name.decode()
        if is_text:
            value = [text.decode() for text in value] if item.shape else value.decode()
        json.dumps(value, allow_nan=False)
    except ValueError:  # a text that is not UTF-8, NaN, an infinity
        return None
    if number is not None:
        return Attribute(name, number[0].str, None, value)
    return Attribute(name, _CHARSETS.get(kind.get_cset(), "utf-8"), kind.get_size(), value)


def _variable_text(item: h5a.AttrID, owner: Any, texts: Texts) -> Attribute | None:
    count = math.prod(item.shape)
    found = texts.of(h5o.get_info(owner).addr, item.name, count)
    if found is None:
        return None
    try:
        decoded = [text.decode() for text in found]
        value = decoded if item.shape else decoded[0]
        charset = _CHARSETS.get(item.get_type().get_cset(), "utf-8")
        return Attribute(item.name.decode(), charset, None, value)
    except ValueError:  # a text that is not UTF-8
        return None
