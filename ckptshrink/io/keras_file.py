"""The .keras archives of Keras 3: a zip of a config, metadata, and an HDF5 file of weights.

The config is data. A class, a lambda or a function that it names is never looked up, and what
`write_new` writes has the very bytes that it had. The weights are read at their place in the
archive; where the archive packs them, they are unpacked into a file without a name, which nobody
else can open.
"""

import base64
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckptshrink.errors import (
    CheckpointError,
    CorruptCheckpointError,
    ManifestMismatchError,
    OutputError,
    UnsafeCheckpointError,
    printable,
)
from ckptshrink.io import hdf5_file, hdf5_process
from ckptshrink.io.checkpoint import Reader
from ckptshrink.io.files import SourceFile, unpacking
from ckptshrink.io.hdf5_file import Hdf5Reader, open_hdf5_in
from ckptshrink.io.keras_config import cells_in, check_archive
from ckptshrink.io.safetensors_header import lenient_json
from ckptshrink.io.torch_zip import STORED, ZipEntry, ZipIndex
from ckptshrink.io.torch_zip_writer import Sink, ZipWriter
from ckptshrink.tensors import TensorRef

WEIGHTS: Final = "model.weights.h5"
CONFIG: Final = "config.json"

_MAX_CONFIG: Final = 64 << 20
_MAX_KEPT: Final = 16 << 20
_HINT: Final = "save the model again with Keras, where you trust it"

Replaced = Mapping[str, Callable[[], NDArray[np.uint8]]]
Payload = Callable[[str], Iterable[memoryview]]


class KerasReader:
    """An opened .keras archive: its weights, and what lies beside them.

    Attributes
    ----------
    checkpoint : Checkpoint
    index : ZipIndex
    """

    def __init__(self, archive: SourceFile, index: ZipIndex, weights: Hdf5Reader) -> None:
        self.index = index
        self._archive = archive
        self._weights = weights
        config = _config(index)
        inner = weights.checkpoint
        doubts = check_archive(cells_in(config), inner.tensors, CONFIG)
        members, left_out = _members(index)
        self.checkpoint = replace(
            inner,
            format="keras",
            container={"members": members, "weights": inner.container},
            doubts={**inner.doubts, **doubts},
            notes=(*inner.notes, *left_out),
        )

    def read(self, name: str) -> NDArray[np.uint8]:
        """Return the payload of a tensor; raises as `Hdf5Reader.read`."""
        return self._weights.read(name)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the payload of a tensor in order, each part valid until the next is asked for."""
        return self._weights.chunks(name)

    def close(self) -> None:
        """Close the files."""
        self._weights.close()
        self._archive.close()


def open_keras(path: Path) -> KerasReader:
    """Open a .keras archive.

    Raises
    ------
    CheckpointError
        The file is missing or can't be read, or a dataset holds what is no tensor.
    CorruptCheckpointError
        Zip, config or weights are damaged, missing, or not of one model.
    UnsafeCheckpointError
        Entries overlap, share a name, lead elsewhere or inflate out of proportion, or the weights
        would be refused by themselves.
    """
    hdf5_process.start()  # gets ready while we look at the archive
    with ExitStack() as opened:
        archive = SourceFile(path)
        opened.callback(archive.close)
        index = ZipIndex(archive, hint=_HINT)
        for name in (CONFIG, WEIGHTS):
            if name not in index.entries:
                raise CorruptCheckpointError(
                    f"is a Keras archive without its {name}", path=path, hint=_why_none(index)
                )
        file = _weights_file(index, index.entries[WEIGHTS])
        opened.callback(file.close)
        weights = open_hdf5_in(file)
        opened.callback(weights.close)
        try:
            reader = KerasReader(archive, index, weights)
        except CheckpointError as error:
            error.path = error.path or str(path)
            raise
        opened.pop_all()
    return reader


def write_new(
    container: Mapping[str, Any],
    tensors: Mapping[str, TensorRef],
    payload: Payload,
    scratch: Path,
    out: Sink,
) -> None:
    """Write a new archive with the members recorded of the source.

    The same arguments give the same bytes, with the same version of the HDF5 library.

    Parameters
    ----------
    container : mapping
        `Checkpoint.container` of the source.
    tensors, payload
        As `hdf5_file.write_new` takes them.
    scratch : Path
        Where to write the weights by themselves first; must not exist.
    out : Sink

    Raises
    ------
    OutputError, ManifestMismatchError
        As `hdf5_file.write_new`; the members are not as this module records them.
    """
    members = _recorded(container)
    hdf5_file.write_new(container["weights"], tensors, payload, scratch)
    with closing(SourceFile(scratch)) as weights:
        archive = ZipWriter(out)
        for name, content in members:
            if content is None:
                archive.add(name.encode(), weights.size, weights.chunks(0, weights.size))
            else:
                archive.add(name.encode(), len(content), [content])
        archive.close()


def write_like(reader: Reader, replaced: Replaced, scratch: Path, out: Sink) -> None:
    """Copy an archive with the payloads of some tensors exchanged.

    Every member has its bytes and its place in the order; none is packed.

    Parameters
    ----------
    reader : Reader
        What `open_keras` returned, or a view of it.
    replaced : mapping of str to callable
        Returns the new bytes of a tensor, of the size of the old.
    scratch, out
        As `write_new` takes them.

    Raises
    ------
    OutputError
        As `hdf5_file.write_like`.
    """
    with closing(SourceFile(reader.checkpoint.root)) as file:
        index = ZipIndex(file, hint=_HINT)
        with closing(_weights_file(index, index.entries[WEIGHTS])) as weights:
            hdf5_file.write_like(reader, replaced, scratch, source=weights)
        with closing(SourceFile(scratch)) as changed:
            archive = ZipWriter(out)
            for entry in index.entries.values():
                if entry.name == WEIGHTS:
                    written = archive.add(
                        entry.raw_name, changed.size, changed.chunks(0, changed.size)
                    )
                    if written != changed.size:
                        raise OutputError("the weights changed while they were written")
                else:
                    archive.add(entry.raw_name, entry.nbytes, index.chunks(entry))
            archive.close()


def _weights_file(index: ZipIndex, entry: ZipEntry) -> SourceFile:
    """Return the weights as a file of their own, after a look at their checksum."""
    if entry.method == STORED:
        for _ in index.chunks(entry):  # compares the checksum at the end
            pass
        return index.file.window(entry.start, entry.nbytes)
    # How far they unpack is bounded by ZipIndex.
    with unpacking(index.file.path) as unpacked:
        for chunk in index.chunks(entry):
            unpacked.write(chunk)
        unpacked.flush()
        return SourceFile.opened(os.dup(unpacked.fileno()), index.file.path)


def _why_none(index: ZipIndex) -> str | None:
    if any(name.endswith((".weights.json", "model.weights.npz")) for name in index.entries):
        return "weights in shards or as npz are not read: save them with Keras as one .h5"
    return "the download or the save was cut short: get it again"


def _config(index: ZipIndex) -> Mapping[str, Any]:
    entry = index.entries[CONFIG]
    if entry.nbytes > _MAX_CONFIG:
        raise UnsafeCheckpointError(f"its {CONFIG} has {entry.nbytes:,} bytes")
    config = lenient_json(index.read(entry).tobytes(), CONFIG, index.file.path)
    if not isinstance(config.get("class_name"), str):
        raise CorruptCheckpointError(f"its {CONFIG} names no class of a model")
    return config


def _members(index: ZipIndex) -> tuple[list[dict[str, str]], list[str]]:
    """Return what to keep of every member but the weights, and a note on each that is too large."""
    members: list[dict[str, str]] = []
    left_out: list[str] = []
    left = _MAX_KEPT
    for entry in index.entries.values():
        if entry.name == WEIGHTS:
            members.append({"name": entry.name})
            continue
        if entry.nbytes > left:
            name = printable(entry.name)[:200]
            left_out.append(f"{name}: {entry.nbytes:,} bytes are not carried into a restored file")
            continue
        left -= entry.nbytes
        content = index.read(entry).tobytes()
        try:
            members.append({"name": entry.name, "text": content.decode()})
        except UnicodeDecodeError:
            encoded = base64.b64encode(content).decode()
            members.append({"name": entry.name, "base64": encoded})
    return members, left_out


def _recorded(container: Mapping[str, Any]) -> list[tuple[str, bytes | None]]:
    """Return names and contents of the members of a container record; None for the weights."""
    try:
        found: list[tuple[str, bytes | None]] = []
        for member in container["members"]:
            content: bytes | None = None
            if "base64" in member:
                content = base64.b64decode(member["base64"], validate=True)
            elif "text" in member:
                content = str.encode(member["text"])
            found.append((str(member["name"]), content))
        names = [name for name, _ in found]
        if len(set(names)) < len(names) or [n for n, c in found if c is None] != [WEIGHTS]:
            raise ValueError("members repeat, or the weights are missing")
        container["weights"]["groups"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ManifestMismatchError(
            f"the record of the source's container is none of a Keras archive: {error}"
        ) from error
    return found
