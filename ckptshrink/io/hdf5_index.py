"""What a walk over an HDF5 file finds, as values; and as JSON, in which they leave its process.

The library runs in a process of its own (`hdf5_child`), which the file may have crashed or taken
over: what comes out of it is checked here as if it came out of the file. Imports no h5py.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ckptshrink.errors import CorruptCheckpointError, printable
from ckptshrink.tensors import nbytes_of

_CODES: Final = {
    ("f", 8): "F64", ("f", 4): "F32", ("f", 2): "F16", ("b", 1): "BOOL",
    ("i", 8): "I64", ("i", 4): "I32", ("i", 2): "I16", ("i", 1): "I8",
    ("V", 2): "BF16",  # opaque pairs, of Keras 3; see `says_bfloat16`
    ("u", 8): "U64", ("u", 4): "U32", ("u", 2): "U16", ("u", 1): "U8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attribute:
    """A number, a text, or a list of either.

    Attributes
    ----------
    name : str
    dtype : str
        numpy's code for numbers (``"<f4"``), ``"utf-8"`` or ``"ascii"`` for text.
    length : int or None
        Bytes of a text of fixed length; None for others, and for numbers.
    value : int, float, bool, str or a list of them
    """

    name: str
    dtype: str
    length: int | None
    value: Any

    def record(self) -> dict[str, Any]:
        """Return the attribute as a JSON value; ``Attribute(**value)`` makes it again."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Storage:
    """How a dataset is stored.

    Attributes
    ----------
    shape : tuple of int
    stored : numpy dtype
        With the byte order of the file.
    dtype : str
        A key of `tensors.ITEMSIZE`.
    offset : int or None
        Where the payload lies in the file as it is, little-endian; None if the library has to
        convert or unpack it, and if there is none.
    chunks, maxshape : tuple or None
    filters : tuple of (str, int or None)
        In the order of writing, with gzip's level.
    """

    shape: tuple[int, ...]
    stored: "np.dtype[Any]"
    dtype: str
    offset: int | None
    chunks: tuple[int, ...] | None
    maxshape: tuple[int | None, ...] | None
    filters: tuple[tuple[str, int | None], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        return nbytes_of(self.shape, self.dtype)


@dataclass(frozen=True, slots=True)
class Group:
    """A group by its path without the leading slash; the root is ``""``."""

    name: str
    attributes: tuple[Attribute, ...]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset that holds a tensor.

    Attributes
    ----------
    name : str
        Path without the leading slash.
    storage : Storage
    shares_with : str or None
        An earlier dataset of which this name is another hard link.
    attributes : tuple of Attribute
        Of the first name only, since they belong to the dataset and not to its names.
    """

    name: str
    storage: Storage
    shares_with: str | None
    attributes: tuple[Attribute, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """What a file holds: groups by name, datasets in stored order, and what is passed over."""

    groups: tuple[Group, ...]
    datasets: tuple[Dataset, ...]
    notes: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """Return the index as a JSON value."""
        return {
            "groups": [
                {"name": group.name, "attributes": [a.record() for a in group.attributes]}
                for group in self.groups
            ],
            "datasets": [_dataset_record(dataset) for dataset in self.datasets],
            "notes": list(self.notes),
        }


def index_of(record: Any, file_size: int, path: Path) -> Index:
    """Return the index of a record, every field of it checked.

    Raises
    ------
    CorruptCheckpointError
        It is not what `Index.record` makes of a file of this size.
    """
    try:
        datasets = tuple(_dataset(each, file_size) for each in record["datasets"])
        first = {d.name: d.storage for d in datasets if d.shares_with is None}
        for dataset in datasets:
            if dataset.shares_with is not None:
                if first[dataset.shares_with] != dataset.storage:
                    raise ValueError(f"{dataset.name} is no other name of {dataset.shares_with}")
            elif dataset.storage.dtype == "BF16" and not says_bfloat16(dataset.attributes):
                raise ValueError(f"{dataset.name} is not said to be bfloat16")
        if len({dataset.name for dataset in datasets}) != len(datasets):
            raise ValueError("two datasets have one name")
        return Index(
            tuple(Group(_text(each["name"]), _attributes(each)) for each in record["groups"]),
            datasets,
            tuple(map(_text, record["notes"])),
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CorruptCheckpointError(
            "what the HDF5 library found in it makes no sense", path=path
        ) from error


def code_of(dtype: "np.dtype[Any]") -> str | None:
    """Return the key of `tensors.ITEMSIZE` for a numpy dtype, in either byte order."""
    # Two fields of a byte, or an array of two, are of numpy's kind V too, and no opaque pair.
    if dtype.names is not None or dtype.subdtype is not None:
        return None
    return _CODES.get((dtype.kind, dtype.itemsize))


def says_bfloat16(attributes: Iterable[Attribute]) -> bool:
    """Return whether an attribute says that opaque pairs are bfloat16, as Keras 3 writes it."""
    return any(a.name == "dtype" and a.value == "bfloat16" for a in attributes)


def one_line(error: Exception) -> str:
    """Return the first line of an error's text, cut to 200 characters."""
    text = str(error.args[0]) if len(error.args) == 1 else str(error)
    return printable(text.strip().split("\n", 1)[0])[:200] or type(error).__name__


def _dataset_record(dataset: Dataset) -> dict[str, Any]:
    storage = dataset.storage
    return {
        "name": dataset.name,
        "shape": list(storage.shape),
        "stored": storage.stored.str,
        "offset": storage.offset,
        "chunks": storage.chunks,
        "maxshape": storage.maxshape,
        "filters": storage.filters,
        "shares_with": dataset.shares_with,
        "attributes": [attribute.record() for attribute in dataset.attributes],
    }


def _dataset(record: Mapping[str, Any], file_size: int) -> Dataset:
    stored = np.dtype(_text(record["stored"]))
    dtype = code_of(stored)
    if dtype is None:
        raise ValueError(f"{stored} is no dtype of a tensor")
    shape = _sizes(record["shape"])
    chunks, maxshape = record["chunks"], record["maxshape"]
    storage = Storage(
        shape=shape,
        stored=stored,
        dtype=dtype,
        offset=None if record["offset"] is None else _size(record["offset"]),
        chunks=None if chunks is None else _sizes(chunks),
        maxshape=None
        if maxshape is None
        else tuple(None if size is None else _size(size) for size in maxshape),
        filters=tuple(
            (_text(name), None if value is None else _size(value))
            for name, value in record["filters"]
        ),
    )
    if storage.offset is not None and storage.offset + storage.nbytes > file_size:
        raise ValueError("a dataset ends after the file")
    first = record["shares_with"]
    return Dataset(
        _text(record["name"]),
        storage,
        None if first is None else _text(first),
        _attributes(record),
    )


def _attributes(record: Mapping[str, Any]) -> tuple[Attribute, ...]:
    found = tuple(Attribute(**each) for each in record["attributes"])
    for attribute in found:
        _text(attribute.name)
        _text(attribute.dtype)
        if attribute.length is not None:
            _size(attribute.length)
        many = type(attribute.value) is list
        for value in attribute.value if many else (attribute.value,):
            _scalar(value)
    return found


def _scalar(value: Any) -> None:
    # JSON as Python reads it has NaN and infinities, which the attributes of a walk don't.
    if type(value) not in (str, bool, int, float):
        raise TypeError("not a number or a text")
    if type(value) is float and not math.isfinite(value):
        raise ValueError("not a number")


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("not a text")
    return value


def _size(value: Any) -> int:
    # type() and not isinstance(): True is an int to Python and no size to anybody.
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("not a size")
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    return tuple(map(_size, values))
