"""Safetensors checkpoints: one file, or shards with a Hugging Face index.

Tied tensors are stored twice in this format, and are not told from equal ones here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ckptshrink.errors import CorruptCheckpointError, ManifestMismatchError, OutputError
from ckptshrink.io.checkpoint import Checkpoint, Reader
from ckptshrink.io.files import SourceFile, source_errors
from ckptshrink.io.safetensors_header import (
    MAX_HEADER,
    FilePlan,
    Header,
    ShardFile,
    ShardPlan,
    index_bytes,
    parse_header,
    plan_file,
    plan_in_order,
    plan_shards,
)
from ckptshrink.io.safetensors_index import Index, file_of_folder, read_index
from ckptshrink.tensors import TensorRef

__all__ = [
    "FilePlan", "SafetensorsReader", "ShardFile", "ShardPlan", "Sink", "looks_like_header",
    "open_safetensors", "plan_file", "plan_shards", "read_header", "write_like", "write_new",
]  # fmt: skip


class Sink(Protocol):
    """What a file is written to: nothing but `write` is asked of it."""

    def write(self, data: memoryview, /) -> object:
        """Append bytes, which may change after the call."""
        ...


@dataclass(frozen=True, slots=True)
class _Shard:
    file: SourceFile
    header: Header


class SafetensorsReader:
    """An opened safetensors checkpoint; see `Reader`."""

    def __init__(self, checkpoint: Checkpoint, shards: Iterable[_Shard]) -> None:
        self.checkpoint = checkpoint
        self._shards = tuple(shards)
        self._spans = {
            span.name: (shard.file, span.start, span.stop - span.start)
            for shard in self._shards
            for span in shard.header.spans
        }

    def read(self, name: str) -> NDArray[np.uint8]:
        """Return the payload of a tensor: a new, writable array of ``nbytes`` bytes."""
        file, start, nbytes = self._spans[name]
        return file.read(start, nbytes)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the payload of a tensor in order, each part valid until the next is asked for."""
        file, start, nbytes = self._spans[name]
        return file.chunks(start, nbytes)

    def close(self) -> None:
        """Close the files."""
        for shard in self._shards:
            shard.file.close()


def open_safetensors(path: Path) -> SafetensorsReader:
    """Open a safetensors checkpoint.

    Parameters
    ----------
    path : Path
        A file, an index with its shards beside it, or a folder that holds ``model.safetensors`` or
        one index.

    Raises
    ------
    CheckpointError
        A file is missing or can't be read.
    UnknownFormatError
        It is no safetensors file, no index of shards, and no folder with one of them.
    CorruptCheckpointError
        A header is not well-formed, or index and shards disagree.
    UnsafeCheckpointError
        The index names a file outside its folder.
    """
    with source_errors(path):
        is_folder = path.is_dir()
    target = file_of_folder(path) if is_folder else path
    with ExitStack() as opened:
        first = opened.enter_context(closing(SourceFile(target)))
        if looks_like_header(bytes(first.read(0, min(first.size, 9)))):
            shards = {_as_text(target): _Shard(first, read_header(first))}
            checkpoint = _checkpoint(target, shards, None)
        else:
            index = read_index(first)
            shards = {}
            for name, shard_path in index.shard_paths().items():
                file = opened.enter_context(closing(SourceFile(shard_path)))
                shards[name] = _Shard(file, read_header(file))
            index.check_held((s.name, f) for f, shard in shards.items() for s in shard.header.spans)
            checkpoint = _checkpoint(target.parent, shards, index)
            first.close()
        opened.pop_all()  # all is well: the reader has them now
    return SafetensorsReader(checkpoint, shards.values())


def looks_like_header(start: bytes) -> bool:
    """Tell whether a file's first nine bytes are a plausible length field and the header's ``{``.

    A space in place of the ``{`` counts, so that it is refused by name and not as unknown.
    """
    size = int.from_bytes(start[:8], "little")
    return len(start) >= 8 and 2 <= size <= MAX_HEADER and start[8:9] in {b"{", b" ", b""}


def read_header(file: SourceFile) -> Header:
    """Read and check the header of an opened file.

    Raises
    ------
    CorruptCheckpointError
        The file is no well-formed safetensors file.
    """
    if file.size < 8:
        raise CorruptCheckpointError(
            f"has {file.size} bytes, too few for a safetensors header", path=file.path
        )
    size = int.from_bytes(bytes(file.read(0, 8)), "little")
    if size > MAX_HEADER:
        raise CorruptCheckpointError(
            f"is no safetensors file: its header would take {size} bytes, and {MAX_HEADER} is the "
            "most",
            path=file.path,
        )
    if size > file.size - 8:
        raise CorruptCheckpointError(
            f"announces a header of {size} bytes, and {file.size - 8} follow",
            path=file.path,
            hint="the file was cut short: get it again",
        )
    return parse_header(bytes(file.read(8, size)), file.size - 8 - size, file.path)


def write_new(
    container: Mapping[str, Any],
    tensors: Mapping[str, TensorRef],
    payload: Callable[[str], Iterable[memoryview]],
    create: Callable[[str], Sink],
) -> None:
    """Write the source's own file, or its shards and their index, from the recorded container.

    Parameters
    ----------
    container : mapping
        `Checkpoint.container` of the source.
    tensors : mapping of str to TensorRef
        The source's tensors.
    payload : callable
        Returns the bytes of a tensor in parts; asked once for each, in stored order.
    create : callable
        Opens the file of that relative name.

    Raises
    ------
    OutputError
        A payload has the wrong size.
    ManifestMismatchError
        The record is not one of this module, or names a tensor that is not there.
    """
    plans, index = _recorded(container, tensors)
    for file, plan in plans.items():
        _write_file(create(file), plan, payload)
    if index is not None:
        create(index[0]).write(memoryview(index[1]))


def write_like(
    reader: Reader,
    replaced: Mapping[str, Callable[[], NDArray[np.uint8]]],
    create: Callable[[str], Sink],
) -> None:
    """Copy a checkpoint with some payloads exchanged; every other byte is the source's.

    Parameters
    ----------
    reader : Reader
        What `open_safetensors` returned, or a view of it.
    replaced : mapping of str to callable
        Returns the new bytes of a tensor, of the size of the old; called once, in stored order.
    create : callable
        Opens the file of that relative name.

    Raises
    ------
    OutputError
        A name is not in the source, or a payload has the wrong size.
    """
    source = reader.checkpoint
    for name in replaced:
        if name not in source.tensors:
            raise OutputError("is to be replaced and is not in the source", tensor=name)

    def payload(name: str) -> Iterable[memoryview]:
        return [replaced[name]().data] if name in replaced else reader.chunks(name)

    paths = dict(zip(source.container["shards"], source.files, strict=False))
    for file, path in paths.items():
        with closing(SourceFile(path)) as opened:
            spans = read_header(opened).spans
            head = bytes(opened.read(0, spans[0].start if spans else opened.size))
            sizes = {span.name: span.stop - span.start for span in spans}
            plan = FilePlan(head, tuple(sizes), sizes, opened.size)
        _write_file(create(file), plan, payload)
    if source.container["index"] is not None:
        with closing(SourceFile(source.files[-1])) as opened:
            create(source.container["index"]["file"]).write(opened.read(0, opened.size).data)


def _write_file(out: Sink, plan: FilePlan, payload: Callable[[str], Iterable[memoryview]]) -> None:
    out.write(memoryview(plan.header))
    for name in plan.order:
        written = 0
        for chunk in payload(name):
            written += chunk.nbytes
            if chunk.nbytes:
                out.write(chunk)
        if written != plan.sizes[name]:
            raise OutputError(f"got {written} bytes for {plan.sizes[name]}", tensor=name)


def _recorded(
    container: Mapping[str, Any], tensors: Mapping[str, TensorRef]
) -> tuple[dict[str, FilePlan], tuple[str, bytes] | None]:
    """Return the files that a container record asks for, and the name and bytes of the index."""
    # The record comes out of a manifest, so it may be anything that JSON can say.
    try:
        shards, metadata, index = container["shards"], container["metadata"], container["index"]
        plans = {
            file: plan_in_order(
                [(name, tensors[name].shape, tensors[name].dtype) for name in names], metadata[file]
            )
            for file, names in shards.items()
        }
        if index is None:
            return plans, None
        weight_map = {name: file for file, names in shards.items() for name in names}
        return plans, (str(index["file"]), index_bytes(index["metadata"], weight_map))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ManifestMismatchError(
            f"the record of the source's container does not fit its tensors: {error!r:.200}"
        ) from error


def _checkpoint(root: Path, shards: Mapping[str, _Shard], index: Index | None) -> Checkpoint:
    files = [shard.file.path for shard in shards.values()]
    return Checkpoint(
        root=root,
        format="safetensors",
        tensors={
            span.name: TensorRef(span.name, span.shape, span.dtype, span.stop - span.start, file)
            for file, shard in shards.items()
            for span in shard.header.spans
        },
        files=tuple(files if index is None else [*files, index.path]),
        container={
            "shards": {f: [span.name for span in s.header.spans] for f, s in shards.items()},
            "metadata": {f: s.header.metadata for f, s in shards.items()},
            "index": None
            if index is None
            else {"file": _as_text(index.path), "metadata": index.metadata},
        },
    )


def _as_text(path: Path) -> str:
    """Return a file's name as text, which a manifest must hold: bytes that are none are escaped."""
    return path.name.encode("utf-8", "backslashreplace").decode()
