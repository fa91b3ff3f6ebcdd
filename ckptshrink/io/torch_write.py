"""Checkpoints of torch.save, written without torch: new ones, and copies with other values."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckptshrink.digest import CHUNK
from ckptshrink.errors import OutputError
from ckptshrink.io.checkpoint import Reader
from ckptshrink.io.torch_container import LegacyContainer, ZipContainer
from ckptshrink.io.torch_file import TorchReader, elements_of, open_torch
from ckptshrink.io.torch_structure import StructurePickle
from ckptshrink.io.torch_tar import TarContainer
from ckptshrink.io.torch_zip_writer import Sink, ZipWriter
from ckptshrink.tensors import TensorRef

Replaced = Mapping[str, Callable[[], NDArray[np.uint8]]]

_ROOT: Final = "archive"
_VERSION: Final = b"3\n"


def write_new(
    container: Mapping[str, Any],
    tensors: Mapping[str, TensorRef],
    payload: Callable[[str], Iterator[memoryview]],
    out: Sink,
) -> tuple[str, ...]:
    """Write a checkpoint in the zip container, which torch 1.6 and later load.

    Tensors are streamed one after the other; a tied one refers to the storage of the tensor that
    it is tied to. The same arguments give the same bytes.

    Parameters
    ----------
    container : mapping
        Its ``"structure"`` says where the tensors go, see `Walker` and `StructurePickle`.
    tensors : mapping of str to TensorRef
        Those that the structure names, and possibly more.
    payload : callable
        Yields a tensor's bytes, row-major and little-endian.
    out : Sink

    Returns
    -------
    tuple of str
        What the structure names and can't be written, objects of a class mostly, one line each.

    Raises
    ------
    ManifestMismatchError
        The structure is malformed, or names a tensor that is not there.
    OutputError
        A payload has the wrong size.
    """
    pickle = StructurePickle(tensors)
    data = pickle.dump(container.get("structure"))
    archive = ZipWriter(out)
    archive.add(f"{_ROOT}/data.pkl".encode(), len(data), [data])
    archive.add(f"{_ROOT}/byteorder".encode(), 6, [b"little"])
    for name, key in pickle.storages.items():
        nbytes = tensors[name].nbytes
        written = archive.add(f"{_ROOT}/data/{key}".encode(), nbytes, payload(name))
        if written != nbytes:
            raise OutputError(f"got {written} bytes for {nbytes}", tensor=name)
    archive.add(f"{_ROOT}/version".encode(), len(_VERSION), [_VERSION])
    archive.close()
    return tuple(pickle.left_out)


def write_like(reader: Reader, replaced: Replaced, out: Sink) -> None:
    """Copy a checkpoint with the values of some tensors exchanged.

    Pickle, storages and their order stay, and so do classes and everything else that loading the
    file brings back; a storage is copied, or held in memory and written into.

    Parameters
    ----------
    reader : Reader
        What `open_torch` returned, or a view of it.
    replaced : mapping of str to callable
        Returns the new bytes of a tensor, of the size of the old, when the copy comes to it.
    out : Sink

    Raises
    ------
    OutputError
        A name is not in the source, a payload has the wrong size, or two tensors that share memory
        were given different values.
    CorruptCheckpointError
        A storage that is copied has another checksum.
    """
    copy_file(reader.checkpoint.files[0], replaced, out)


def copy_file(path: Path, replaced: Replaced, out: Sink) -> None:
    """Copy one file with the values of some of its tensors exchanged; see `write_like`."""
    with closing(open_torch(path)) as source:
        copy_with(source, replaced, out)


def copy_with(source: TorchReader, replaced: Replaced, out: Sink) -> None:
    """Copy an opened checkpoint with the values of some tensors exchanged; see `write_like`."""
    by_storage: dict[str, list[str]] = {}
    for name in replaced:
        if name not in source.checkpoint.tensors:
            raise OutputError("is to be replaced and is not in the source", tensor=name)
        by_storage.setdefault(source.views[name].key, []).append(name)
    changes = _Changes(source, replaced, by_storage)
    if isinstance(source.container, ZipContainer):
        _copy_zip(source.container, changes, out)
    elif isinstance(source.container, LegacyContainer | TarContainer):
        _copy_in_place(source, source.container, changes, out)


class _Changes:
    """The new bytes of storages, each made when it is asked for."""

    def __init__(
        self, source: TorchReader, replaced: Replaced, by_storage: Mapping[str, list[str]]
    ) -> None:
        self.by_storage = by_storage
        self._source = source
        self._replaced = replaced

    def storage(self, key: str, nbytes: int) -> NDArray[np.uint8]:
        """Return the new bytes of a storage."""
        names = self.by_storage[key]
        whole = self._source.views[names[0]]
        if len(names) == 1 and whole.contiguous and whole.nbytes == nbytes:
            return self._payload(names[0])
        data = self._source.container.read(key, 0, nbytes)
        digests: dict[str, bytes] = {}
        for name in names:
            payload = self._payload(name)
            digests[name] = hashlib.sha256(payload.data).digest()
            elements = self._elements(name, data)
            elements[...] = payload.view(elements.dtype).reshape(elements.shape)
        for name, digest in digests.items():
            # Views can overlap one another or themselves, and the last one written wins.
            stored = np.ascontiguousarray(self._elements(name, data)).reshape(-1).view(np.uint8)
            if hashlib.sha256(stored.data).digest() != digest:
                raise OutputError("shares memory with other values that were given", tensor=name)
        return data

    def _payload(self, name: str) -> NDArray[np.uint8]:
        payload = np.ascontiguousarray(self._replaced[name]()).reshape(-1).view(np.uint8)
        expected = self._source.checkpoint.tensors[name].nbytes
        if payload.nbytes != expected:
            raise OutputError(f"got {payload.nbytes} bytes for {expected}", tensor=name)
        return payload

    def _elements(self, name: str, data: NDArray[np.uint8]) -> NDArray[np.generic]:
        view = self._source.views[name]
        return elements_of(view, data, view.start)


def _copy_zip(container: ZipContainer, changes: _Changes, out: Sink) -> None:
    keys = {container.entry_name(key): key for key in changes.by_storage}
    archive = ZipWriter(out)
    for entry in container.index.entries.values():
        if entry.name in keys:
            chunks = _in_chunks(changes.storage(keys[entry.name], entry.nbytes))
        else:
            chunks = container.index.chunks(entry)
        archive.add(entry.name.encode(), entry.nbytes, chunks)
    archive.close()


def _copy_in_place(
    source: TorchReader, container: LegacyContainer | TarContainer, changes: _Changes, out: Sink
) -> None:
    at = 0
    for key, (offset, nbytes) in container.places.items():
        if key not in changes.by_storage:
            continue
        for chunk in source.file.chunks(at, offset - at):
            out.write(chunk)
        for chunk in _in_chunks(changes.storage(key, nbytes)):
            out.write(chunk)
        at = offset + nbytes
    for chunk in source.file.chunks(at, source.file.size - at):
        out.write(chunk)


def _in_chunks(data: NDArray[np.uint8]) -> Iterator[memoryview]:
    return (data.data[i : i + CHUNK] for i in range(0, data.nbytes, CHUNK))
