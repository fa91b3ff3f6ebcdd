"""HDF5 checkpoints: an ELMo's weights, Keras's files, and any other tree of plain datasets.

Names of tensors are paths without the leading slash. Payloads of contiguous little-endian datasets,
an ELMo's case, are read at their offset without the library; all others are unpacked by it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckptshrink.digest import CHUNK
from ckptshrink.errors import CheckpointError, ManifestMismatchError, OutputError
from ckptshrink.io import hdf5_process
from ckptshrink.io.checkpoint import Checkpoint, Reader
from ckptshrink.io.files import SourceFile
from ckptshrink.io.hdf5_index import Attribute, Dataset, Index, code_of, one_line
from ckptshrink.io.keras_hdf5 import keras_file
from ckptshrink.io.safetensors_header import strict_json
from ckptshrink.tensors import TensorRef

_MAX_OPTIONS: Final = 1 << 20


class Hdf5Reader:
    """An opened HDF5 checkpoint.

    Attributes
    ----------
    checkpoint : Checkpoint
    file : SourceFile
    datasets : mapping of str to Dataset
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        file: SourceFile,
        library: hdf5_process.Library,
        datasets: Mapping[str, Dataset],
    ) -> None:
        self.checkpoint = checkpoint
        self.file = file
        self.datasets = datasets
        self._library = library

    def read(self, name: str) -> NDArray[np.uint8]:
        """Return the payload of a tensor: a new, writable array of ``nbytes`` bytes.

        Raises
        ------
        CorruptCheckpointError
            A chunk is damaged, or the library ended over it.
        UnsafeCheckpointError
            A chunk would unpack to more than its size, or takes too long.
        """
        storage = self.datasets[name].storage
        if storage.offset is not None:
            return self.file.read(storage.offset, storage.nbytes)
        if storage.nbytes == 0:
            return np.empty(0, np.uint8)
        return self._library.payload(name, storage.nbytes)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the payload of a tensor in order, each part valid until the next is asked for."""
        storage = self.datasets[name].storage
        if storage.offset is not None:
            yield from self.file.chunks(storage.offset, storage.nbytes)
            return
        data = self.read(name).data
        for start in range(0, len(data), CHUNK):
            yield data[start : start + CHUNK]

    def close(self) -> None:
        """Close the files."""
        self._library.close()
        self.file.close()


def open_hdf5(path: Path) -> Hdf5Reader:
    """Open an HDF5 checkpoint, and find the options of an ELMo beside it.

    Raises
    ------
    CheckpointError
        The file is missing or can't be read, or a dataset holds what is no tensor.
    CorruptCheckpointError
        The library can't read it, or sizes and offsets don't fit the file.
    UnsafeCheckpointError
        It leads to other files, or announces sizes out of proportion.
    """
    hdf5_process.start()  # first of all: it gets ready while we look at the file
    return open_hdf5_in(SourceFile(path))


def open_hdf5_in(file: SourceFile) -> Hdf5Reader:
    """Open an HDF5 checkpoint in a file that is open, which is closed with it; see `open_hdf5`."""
    path = file.path
    with ExitStack() as opened:
        opened.callback(file.close)
        library = hdf5_process.Library(file)
        opened.callback(library.close)
        found = library.index
        datasets = {dataset.name: dataset for dataset in found.datasets}
        tensors = {name: _ref(dataset, path.name) for name, dataset in datasets.items()}
        try:
            keras = keras_file(found, tensors)
        except CheckpointError as error:
            error.path = error.path or str(path)
            raise
        notes = list(found.notes)
        if keras is not None:
            notes += keras.notes
            # one dataset of two names must come first by its own
            if not any(ref.shares_with for ref in tensors.values()):
                tensors = {name: tensors[name] for name in keras.order}
        sidecars: tuple[Path, ...] = ()
        if any(name.startswith("RNN_0/RNN/") for name in datasets):
            sidecars = _options_beside(path, notes)
        checkpoint = Checkpoint(
            root=path,
            format="hdf5",
            tensors=tensors,
            files=(path,),
            container=_container(found),
            doubts=keras.doubts if keras is not None else {},
            sidecars=sidecars,
            notes=tuple(notes),
        )
        opened.pop_all()
    return Hdf5Reader(checkpoint, file, library, datasets)


def write_new(
    container: Mapping[str, Any],
    tensors: Mapping[str, TensorRef],
    payload: Callable[[str], Iterable[memoryview]],
    path: Path,
) -> None:
    """Write a new file with the groups, datasets and attributes recorded of the source.

    The same arguments give the same bytes, with the same version of the HDF5 library.

    Parameters
    ----------
    container : mapping
        `Checkpoint.container` of the source.
    tensors : mapping of str to TensorRef
        The source's tensors. One that is left out (optimizer state) is not written, nor is a group
        that would hold nothing any more: its attributes list what was in it.
    payload : callable
        Returns the bytes of a tensor in parts; asked once for each, in stored order, and not for
        further names of the same dataset.
    path : Path
        Must not exist.

    Raises
    ------
    OutputError
        The file can't be written, or a payload has the wrong size.
    ManifestMismatchError
        The record is not one of this module, or a tensor is not in it.
    """
    # Not above: what only reads a file starts faster without the library in its own process.
    from ckptshrink.io.hdf5_attributes import write_attributes
    from ckptshrink.io.hdf5_library import open_output

    groups, datasets = _recorded(container, tensors)
    with _writing(path), open_output(path, "x") as file:
        for name, record in datasets.items():
            if record["shares_with"] is not None:
                file[name] = file[record["shares_with"]]
                continue
            ref = tensors[name]
            with _fitting():
                item = _create(file, ref, record)
                write_attributes(item, record["attributes"])
            _write(item.id, _gathered(payload(name), ref), ref.shape, item.dtype)
        for name, attributes in groups.items():
            with _fitting():
                write_attributes(file.require_group(f"/{name}"), attributes)


def write_like(
    reader: Reader,
    replaced: Mapping[str, Callable[[], NDArray[np.uint8]]],
    path: Path,
    *,
    source: SourceFile | None = None,
) -> None:
    """Copy a file and overwrite the payloads of the datasets named, in place.

    Every other byte is the source's, unless a packed dataset is among them, whose chunks the
    library may have to place anew.

    Parameters
    ----------
    reader : Reader
        What `open_hdf5` returned, or a view of it.
    replaced : mapping of str to callable
        Returns the new bytes of a tensor, of the size of the old.
    path : Path
        Must not exist.
    source : SourceFile, optional
        What to copy, where it is not the whole of the reader's own file.

    Raises
    ------
    OutputError
        The file can't be written, a name is not in the source, or a payload has the wrong size.
    """
    refs = reader.checkpoint.tensors
    for name in replaced:
        if name not in refs:
            raise OutputError("is to be replaced and is not in the source", path=path, tensor=name)
    file = source or SourceFile(reader.checkpoint.root)
    with closing(open_hdf5_in(file)) as opened, _writing(path):
        packed = [name for name in replaced if opened.datasets[name].storage.offset is None]
        with path.open("xb", buffering=0) as out:
            for chunk in file.chunks(0, file.size):
                _write_all(out, chunk)
            for name in replaced:
                offset = opened.datasets[name].storage.offset
                if offset is not None:
                    out.seek(offset)
                    _write_all(out, _checked(replaced[name](), refs[name]).data)
        if packed:
            records = [_packed_record(opened.datasets[name]) for name in packed]
            hdf5_process.overwrite(
                path, records, lambda name: _checked(replaced[name](), refs[name]).data
            )


def _packed_record(dataset: Dataset) -> dict[str, Any]:
    storage = dataset.storage
    return {
        "name": dataset.name,
        "shape": list(storage.shape),
        "dtype": storage.stored.str,
        "nbytes": storage.nbytes,
    }


def _ref(dataset: Dataset, file: str) -> TensorRef:
    storage = dataset.storage
    return TensorRef(
        dataset.name, storage.shape, storage.dtype, storage.nbytes, file, dataset.shares_with
    )


def options_names(stem: str) -> list[str]:
    """Return what the options of an ELMo may be called, by the name of its file without suffix.

    Examples
    --------
    >>> options_names("elmo_weights")
    ['elmo_weights_options.json', 'elmo_options.json', 'options.json']
    """
    # Published files are called PREFIX_weights.hdf5 and PREFIX_options.json.
    stems = (stem, stem.removesuffix("_weights"))
    return list(dict.fromkeys([*(f"{stem}_options.json" for stem in stems), "options.json"]))


def _options_beside(path: Path, notes: list[str]) -> tuple[Path, ...]:
    """Return the options of an ELMo: its own by name, or ``options.json`` in its folder."""
    for name in options_names(path.stem):
        beside = path.parent / name
        if not beside.exists():
            continue
        if _is_options(beside):
            return (beside,)
        notes.append(f"{name} beside it is not the options of an ELMo, left out")
    return ()


def _is_options(path: Path) -> bool:
    try:
        file = SourceFile(path)
        try:
            text = bytes(file.read(0, file.size)) if file.size <= _MAX_OPTIONS else b""
        finally:
            file.close()
        return "lstm" in strict_json(text, "options", path)
    except CheckpointError:
        return False


def _container(found: Index) -> dict[str, Any]:
    """Return what `write_new` needs, as JSON values."""
    return {
        "groups": [
            {"name": group.name, "attributes": [a.record() for a in group.attributes]}
            for group in found.groups
        ],
        "datasets": [_dataset_record(dataset) for dataset in found.datasets],
    }


def _dataset_record(dataset: Dataset) -> dict[str, Any]:
    storage = dataset.storage
    return {
        "name": dataset.name,
        "dtype": storage.stored.str,
        "chunks": None if storage.chunks is None else list(storage.chunks),
        "maxshape": None if storage.maxshape is None else list(storage.maxshape),
        "filters": [list(pair) for pair in storage.filters],
        "shares_with": dataset.shares_with,
        "attributes": [attribute.record() for attribute in dataset.attributes],
    }


def _recorded(
    container: Mapping[str, Any], tensors: Mapping[str, TensorRef]
) -> tuple[dict[str, list[Attribute]], dict[str, dict[str, Any]]]:
    """Return groups and datasets of a container record by name, attributes made again."""
    datasets: dict[str, dict[str, Any]] = {}
    with _fitting():
        groups = {
            group["name"]: [Attribute(**a) for a in group["attributes"]]
            for group in container["groups"]
        }
        dropped = []
        for record in container["datasets"]:
            name, first = record["name"], record["shares_with"]
            if name not in tensors:
                dropped.append(name)
                continue
            if code_of(np.dtype(record["dtype"])) != tensors[name].dtype:
                raise ValueError(f"{name} is no {record['dtype']}")
            if first is not None and first not in datasets:
                raise ValueError(f"{name} is to be {first}, which comes later or never")
            attributes = [Attribute(**a) for a in record["attributes"]]
            filters = dict(record["filters"])
            datasets[name] = {**record, "attributes": attributes, "filters": filters}
        if unknown := set(tensors) - set(datasets):
            raise ValueError(f"{min(unknown)} is not in it")
    emptied = _parents(dropped) - _parents(datasets) - {""}
    kept = {name: groups[name] for name in groups if emptied.isdisjoint(_parents([f"{name}/"]))}
    return kept, datasets


def _parents(names: Iterable[str]) -> set[str]:
    """Return the groups that these datasets lie in."""
    found: set[str] = set()
    for name in names:
        while (name := name.rpartition("/")[0]) not in found:
            found.add(name)
            if not name:
                break
    return found


def _create(file: Any, ref: TensorRef, record: Mapping[str, Any]) -> Any:
    from ckptshrink.io.hdf5_library import h5d, h5p

    filters = record["filters"]
    packing = next((name for name in ("gzip", "lzf") if name in filters), None)
    properties = h5p.create(h5p.DATASET_CREATE)
    if record["chunks"] is not None:
        # When a chunk is filled is a byte of the file: h5py 3.10 always says this, 3.16 never.
        properties.set_fill_time(h5d.FILL_TIME_ALLOC)
    return file.create_dataset(
        ref.name,
        ref.shape,
        np.dtype(record["dtype"]),
        chunks=None if record["chunks"] is None else tuple(record["chunks"]),
        maxshape=None if record["maxshape"] is None else tuple(record["maxshape"]),
        compression=packing,
        compression_opts=filters[packing] if packing else None,
        shuffle="shuffle" in filters or None,
        fletcher32="fletcher32" in filters or None,
        dcpl=properties,
        # Off by default in h5py, and said here since a time of day would change the bytes.
        track_times=False,
    )


@contextmanager
def _fitting() -> Iterator[None]:
    """Turn what goes wrong over a container record into one line.

    The record comes out of a manifest, so it may be anything that JSON can say.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ManifestMismatchError(
            f"the record of the source's container does not fit its tensors: {one_line(error)}"
        ) from error


def _gathered(chunks: Iterable[memoryview], ref: TensorRef) -> NDArray[np.uint8]:
    data = np.empty(ref.nbytes, np.uint8)
    stop = 0
    for chunk in chunks:
        start, stop = stop, stop + chunk.nbytes
        if stop > ref.nbytes:
            break
        data[start:stop] = np.frombuffer(chunk, np.uint8)
    if stop != ref.nbytes:
        raise _wrong_size(stop, ref)
    return data


def _checked(data: NDArray[np.uint8], ref: TensorRef) -> NDArray[np.uint8]:
    if data.nbytes != ref.nbytes:
        raise _wrong_size(data.nbytes, ref)
    return data


def _wrong_size(nbytes: int, ref: TensorRef) -> OutputError:
    return OutputError(f"got {nbytes} bytes for {ref.nbytes}", tensor=ref.name)


def _write(
    item: Any, data: NDArray[np.uint8], shape: tuple[int, ...], stored: "np.dtype[Any]"
) -> None:
    """Write little-endian bytes; the library turns them round where the file is big-endian."""
    from ckptshrink.io.hdf5_library import h5s

    if data.size:
        values = data.view(stored.newbyteorder("<")).reshape(shape)
        item.write(h5s.ALL, h5s.ALL, np.require(values, requirements=["C", "A"]))


def _write_all(out: Any, data: memoryview) -> None:
    while data:
        data = data[out.write(data) :]


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn the refusals of the operating system and of the library into one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise OutputError(f"can't be written: {reason}", path=path) from error
    except RuntimeError as error:
        raise OutputError(f"can't be written: HDF5: {one_line(error)}", path=path) from error
