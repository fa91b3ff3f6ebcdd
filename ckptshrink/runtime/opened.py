"""A checkpoint or an artefact, opened as weights: pairs where it was factored, tensors elsewhere.

Both look the same from here: names are the source's, and a matrix is asked for in the orientation
W (m, n) of ``y = W x``, however it is stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

from ckptshrink.errors import LayoutError
from ckptshrink.export.rebuilt import Rebuilt, matrix_of
from ckptshrink.gates import GateMatrix
from ckptshrink.io.staging import MANIFEST
from ckptshrink.linalg.factors import Factors, from_tensors
from ckptshrink.manifest import Manifest, TensorRecord, read_manifest
from ckptshrink.matrices import MatrixSource
from ckptshrink.planning.opened import open_source
from ckptshrink.runtime.weights import LowRank, PerGate, Weight
from ckptshrink.stored import blocks_of


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an opened checkpoint without its values.

    Attributes
    ----------
    path : Path
    family : str
        As `recognise` names it.
    manifest : Manifest or None
        None for a source checkpoint.
    matrices : tuple of GateMatrix
        Every recognised matrix, in stored order.
    shapes : mapping of str to tuple of int
        Of every tensor of the model, by the source's names, repeated names too.
    tied : mapping of str to str
        Names that repeat another tensor, and that tensor.
    sidecars : mapping of str to Path
        Files beside the weights, by name: ``options.json`` of an ELMo.
    container : mapping
        What `restore` knows of the source's container.
    """

    path: Path
    family: str
    manifest: Manifest | None
    matrices: tuple[GateMatrix, ...]
    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]
    sidecars: Mapping[str, Path]
    container: Mapping[str, Any]

    def owner(self, name: str) -> str:
        """Return the name under which the values of a tensor are stored, past every tie."""
        seen = {name}
        while (following := self.tied.get(name, name)) not in seen:
            name = following
            seen.add(name)
        return name


class _Values(Protocol):
    def dense(self, name: str) -> Tensor: ...
    def weight(self, matrix: GateMatrix) -> Weight: ...
    def close(self) -> None: ...


class Opened:
    """A source checkpoint or an artefact folder, opened for reading; a context manager.

    Parameters
    ----------
    path : Path
        An artefact's folder, or anything that `open_checkpoint` reads.

    Raises
    ------
    CheckpointError, ManifestMismatchError
        It can't be read.
    """

    def __init__(self, path: Path) -> None:
        self._values: _Values
        if (path / MANIFEST).is_file():
            self._values = _Artefact(path)
        else:
            self._values = _Source(path)
        self.facts: Facts = self._values.facts

    def __enter__(self) -> "Opened":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        self._values.close()

    def tensor(self, name: str) -> Tensor:
        """Return the dense values of a tensor, multiplied back where it is factored.

        Raises
        ------
        LayoutError
            There is no such tensor.
        """
        if name not in self.facts.shapes:
            raise LayoutError("is not in the checkpoint", path=self.facts.path, tensor=name)
        return self._values.dense(self.facts.tied.get(name, name))

    def weight(self, matrix: GateMatrix) -> Weight:
        """Return a matrix as W (m, n): a pair, one pair a gate, or a dense tensor.

        Pruned matrices come dense. Tensors are new, contiguous and on the CPU.
        """
        return self._values.weight(matrix)

    def matrix(
        self, role: str, *, layer: int | None = None, direction: str | None = None
    ) -> GateMatrix:
        """Return the one matrix of a role.

        Raises
        ------
        LayoutError
            There is none, or more than one.
        """
        found = [
            m
            for m in self.facts.matrices
            if m.role == role
            and (layer is None or m.layer == layer)
            and (direction is None or m.direction == direction)
        ]
        if len(found) != 1:
            where = " ".join(
                [role, *([f"layer {layer}"] if layer is not None else []), direction or ""]
            ).strip()
            raise LayoutError(f"has {len(found)} matrices for {where}", path=self.facts.path)
        return found[0]


class _Source:
    def __init__(self, path: Path) -> None:
        self._reader, recognition = open_source(path)
        self._source = MatrixSource(self._reader)
        checkpoint = self._reader.checkpoint
        dropped = recognition.dropped
        self.facts = Facts(
            path=path,
            family=recognition.family,
            manifest=None,
            matrices=recognition.matrices,
            shapes={n: ref.shape for n, ref in checkpoint.tensors.items() if n not in dropped},
            tied={**recognition.copies, **recognition.aliases},
            sidecars={p.name: p for p in checkpoint.sidecars},
            container=checkpoint.container,
        )

    def dense(self, name: str) -> Tensor:
        return self._source.tensor(name).clone()

    def weight(self, matrix: GateMatrix) -> Weight:
        return _upright(self._source.matrix(matrix), matrix).clone(
            memory_format=torch.contiguous_format
        )

    def close(self) -> None:
        self._reader.close()


class _Artefact:
    def __init__(self, path: Path) -> None:
        manifest = read_manifest(path)
        self._rebuilt = Rebuilt(path, manifest)
        self._rows: dict[str, TensorRecord] = {row.name: row for row in manifest.tensors}
        kept = [row for row in manifest.tensors if row.action != "drop"]
        self.facts = Facts(
            path=path,
            family=manifest.source.family,
            manifest=manifest,
            matrices=tuple(matrix_of(row) for row in kept if row.role and row.of is None),
            shapes={name: ref.shape for name, ref in self._rebuilt.tensors.items()},
            tied={row.name: row.of for row in kept if row.of is not None},
            sidecars={n: path / Path(n).name for n in manifest.source.sidecars},
            container=manifest.container,
        )

    def dense(self, name: str) -> Tensor:
        return self._rebuilt.dense(name)

    def weight(self, matrix: GateMatrix) -> Weight:
        row = self._rows[matrix.key]
        if row.action != "factorize" or row.method == "prune":
            return _upright(self._rebuilt.matrix(row), matrix).contiguous()
        pairs: dict[str, LowRank] = {}
        for stem, _, shape in blocks_of(matrix, row.grouping or "stacked"):
            stored = {
                name.removeprefix(stem): self._rebuilt.stored(name)
                for name in row.stored_as
                if name in (f"{stem}.U", f"{stem}.V")
            }
            factors = from_tensors(stored, shape)
            if isinstance(factors, Factors):
                pairs[stem.removeprefix(matrix.key).removeprefix(".")] = _pair(factors, matrix)
        return pairs[""] if "" in pairs else PerGate(pairs)

    def close(self) -> None:
        self._rebuilt.close()


def _upright(stored: Tensor, matrix: GateMatrix) -> Tensor:
    return stored.T if matrix.layout.transposed else stored


def _pair(factors: Factors, matrix: GateMatrix) -> LowRank:
    U, V = factors.U, factors.V
    if matrix.layout.transposed:
        U, V = V.T, U.T
    return LowRank(U.contiguous(), V.contiguous())
