"""Checkpoints that torch wrote, read without torch and without running anything in them."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ckptshrink.digest import CHUNK
from ckptshrink.errors import UnsafeCheckpointError
from ckptshrink.io.checkpoint import Checkpoint
from ckptshrink.io.files import SourceFile
from ckptshrink.io.torch_container import Container, open_container
from ckptshrink.io.torch_copies import copies_of_weights, shared_with
from ckptshrink.io.torch_graph import Graph, read_graph
from ckptshrink.io.torch_records import is_script_object
from ckptshrink.io.torch_script import read_program
from ckptshrink.io.torch_tensors import StoredView, TensorTable
from ckptshrink.tensors import ITEMSIZE, TensorRef

_FLOOR: Final = 64 << 20
_VIEW_RATIO: Final = 4
_TOTAL_RATIO: Final = 16


class TorchReader:
    """An opened checkpoint of torch.save.

    Attributes
    ----------
    checkpoint : Checkpoint
    container : Container
    views : mapping of str to StoredView
        Where each tensor lies, by name.
    file : SourceFile
    """

    def __init__(
        self, checkpoint: Checkpoint, container: Container, graph: Graph, file: SourceFile
    ) -> None:
        self.checkpoint = checkpoint
        self.container = container
        self.views = graph.views
        self.file = file

    def read(self, name: str) -> NDArray[np.uint8]:
        """Return the payload of a tensor: a new, writable array of ``nbytes`` bytes.

        Raises
        ------
        CorruptCheckpointError
            Its storage has another checksum, or the file was cut short.
        """
        view = self.views[name]
        if view.contiguous:
            return self.container.read(view.key, view.start, view.nbytes)
        span = self.container.read(view.key, view.start, view.span)
        elements = elements_of(view, span, 0)
        return np.ascontiguousarray(elements).reshape(-1).view(np.uint8)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the payload of a tensor in order, each part valid until the next is asked for."""
        view = self.views[name]
        if view.contiguous:
            yield from self.container.chunks(view.key, view.start, view.nbytes)
        else:
            data = self.read(name).data
            yield from (data[i : i + CHUNK] for i in range(0, view.nbytes, CHUNK))

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def open_torch(path: Path) -> TorchReader:
    """Open a checkpoint of torch.save: a state dict, whole modules, or dicts and lists of them.

    Parameters
    ----------
    path : Path
        A file in the zip container (torch 1.4 and later), the legacy one (0.1.10 to 1.5) or the tar
        container (0.1 to 0.1.9), or a TorchScript archive (1.3 and later).

    Raises
    ------
    CheckpointError
        The file can't be read, holds no tensors, or one without values of its own.
    UnknownFormatError
        It is not of torch.
    CorruptCheckpointError
        Headers, sizes or offsets disagree, or two tensors have one name.
    UnsafeCheckpointError
        It would take resources out of proportion to its size.
    """
    return open_torch_file(SourceFile(path))


def open_torch_file(file: SourceFile) -> TorchReader:
    """Open a checkpoint of torch.save that is a file, or a window of one; see `open_torch`.

    Parameters
    ----------
    file : SourceFile
        Closed with the reader, or with an error.
    """
    with ExitStack() as opened:
        opened.callback(file.close)
        path = file.path
        container = open_container(file)
        table = container.table()
        root = container.pickled.value
        graph = (
            read_program(root, container.constants, table, path)
            if is_script_object(root)
            else read_graph(root, table, path)
        )
        container.locate(table.storages)
        checkpoint = _checkpoint(path, container, graph)
        _check_proportion(checkpoint, graph, table, file)
        opened.pop_all()
        return TorchReader(checkpoint, container, graph, file)


def elements_of(view: StoredView, data: NDArray[np.uint8], start: int) -> NDArray[np.generic]:
    """Return a tensor's elements as an array on the bytes of its storage.

    Parameters
    ----------
    view : StoredView
    data : (n,), uint8
        Bytes of the storage, or a part of it that has all of the tensor.
    start : int
        Where in `data` the tensor's first element begins.

    Returns
    -------
    (shape), unsigned integers of the item size
        Shares memory with `data`.
    """
    itemsize = ITEMSIZE[view.dtype]
    dtype = np.dtype(f"u{itemsize}")
    if 0 in view.shape:
        return np.empty(view.shape, dtype)
    # Torch lets the stride of an axis of one element be anything, numpy checks it.
    steps = zip(view.shape, view.strides, strict=True)
    strides = tuple(0 if n == 1 else stride * itemsize for n, stride in steps)
    elements: NDArray[np.generic] = np.ndarray(view.shape, dtype, data.data, start, strides)
    return elements


def _checkpoint(path: Path, container: Container, graph: Graph) -> Checkpoint:
    shared = shared_with(graph.views)
    tensors = {
        name: TensorRef(name, view.shape, view.dtype, view.nbytes, path.name, shared.get(name))
        for name, view in graph.views.items()
    }
    return Checkpoint(
        root=path,
        format=container.format,
        tensors=tensors,
        files=(path,),
        container=graph.container,
        copies=copies_of_weights(graph.views, shared, graph.flat_names),
        notes=(*graph.notes, *container.notes),
    )


def _check_proportion(
    checkpoint: Checkpoint, graph: Graph, table: TensorTable, file: SourceFile
) -> None:
    """Refuse views that are far larger than what is stored: 624 bytes can make 4 TiB."""
    stored = sum(nbytes for nbytes, _ in table.storages.values())
    total = 0
    for name, view in graph.views.items():
        if view.nbytes > max(table.storages[view.key][0], _FLOOR, _VIEW_RATIO * file.size):
            raise UnsafeCheckpointError(
                f"has {view.nbytes:,} bytes, and its storage {table.storages[view.key][0]:,}",
                path=file.path,
                tensor=name,
                hint="save it from torch as tensor.clone()",
            )
        if checkpoint.tensors[name].shares_with is None:
            total += view.nbytes
    if total > max(_FLOOR, _TOTAL_RATIO * stored):
        raise UnsafeCheckpointError(
            f"its tensors have {total:,} bytes, and its storages {stored:,}", path=file.path
        )
