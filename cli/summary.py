"""What `compress` says at its end: what got smaller, what stayed and why, the worst error."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptshrink_cli import render
from ckptshrink_cli.paths import nbytes_on_disk, shell

if TYPE_CHECKING:
    from ckptshrink.manifest import Manifest, TensorRecord
    from ckptshrink.rewrite import Result


@dataclass(frozen=True, slots=True)
class Summary:
    """A compression, summed up.

    Attributes
    ----------
    nbytes_before, nbytes_after : int
        Of the files: as they were read, and as they lie on the disk now, manifest and all.
    """

    source: Path
    out: Path
    dense: bool
    nbytes_before: int
    nbytes_after: int
    manifest: "Manifest"

    @classmethod
    def of(cls, result: "Result", source: Path, out: Path, *, dense: bool) -> "Summary":
        """Sum up a result; `source` and `out` are the paths as the user wrote them."""
        manifest = result.manifest
        return cls(source, out, dense, manifest.source.nbytes, nbytes_on_disk(result.out), manifest)

    @property
    def factorized(self) -> "list[TensorRecord]":
        """Matrices that were factorized."""
        return [row for row in self.manifest.tensors if row.action == "factorize"]

    @property
    def stayed(self) -> "dict[str, list[TensorRecord]]":
        """Matrices that stayed as they were, by reason."""
        kept = (row for row in self.manifest.tensors if row.action == "keep" and row.role)
        return _by_reason(kept)

    @property
    def left_out(self) -> "dict[str, list[TensorRecord]]":
        """Tensors of the source that are no part of the model and weren't stored, by reason."""
        return _by_reason(row for row in self.manifest.tensors if row.action == "drop")

    @property
    def worst(self) -> "TensorRecord | None":
        """The matrix with the largest relative error."""
        return max(self.factorized, key=lambda row: row.rel_error or 0.0, default=None)

    @property
    def next_command(self) -> str:
        """What to type next."""
        if self.dense:
            return f"ckptshrink inspect {shell(self.out)}"
        return f"ckptshrink verify {shell(self.out)} --source {shell(self.source)}"

    def document(self) -> dict[str, Any]:
        """Return the summary as a JSON value."""
        totals, worst = self.manifest.totals, self.worst
        return {
            "out": str(self.out),
            "format": "dense" if self.dense else "factored",
            "nbytes_before": self.nbytes_before,
            "nbytes_after": self.nbytes_after,
            "n_params_before": totals.n_params_before,
            "n_params_after": totals.n_params_after,
            "factorized": [row.name for row in self.factorized],
            "stayed": [
                {"reason": reason, "names": [row.name for row in rows]}
                for reason, rows in self.stayed.items()
            ],
            "worst": {"name": worst.name, "rel_error": worst.rel_error} if worst else None,
            "notes": list(self.manifest.source.notes),
            "next": self.next_command,
            "manifest": json.loads(self.manifest.to_bytes()),
        }

    def lines(self) -> Iterator[str]:
        """Yield the summary as lines of text."""
        before, after = self.nbytes_before, self.nbytes_after
        yield f"wrote {self.out}"
        yield f"size        {_change(before, after, ' bytes')}"
        if after >= before:
            yield f"            it did not get smaller: {self._why_not()}"
        yield from self._dense_fates() if self.dense else self._fates()
        if self.worst is not None:
            yield f"worst error {render.error(self.worst.rel_error)} at {self.worst.name}"
        notes = (*self.manifest.source.notes, *self._notes())
        yield from (f"note        {note}" for note in render.first_of(notes))
        yield f"next        {self.next_command}"

    def _dense_fates(self) -> Iterator[str]:
        totals = self.manifest.totals
        yield (
            f"parameters  {render.count(totals.n_params_before)} as before; as factors they would "
            f"be {render.count(totals.n_params_after)}"
        )
        yield f"compressed  {_matrices(self.factorized)}, and multiplied back"
        yield from self._stayed()

    def _fates(self) -> Iterator[str]:
        totals = self.manifest.totals
        yield f"parameters  {_change(totals.n_params_before, totals.n_params_after)}"
        smaller = [row for row in self.factorized if row.nbytes_after < row.nbytes_before]
        yield f"smaller     {_matrices(smaller)}"
        larger = [row for row in self.factorized if row.nbytes_after >= row.nbytes_before]
        if larger:
            yield f"not smaller {_matrices(larger)}, factorized because of --allow-inflate"
        yield from self._stayed()
        for reason, rows in self.left_out.items():
            nbytes = sum(row.nbytes_before for row in rows)
            yield f"left out    {len(rows)} tensors, {render.count(nbytes)} bytes: {reason}"

    def _stayed(self) -> Iterator[str]:
        for reason, rows in self.stayed.items():
            yield f"stayed      {_matrices(rows)}: {reason}"

    def _why_not(self) -> str:
        if self.dense:
            return "--format dense keeps every shape; the default format is the smaller one"
        return (
            "its factors take as much room as its matrices; ask for a smaller rank or more targets"
        )

    def _notes(self) -> Iterator[str]:
        """Yield what the factorizers said, each once, with the first matrix of which it holds."""
        said: dict[str, str] = {}
        for row in self.manifest.tensors:
            for note in row.notes:
                said.setdefault(note, row.name)
        yield from (f"{name}: {note}" for note, name in said.items())


def _by_reason(rows: "Iterable[TensorRecord]") -> "dict[str, list[TensorRecord]]":
    found: dict[str, list[TensorRecord]] = {}
    for row in rows:
        found.setdefault(row.reason, []).append(row)
    return found


def _change(before: int, after: int, unit: str = "") -> str:
    if before == after:
        return f"{render.count(before)}{unit} as before"
    share = render.ratio(before, after)
    return f"{render.count(before)} → {render.count(after)}{unit} ({share} of what it was)"


def _matrices(rows: "list[TensorRecord]") -> str:
    """Return how many matrices, and which where they are few."""
    named = f" ({', '.join(row.name for row in rows)})" if 1 <= len(rows) <= 2 else ""
    return f"{len(rows)} {'matrix' if len(rows) == 1 else 'matrices'}{named}"
