"""The dense tensors of an artefact, from its files and its manifest alone."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ckptshrink.errors import ManifestMismatchError
from ckptshrink.gates import GateLayout, GateMatrix, Part
from ckptshrink.io.files import SourceFile
from ckptshrink.io.safetensors_file import open_safetensors
from ckptshrink.linalg.factors import dense_from
from ckptshrink.manifest import Manifest, TensorRecord
from ckptshrink.payload import TORCH_DTYPES, to_bytes, to_tensor
from ckptshrink.stored import blocks_of
from ckptshrink.tensors import TensorRef, nbytes_of


def matrix_of(record: TensorRecord) -> GateMatrix:
    """Return the gate matrix that a manifest's row is about."""
    layout = record.layout
    part = record.part
    return GateMatrix(
        role=record.role or "linear",
        source=record.tensor,
        shape=(record.shape[0], record.shape[1]),
        layer=record.layer,
        direction=record.direction,
        layout=GateLayout(**layout.model_dump(exclude={"cell"})) if layout else GateLayout(),
        part=Part(**part.model_dump()) if part else None,
        cell=layout.cell if layout else "",
    )


class Rebuilt:
    """An artefact as a dense checkpoint: a tensor at a time, multiplied back where it was factored.

    Parameters
    ----------
    artefact : Path
        The folder.
    manifest : Manifest
        Its manifest, already checked.
    """

    def __init__(self, artefact: Path, manifest: Manifest) -> None:
        self._artefact = artefact
        self._files = {record.path: record for record in manifest.files}
        self._reader = open_safetensors(artefact)
        self._stored = self._reader.checkpoint.tensors
        self._rows: dict[str, list[TensorRecord]] = {}
        for record in manifest.tensors:
            self._rows.setdefault(record.tensor, []).append(record)
        self.tensors: Mapping[str, TensorRef] = {
            name: self._ref(name, rows)
            for name, rows in self._rows.items()
            if rows[0].action != "drop"
        }

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the dense payload of a tensor, in order."""
        owner = self._owner(name)
        rows = self._rows[owner]
        if all(row.stored_as == (owner,) for row in rows):
            yield from self._reader.chunks(owner)
        else:
            yield to_bytes(self.dense(owner)).data

    def dense(self, name: str) -> Tensor:
        """Return the dense values of a tensor, on the CPU, in its source's dtype."""
        owner = self._owner(name)
        rows = self._rows[owner]
        ref = self.tensors[owner]
        if all(row.stored_as == (owner,) for row in rows):
            return self.stored(owner)
        whole = torch.empty(ref.shape, dtype=TORCH_DTYPES[ref.dtype])
        for row in rows:
            matrix = matrix_of(row)
            view = whole if matrix.part is None else whole[matrix.part.slices]
            view.copy_(self.matrix(row))
        return whole

    def matrix(self, row: TensorRecord) -> Tensor:
        """Return the dense values of one row's matrix, in its source's dtype."""
        matrix = matrix_of(row)
        if row.action != "factorize":
            stored = self.stored(row.stored_as[0])
            # a tensor of which no part is compressed is stored whole, under its own name
            whole = row.stored_as == (row.tensor,) and matrix.part is not None
            return stored[matrix.part.slices] if whole and matrix.part is not None else stored
        blocks = blocks_of(matrix, row.grouping or "stacked")
        if len(blocks) == 1:
            return self._block(row, blocks[0][0], matrix.shape)
        dense = torch.empty(matrix.shape, dtype=TORCH_DTYPES[row.dtype])
        for stem, part, shape in blocks:
            view = dense if part is None else dense[part.slices]
            view.copy_(self._block(row, stem, shape))
        return dense

    def _block(self, row: TensorRecord, stem: str, shape: tuple[int, int]) -> Tensor:
        names = {n.rpartition(".")[2]: n for n in row.stored_as if n.rpartition(".")[0] == stem}
        factors = {f".{suffix}": self.stored(n) for suffix, n in names.items()}
        return dense_from(factors, shape, TORCH_DTYPES[row.dtype])

    def stored(self, name: str) -> Tensor:
        """Return a tensor of the artefact's files, as stored."""
        if name not in self._stored:
            raise ManifestMismatchError(
                "is named by the manifest and not in its files", tensor=name
            )
        ref = self._stored[name]
        return to_tensor(self._reader.read(name), ref.shape, ref.dtype)

    def carried(self, place: str) -> SourceFile:
        """Open a file that the artefact carries, by its place in it.

        Raises
        ------
        ManifestMismatchError
            It is not among the manifest's files, or not the one that is.
        """
        path = self._artefact / place
        record = self._files.get(place)
        if record is None or not path.is_file():
            raise ManifestMismatchError("is missing", path=path)
        file = SourceFile(path)
        sha = hashlib.sha256()
        for chunk in file.chunks(0, file.size):
            sha.update(chunk)
        if sha.hexdigest() != record.sha256:
            file.close()
            raise ManifestMismatchError("its content was changed", path=path)
        return file

    def close(self) -> None:
        """Close the files."""
        self._reader.close()

    def _owner(self, name: str) -> str:
        row = self._rows[name][0]
        return self._owner(row.of) if row.of is not None else name

    def _ref(self, name: str, rows: list[TensorRecord]) -> TensorRef:
        first = rows[0]
        shape = first.shape
        if first.part is not None:
            axis = first.part.axis
            length = max(row.part.stop for row in rows if row.part is not None)
            shape = (length, shape[1]) if axis == 0 else (shape[0], length)
        tied = first.of if first.action == "tied" else None
        return TensorRef(name, shape, first.dtype, nbytes_of(shape, first.dtype), "", tied)
