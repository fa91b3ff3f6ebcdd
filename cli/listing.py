"""What `inspect` has to say about a checkpoint: a row for every tensor, and what they add up to."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ckptshrink.gates import ROLES, GateMatrix
from ckptshrink.tensors import FACTORABLE, TensorRef, nbytes_of

if TYPE_CHECKING:
    from ckptshrink.errors import LayoutError
    from ckptshrink.io.checkpoint import Checkpoint
    from ckptshrink.layouts import Recognition

FIELDS: Final = (
    "file", "name", "role", "layer", "direction", "shape", "dtype", "n_params", "nbytes", "cell",
    "gates", "note",
)  # fmt: skip
"""Keys of a row, in the order of the tab-separated columns."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A checkpoint as `inspect` shows it.

    Attributes
    ----------
    file : str
        The path as it was given.
    rows : tuple of mapping
        With the keys of `FIELDS`; a tensor that packs several matrices has a row for each.
    n_params_by_role : mapping of str to int
        Of the model alone: tied weights once, copies and optimizer state not at all. ``other`` is
        what is no matrix.
    unrecognised : tuple of (str, str)
        Tensors that look recurrent and fit no layout, and why.
    errors : tuple of LayoutError
        The same as errors.
    """

    file: str
    format: str
    family: str
    nbytes: int
    rows: tuple[Mapping[str, Any], ...]
    n_params_by_role: Mapping[str, int]
    sidecars: tuple[str, ...]
    notes: tuple[str, ...]
    unrecognised: tuple[tuple[str, str], ...]
    errors: "tuple[LayoutError, ...]"

    @property
    def n_params(self) -> int:
        """Parameters of the model."""
        return sum(self.n_params_by_role.values())

    def document(self) -> dict[str, Any]:
        """Return the listing as a JSON value."""
        return {
            "file": self.file,
            "format": self.format,
            "family": self.family,
            "nbytes": self.nbytes,
            "n_params": self.n_params,
            "n_params_by_role": dict(self.n_params_by_role),
            "sidecars": list(self.sidecars),
            "notes": list(self.notes),
            "tensors": [{k: v for k, v in row.items() if k != "file"} for row in self.rows],
            "unrecognised": [{"name": name, "note": why} for name, why in self.unrecognised],
        }


def list_checkpoint(path: Path) -> Listing:
    """Open a checkpoint and list it; reads no payload.

    Raises
    ------
    CheckpointError
        It can't be read.
    """
    from ckptshrink.io.detect import open_checkpoint
    from ckptshrink.layouts import fits_nothing, recognise

    with closing(open_checkpoint(path)) as reader:
        checkpoint = reader.checkpoint
        recognition = recognise(checkpoint, strict=False)
        rows = tuple({"file": str(path), **row} for row in _rows(checkpoint, recognition))
        return Listing(
            file=str(path),
            format=checkpoint.format,
            family=recognition.family,
            nbytes=checkpoint.nbytes,
            rows=rows,
            n_params_by_role=_by_role(checkpoint, recognition),
            sidecars=(*(path.name for path in checkpoint.sidecars), *checkpoint.carried),
            notes=(*checkpoint.notes, *recognition.notes),
            unrecognised=recognition.unrecognised,
            errors=tuple(
                fits_nothing(checkpoint.tensors[name], why, path)
                for name, why in recognition.unrecognised
            ),
        )


def _rows(checkpoint: "Checkpoint", recognition: "Recognition") -> Iterator[dict[str, Any]]:
    parts: dict[str, list[GateMatrix]] = {}
    for matrix in recognition.matrices:
        parts.setdefault(matrix.source, []).append(matrix)
    looks_recurrent = dict(recognition.unrecognised)
    for name, ref in checkpoint.tensors.items():
        for matrix in parts.get(name, ()):
            yield _matrix_row(matrix, ref)
        if name not in parts:
            yield {
                "name": name, "role": recognition.roles_of_aliases.get(name), "layer": None,
                "direction": None, "shape": ref.shape, "dtype": ref.dtype,
                "n_params": ref.n_params, "nbytes": ref.nbytes, "cell": "", "gates": "",
                "note": _note(ref, recognition, looks_recurrent),
            }  # fmt: skip


def _matrix_row(matrix: GateMatrix, ref: TensorRef) -> dict[str, Any]:
    note = ""
    if matrix.part is not None:
        run = "rows" if matrix.part.axis == 0 else "columns"
        note = f"{run} {matrix.part.start}:{matrix.part.stop} of the stored tensor"
    elif ref.dtype not in FACTORABLE:
        note = f"{ref.dtype} is not factorized"
    m, n = matrix.shape
    return {
        "name": matrix.key, "role": matrix.role, "layer": matrix.layer,
        "direction": matrix.direction, "shape": matrix.shape, "dtype": ref.dtype,
        "n_params": m * n, "nbytes": nbytes_of(matrix.shape, ref.dtype), "cell": matrix.cell,
        "gates": matrix.layout.gates, "note": note,
    }  # fmt: skip


def _note(ref: TensorRef, recognition: "Recognition", looks_recurrent: Mapping[str, str]) -> str:
    """Return why a tensor is no matrix of its own."""
    name = ref.name
    if name in recognition.dropped:
        return recognition.dropped[name]
    if name in recognition.kept:
        return recognition.kept[name]
    if name in recognition.aliases:
        return f"tied to {recognition.aliases[name]}"
    if name in recognition.copies:
        return f"copy of {recognition.copies[name]}"
    if name in looks_recurrent:
        return f"looks recurrent and fits no layout: {looks_recurrent[name]}"
    if len(ref.shape) != 2:
        return f"{len(ref.shape)}-D, no matrix"
    return "" if ref.dtype in FACTORABLE else f"{ref.dtype}, no weight"


def _by_role(checkpoint: "Checkpoint", recognition: "Recognition") -> dict[str, int]:
    matrices: dict[str, int] = {}
    for matrix in recognition.matrices:
        matrices[matrix.role] = matrices.get(matrix.role, 0) + matrix.shape[0] * matrix.shape[1]
    whole = {matrix.source for matrix in recognition.matrices}
    apart = {*recognition.dropped, *recognition.aliases, *recognition.copies, *whole}
    rest = sum(ref.n_params for name, ref in checkpoint.tensors.items() if name not in apart)
    found = {role: matrices[role] for role in ROLES if role in matrices}
    return {**found, "other": rest} if rest else found
