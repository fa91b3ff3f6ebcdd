"""Checkpoints in several files of torch.save with one index, as transformers writes them.

``pytorch_model.bin.index.json`` says which tensor is in which ``pytorch_model-00001-of-0000n.bin``.
Each shard is a state dict of its own, with pickle and storages, so that each has a `TorchReader`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckptshrink.errors import ManifestMismatchError, OutputError
from ckptshrink.io import torch_write
from ckptshrink.io.checkpoint import Checkpoint, Reader
from ckptshrink.io.files import SourceFile
from ckptshrink.io.safetensors_header import index_bytes
from ckptshrink.io.safetensors_index import Index, read_index
from ckptshrink.io.structure import tensors_in, without
from ckptshrink.io.torch_file import TorchReader, open_torch
from ckptshrink.io.torch_zip_writer import Sink
from ckptshrink.tensors import TensorRef

FORMAT: Final = "torch-shards"


class TorchShardsReader:
    """Opened shards of torch.save; see `Reader`."""

    def __init__(self, checkpoint: Checkpoint, shards: Mapping[str, TorchReader]) -> None:
        self.checkpoint = checkpoint
        self._shards = dict(shards)
        self._holder = {n: shard for shard in shards.values() for n in shard.checkpoint.tensors}

    def read(self, name: str) -> NDArray[np.uint8]:
        """Return the payload of a tensor: a new, writable array of ``nbytes`` bytes."""
        return self._holder[name].read(name)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the payload of a tensor in order, each part valid until the next is asked for."""
        return self._holder[name].chunks(name)

    def close(self) -> None:
        """Close the files."""
        for shard in self._shards.values():
            shard.close()


def open_torch_shards(path: Path) -> TorchShardsReader:
    """Open a sharded checkpoint by its index.

    Raises
    ------
    CheckpointError
        A file is missing or can't be read.
    CorruptCheckpointError
        The index, a shard, or what the one says of the other is wrong.
    UnsafeCheckpointError
        The index names a file outside its folder, or a shard is unsafe; see `open_torch`.
    """
    with closing(SourceFile(path)) as file:
        index = read_index(file)
    with ExitStack() as opened:
        shards: dict[str, TorchReader] = {}
        for name, shard_path in index.shard_paths().items():
            shards[name] = opened.enter_context(closing(open_torch(shard_path)))
        index.check_held((t, f) for f, shard in shards.items() for t in shard.checkpoint.tensors)
        opened.pop_all()  # all is well: the reader has them now
    return TorchShardsReader(_checkpoint(index, shards), shards)


def write_new(
    container: Mapping[str, Any],
    tensors: Mapping[str, TensorRef],
    payload: Callable[[str], Iterator[memoryview]],
    create: Callable[[str], Sink],
) -> tuple[str, ...]:
    """Write the shards and their index again, from the recorded container.

    Returns
    -------
    tuple of str
        What the shards held and can't be written, one line each.

    Raises
    ------
    ManifestMismatchError
        The record is not one of this module, or names a tensor that is not there.
    OutputError
        A payload has the wrong size.
    """
    try:
        shards = {str(name): dict(shard) for name, shard in container["shards"].items()}
        index_name, metadata = str(container["index"]["file"]), container["index"]["metadata"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ManifestMismatchError(
            f"the record of the source's shards is malformed: {error!r:.200}"
        ) from error
    left_out: list[str] = []
    weight_map: dict[str, str] = {}
    for name, shard in shards.items():
        named = list(tensors_in(shard.get("structure")))
        kept = {
            **shard,
            "structure": without(shard.get("structure"), {n for n in named if n not in tensors}),
        }
        weight_map |= {tensor: name for tensor in named if tensor in tensors}
        left_out += torch_write.write_new(kept, tensors, payload, create(name))
    create(index_name).write(memoryview(index_bytes(metadata, weight_map)))
    return tuple(left_out)


def write_like(
    reader: Reader,
    replaced: Mapping[str, Callable[[], NDArray[np.uint8]]],
    create: Callable[[str], Sink],
) -> None:
    """Copy shards and index with the values of some tensors exchanged.

    Raises
    ------
    OutputError, CorruptCheckpointError
        See `torch_write.write_like`.
    """
    source = reader.checkpoint
    for name in replaced:
        if name not in source.tensors:
            raise OutputError("is to be replaced and is not in the source", tensor=name)
    *paths, index = source.files
    for name, path in zip(source.container["shards"], paths, strict=True):
        of_shard = {t: new for t, new in replaced.items() if source.tensors[t].file == name}
        torch_write.copy_file(path, of_shard, create(name))
    with closing(SourceFile(index)) as file:
        create(source.container["index"]["file"]).write(file.read(0, file.size).data)


def _checkpoint(index: Index, shards: Mapping[str, TorchReader]) -> Checkpoint:
    tensors = {
        name: replace(ref, file=file)
        for file, shard in shards.items()
        for name, ref in shard.checkpoint.tensors.items()
    }
    notes = {note: None for shard in shards.values() for note in shard.checkpoint.notes}
    return Checkpoint(
        root=index.path.parent,
        format=FORMAT,
        tensors=tensors,
        files=(*(shard.checkpoint.files[0] for shard in shards.values()), index.path),
        container={
            "shards": {name: shard.checkpoint.container for name, shard in shards.items()},
            "index": {"file": index.path.name, "metadata": index.metadata},
        },
        copies={
            name: of for shard in shards.values() for name, of in shard.checkpoint.copies.items()
        },
        notes=tuple(notes),
    )
