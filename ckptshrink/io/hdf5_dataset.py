"""One dataset of an HDF5 file: whether it is a tensor at all, and how it is stored.

HDF5 follows external storage and virtual datasets into other files, loads filters from shared
objects, and unpacks a chunk for as long as its stream goes on. None of that is let happen.
"""

import zlib
from typing import Any, Final

import numpy as np

from ckptshrink.errors import (
    CheckpointError,
    CorruptCheckpointError,
    UnsafeCheckpointError,
    printable,
)
from ckptshrink.io.hdf5_index import Storage, code_of
from ckptshrink.io.hdf5_library import h5d, h5s, h5t
from ckptshrink.tensors import nbytes_of

MAX_CHUNK: Final = 256 << 20
"""Bytes of one chunk, which the library unpacks in one piece."""

_FILTERS: Final = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}

_TYPE_NAMES: Final = {
    h5t.BITFIELD: "bit fields", h5t.OPAQUE: "opaque bytes", h5t.COMPOUND: "a compound type",
    h5t.REFERENCE: "references", h5t.ENUM: "an enumeration", h5t.VLEN: "sequences",
    h5t.ARRAY: "arrays", h5t.FLOAT: "floats without a numpy dtype",
    h5t.INTEGER: "integers without a numpy dtype",
}  # fmt: skip


def why_no_tensor(item: h5d.DatasetID, path: str) -> str | None:
    """Return why a dataset is passed over, or None if it is to be read.

    Raises
    ------
    UnsafeCheckpointError
        Its data lies in other files.
    """
    # Before anything else is asked of it: the shape of a virtual dataset opens its source files.
    properties = item.get_create_plist()
    if properties.get_layout() == h5d.VIRTUAL:
        raise UnsafeCheckpointError("is a virtual dataset, which reads other files", tensor=path)
    if properties.get_external_count():
        file = properties.get_external(0)[0]
        raise UnsafeCheckpointError(f"keeps its data in another file, {shown(file)}", tensor=path)
    if item.get_space().get_simple_extent_type() == h5s.NULL:
        return "an empty dataset"
    return "text" if isinstance(item.get_type(), h5t.TypeStringID) else None


def is_opaque_pair(item: h5d.DatasetID) -> bool:
    """Return whether a dataset holds opaque values of two bytes: perhaps bfloat16, of Keras 3."""
    kind = item.get_type()
    return bool(kind.get_class() == h5t.OPAQUE and kind.get_size() == 2)


def storage_of(
    item: h5d.DatasetID, path: str, file_size: int, *, is_bfloat16: bool = False
) -> Storage:
    """Return how a dataset is stored, checked against the file.

    Parameters
    ----------
    is_bfloat16 : bool
        What its opaque pairs of bytes are by one of its attributes.

    Raises
    ------
    CheckpointError
        It holds what is no tensor.
    UnsafeCheckpointError
        It needs a filter that is not one of HDF5's and h5py's own, or absurd chunks.
    CorruptCheckpointError
        It ends after the end of the file.
    """
    properties = item.get_create_plist()
    stored, dtype = (np.dtype("V2"), "BF16") if is_bfloat16 else _dtype(item.get_type(), path)
    shape = tuple(item.shape)
    maxshape = tuple(item.get_space().get_simple_extent_dims(True)) if shape else ()
    chunks = None
    if properties.get_layout() == h5d.CHUNKED:
        chunks = tuple(properties.get_chunk())
        if nbytes_of(chunks, dtype) > MAX_CHUNK:
            raise UnsafeCheckpointError(f"has chunks over {MAX_CHUNK:,} bytes", tensor=path)
    return Storage(
        shape=shape,
        stored=stored,
        dtype=dtype,
        offset=_offset(item, path, stored, nbytes_of(shape, dtype), file_size),
        chunks=chunks,
        maxshape=None
        if maxshape == shape
        else tuple(None if size == h5s.UNLIMITED else size for size in maxshape),
        filters=_filters(properties, path, None if chunks is None else nbytes_of(chunks, dtype)),
    )


def numpy_dtype(kind: h5t.TypeID) -> tuple["np.dtype[Any]", str] | None:
    """Return the numpy dtype of a stored number type, in the file's byte order, and its code."""
    if kind.get_class() not in {h5t.INTEGER, h5t.FLOAT, h5t.ENUM}:
        return None
    try:
        dtype = np.dtype(kind.dtype)
    except TypeError:  # the library knows a type that numpy has no name for
        return None
    code = code_of(dtype)
    is_enum = kind.get_class() == h5t.ENUM and dtype.kind != "b"
    # h5py reads a float that it has no name for as a wider one: bfloat16 as float32.
    if code is None or is_enum or dtype.itemsize != kind.get_size():
        return None
    return dtype, code


def check_chunks(storage: Storage, item: h5d.DatasetID, path: str, file_size: int) -> None:
    """Check that every stored chunk unpacks to its own size, before the library unpacks it.

    The library grows its buffer for as long as a deflate stream goes on, so that a chunk of 1 MiB
    could take 1,000 times its bytes in the file, whatever size the dataset announces.

    Raises
    ------
    UnsafeCheckpointError
        A chunk would unpack to more than its size.
    CorruptCheckpointError
        A chunk is too short, damaged, or larger than the file.
    """
    if storage.chunks is None:
        return
    infos: list[Any] = []
    item.chunk_iter(infos.append)
    for info in infos:
        if info.size > file_size:
            raise CorruptCheckpointError("a chunk is larger than the file", tensor=path)
        applied = [
            name for bit, (name, _) in enumerate(storage.filters) if not info.filter_mask >> bit & 1
        ]
        if "lzf" in applied:
            continue  # at most 88 times its stored bytes, which the limits on a dataset allow for
        inside = applied[: applied.index("gzip")] if "gzip" in applied else applied
        want = nbytes_of(storage.chunks, storage.dtype) + 4 * ("fletcher32" in inside)
        size = info.size
        if "gzip" in applied:
            size = _inflated_size(item.read_direct_chunk(info.chunk_offset)[1], want, path)
        if size != want:
            raise CorruptCheckpointError(
                f"a chunk holds {size} bytes, and its shape takes {want}", tensor=path
            )


def shown(name: bytes) -> str:
    """Return a name out of a file, quoted, cut and without control characters, for a message."""
    return f"'{printable(name.decode('utf-8', 'backslashreplace'))[:200]}'"


def _dtype(kind: h5t.TypeID, path: str) -> tuple["np.dtype[Any]", str]:
    found = numpy_dtype(kind)
    if found is None:
        name = _TYPE_NAMES.get(kind.get_class(), "a type of its own")
        raise CheckpointError(
            f"holds {name} ({kind.get_size()} bytes each), not integers, floats or booleans",
            tensor=path,
        )
    return found


def _filters(
    properties: Any, path: str, chunk_nbytes: int | None
) -> tuple[tuple[str, int | None], ...]:
    found: dict[str, int | None] = {}
    for position in range(properties.get_nfilters()):
        number, _, values, name = properties.get_filter(position)
        if number not in _FILTERS:
            raise UnsafeCheckpointError(
                f"needs the filter {shown(name)} (number {number}), which is not loaded",
                tensor=path,
                hint="h5repack -f NONE IN OUT writes the file without filters",
            )
        known = _FILTERS[number]
        if known in found:
            # Deflate twice expands a million to one, past what checking one pass can bound.
            raise UnsafeCheckpointError(f"applies the filter {known} twice", tensor=path)
        if known == "lzf" and tuple(values[2:3]) != (chunk_nbytes,):
            # The size of the filter's buffer, out of which the whole chunk is then copied.
            raise CorruptCheckpointError("its lzf filter has another chunk size", tensor=path)
        found[known] = int(values[0]) if known == "gzip" and values else None
    if "gzip" in found and "lzf" in found:
        raise UnsafeCheckpointError("is packed by gzip and lzf, one in the other", tensor=path)
    return tuple(found.items())


def _offset(
    item: h5d.DatasetID, path: str, stored: "np.dtype[Any]", nbytes: int, file_size: int
) -> int | None:
    contiguous = item.get_create_plist().get_layout() == h5d.CONTIGUOUS
    # A dataset that was never written has no storage, and all its values are the fill value. Its
    # offset can't be asked for: in a file with a user block the library adds that to "undefined".
    if not contiguous or nbytes == 0 or item.get_storage_size() == 0:
        return None
    offset = item.get_offset()
    if offset is None or offset + nbytes > file_size or item.get_storage_size() < nbytes:
        raise CorruptCheckpointError("its data ends after the end of the file", tensor=path)
    # Compared as types and not as dtypes: an integer of 20 bits in 4 bytes has numpy's dtype int32.
    as_is = item.get_type().equal(h5t.py_create(stored.newbyteorder("<")))
    return int(offset) if as_is or stored.kind == "V" else None


def _inflated_size(raw: bytes, limit: int, path: str) -> int:
    """Return the bytes a deflate stream unpacks to, in steps of 1 MiB and never over the limit."""
    stream = zlib.decompressobj()
    size = 0
    while not stream.eof:
        try:
            part = stream.decompress(raw, 1 << 20)
        except zlib.error as error:
            raise CorruptCheckpointError(f"a chunk is damaged: {error}", tensor=path) from error
        size += len(part)
        if size > limit:
            raise UnsafeCheckpointError("a chunk unpacks to more than its size", tensor=path)
        raw = stream.unconsumed_tail
        if not part and not raw:
            break
    return size
