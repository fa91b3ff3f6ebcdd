"""AllenNLP's archives, model.tar.gz: the weights of torch.save beside configuration and vocabulary.

What else is in an archive is carried along, byte for byte: an artefact has it in the folder
`PLACE`, and the archive that is written again has it where it was.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from ckptshrink.digest import CHUNK
from ckptshrink.errors import ManifestMismatchError, UnknownFormatError, printable
from ckptshrink.io import torch_write
from ckptshrink.io.checkpoint import Reader
from ckptshrink.io.files import SourceFile
from ckptshrink.io.staging import Staging
from ckptshrink.io.tar_file import TarIndex, safe_name
from ckptshrink.io.tar_writer import TarWriter
from ckptshrink.io.torch_file import open_torch_file
from ckptshrink.tensors import TensorRef

WEIGHTS: Final = ("weights.th", "best.th")
"""Names that AllenNLP looks for, in this order."""

FORMAT: Final = "allennlp-archive"
PLACE: Final = "archive"
"""Folder of an artefact with what is in the archive beside the weights."""

Replaced = Mapping[str, Callable[[], NDArray[np.uint8]]]


class ArchiveReader:
    """An opened archive; see `open_archive`.

    Attributes
    ----------
    checkpoint : Checkpoint
    weights : TorchReader
    """

    def __init__(self, path: Path) -> None:
        with ExitStack() as opened:
            index = TarIndex(path)
            opened.callback(index.close)
            name = _weights_in(index)
            self.weights = open_torch_file(index.open(index.members[name]))
            opened.callback(self.weights.close)
            carried: dict[str, SourceFile] = {}
            for member in index.members.values():
                if not member.is_folder and member.name != name:
                    carried[f"{PLACE}/{member.name}"] = file = index.open(member)
                    opened.callback(file.close)
            archive = {
                "is_packed": index.is_packed,
                "weights": name,
                "members": [m.name + "/" * m.is_folder for m in index.members.values()],
            }
            inner = self.weights.checkpoint
            self.checkpoint = replace(
                inner,
                root=path,
                format=FORMAT,
                files=(path,),
                container={**inner.container, "archive": archive},
                carried=carried,
            )
            self._opened = opened.pop_all()

    def carried(self, place: str) -> SourceFile:
        """Return a carried file once more, to be closed apart from the archive."""
        file = self.checkpoint.carried[place]
        return file.window(0, file.size, file.path)

    def read(self, name: str) -> NDArray[np.uint8]:
        """Return the payload of a tensor: a new, writable array of ``nbytes`` bytes."""
        return self.weights.read(name)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the payload of a tensor in order, each part valid until the next is asked for."""
        return self.weights.chunks(name)

    def close(self) -> None:
        """Close the archive and what of it was opened."""
        self._opened.close()


def open_archive(path: Path) -> ArchiveReader:
    """Open an archive of AllenNLP; one that is packed is unpacked to a temporary file first.

    Parameters
    ----------
    path : Path
        A tar archive, packed by gzip or not.

    Raises
    ------
    UnknownFormatError
        There are no weights in it, or they are not of torch.save.
    CheckpointError, CorruptCheckpointError, UnsafeCheckpointError
        See `TarIndex` and `open_torch`.
    """
    return ArchiveReader(path)


def _weights_in(index: TarIndex) -> str:
    """Return the name of the weights that AllenNLP would load."""
    for name in WEIGHTS:
        member = index.members.get(name)
        if member is not None and not member.is_folder:
            return name
    hint = "tar xf: unpack it, and give the checkpoint inside"
    for name in index.members:
        if name.rpartition("/")[2] in WEIGHTS:
            hint += f", {printable(name):.200}"
            break
    raise UnknownFormatError(f"is a tar archive without {WEIGHTS[0]}", path=index.path, hint=hint)


def write_like(reader: Reader, replaced: Replaced, staging: Staging) -> None:
    """Copy an archive with the values of some tensors exchanged.

    Raises
    ------
    OutputError, CorruptCheckpointError
        See `torch_write.write_like`.
    """
    # opened anew, since the reader may be a view that gives other values
    with closing(open_archive(reader.checkpoint.root)) as source, staging.scratch() as weights:
        torch_write.copy_with(source.weights, replaced, weights)
        _write(source.checkpoint.container, source.carried, weights, staging)


def write_new(
    container: Mapping[str, Any],
    tensors: Mapping[str, TensorRef],
    payload: Callable[[str], Iterator[memoryview]],
    carried: Callable[[str], SourceFile],
    staging: Staging,
) -> tuple[str, ...]:
    """Write an archive from what was recorded of its source, see `torch_write.write_new`.

    Parameters
    ----------
    container : mapping
        Its ``"archive"`` says what the members are; the rest is that of the weights.
    carried : callable
        Opens a member by its place in the artefact.

    Raises
    ------
    ManifestMismatchError
        The record is malformed, or names what is not there.
    """
    with staging.scratch() as weights:
        left_out = torch_write.write_new(container, tensors, payload, weights)
        _write(container, carried, weights, staging)
    return left_out


def _write(
    container: Mapping[str, Any],
    carried: Callable[[str], SourceFile],
    weights: IO[bytes],
    staging: Staging,
) -> None:
    """Write an archive; `weights` is where a file was written, and stands at its end."""
    is_packed, weights_name, members = _record(container)
    archive = TarWriter(staging.create(staging.target.name), is_packed=is_packed)
    for name in members:
        if name.endswith("/"):
            archive.folder(name[:-1])
        elif name == weights_name:
            nbytes = weights.tell()
            weights.seek(0)
            archive.add(name, nbytes, iter(lambda: weights.read(CHUNK), b""))
        else:
            with closing(carried(f"{PLACE}/{name}")) as file:
                archive.add(name, file.size, file.chunks(0, file.size))
    archive.close()


def _record(container: Mapping[str, Any]) -> tuple[bool, str, list[str]]:
    """Return what a manifest says of an archive, believed no more than an archive is."""
    record = container.get("archive")
    match record:
        case {"is_packed": bool(is_packed), "weights": str(weights), "members": [*members]} if all(
            isinstance(name, str) and safe_name(name) == name.removesuffix("/") != ""
            for name in members
        ):
            if members.count(weights) == 1 and len(set(members)) == len(members):
                return is_packed, weights, members
    raise ManifestMismatchError("has no proper record of the archive it was made of")
