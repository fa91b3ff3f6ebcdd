"""What every reader offers: an index of tensors without payload, and payloads one at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ckptshrink.io.files import SourceFile
from ckptshrink.tensors import TensorRef


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An index of a saved checkpoint: names, shapes and dtypes, no payload.

    Attributes
    ----------
    root : Path
        The file, or the folder of a sharded checkpoint.
    format : str
        ``"torch-zip"``, ``"torch-legacy"``, ``"torch-tar"``, ``"torchscript"``,
        ``"torch-shards"``, ``"hdf5"``, ``"keras"``, ``"safetensors"`` or ``"allennlp-archive"``.
    tensors : mapping of str to TensorRef
        In stored order; in that of the model where a Keras file says it.
    files : tuple of Path
        Every file the tensors lie in, and a shard index if there is one.
    container : mapping
        JSON-able: what `restore` needs to write the same container again; keys are each format's.
    copies : mapping of str to str
        Tensors that repeat another one's values without sharing its storage: a dropout-masked or
        evaluated copy of a recurrent weight, by the name of the weight that wins.
    doubts : mapping of str to str
        Tensors that look recurrent and whose role the file itself leaves open, and why.
    sidecars : tuple of Path
        Files beside the checkpoint that the model needs (``options.json`` of an ELMo, configuration
        and tokenizer of a Hugging Face model).
    carried : mapping of str to SourceFile
        Files inside of the checkpoint that the model needs (configuration and vocabulary of an
        archive), by their place in an artefact. Closed with the reader.
    notes : tuple of str
        What a reader saw and a user should know, one line each.
    model_type : str or None
        The architecture that a ``config.json`` beside the weights names.
    """

    root: Path
    format: str
    tensors: Mapping[str, TensorRef]
    files: tuple[Path, ...]
    container: Mapping[str, Any] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    doubts: Mapping[str, str] = field(default_factory=dict)
    sidecars: tuple[Path, ...] = ()
    carried: Mapping[str, SourceFile] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    model_type: str | None = None

    @property
    def is_single(self) -> bool:
        """Whether the checkpoint is one file, and neither a folder nor shards."""
        return is_single(self.container, len(self.files))

    @property
    def nbytes(self) -> int:
        """Bytes of the checkpoint's files on disk, sidecars not counted."""
        return sum(path.stat().st_size for path in self.files)


def is_single(container: Mapping[str, Any], n_files: int) -> bool:
    """Tell from what was recorded of a checkpoint whether it was one file."""
    return n_files == 1 and container.get("folder") is None


class Reader(Protocol):
    """An opened checkpoint. Payloads are row-major, little-endian bytes in every format."""

    checkpoint: Checkpoint

    def read(self, name: str) -> NDArray[np.uint8]:
        """Return the payload of a tensor: a new, writable array of ``nbytes`` bytes."""
        ...

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the payload of a tensor in order, at most `digest.CHUNK` bytes at a time.

        A chunk is valid until the next one is asked for.
        """
        ...

    def close(self) -> None:
        """Close the files."""
        ...
