"""From what a run found out to its manifest."""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from ckptshrink.card import model_card
from ckptshrink.errors import printable
from ckptshrink.export.factored import Outcome
from ckptshrink.gates import GateLayout, GateMatrix
from ckptshrink.io.checkpoint import Checkpoint
from ckptshrink.io.staged_file import StagedRecord
from ckptshrink.io.staging import MANIFEST, Staging
from ckptshrink.manifest import (
    FileRecord,
    LayoutRecord,
    Manifest,
    PartRecord,
    Source,
    TensorRecord,
    Tied,
    Tool,
    Totals,
    job_key_of,
)
from ckptshrink.plan import Plan, PlanItem
from ckptshrink.version import __version__


def source_record(
    checkpoint: Checkpoint, family: str, files: Sequence[FileRecord], notes: Sequence[str]
) -> Source:
    """Return what the manifest says of the source. Several files are hashed as their hashes."""
    whole = hashlib.sha256("".join(f.sha256 for f in files).encode()).hexdigest()
    return Source(
        file=printable(checkpoint.root.name),
        format=checkpoint.format,
        family=family,
        nbytes=sum(f.nbytes for f in files),
        sha256=files[0].sha256 if len(files) == 1 else whole,
        files=tuple(files),
        sidecars=tuple(printable(p.name) for p in checkpoint.sidecars),
        notes=tuple(notes),
    )


def tool_record(threads: int, device: str) -> Tool:
    """Return what the manifest says of this program and what it runs on."""
    names = ("torch", "numpy", "safetensors", "h5py")
    libraries = {name: version(name) for name in names} | {"python": platform.python_version()}
    return Tool(
        name="ckptshrink", version=__version__, threads=threads, device=device, libraries=libraries
    )


@dataclass(frozen=True, slots=True)
class Facts:
    """What a run found out, from which its manifest is made.

    Attributes
    ----------
    configuration : str
        Hash of what a batch job was asked for; empty of a run that is no such job.
    """

    checkpoint: Checkpoint
    plan: Plan
    matrices: Mapping[str, GateMatrix]
    outcomes: Mapping[str, Outcome]
    source: Source
    tool: Tool
    configuration: str = ""

    def write(self, staging: Staging) -> Manifest:
        """Write carried files, model card and manifest beside the tensors; return the manifest."""
        for place, file in self.checkpoint.carried.items():
            out = staging.create(place)
            for chunk in file.chunks(0, file.size):
                out.write(chunk)
        files = staging.finish()
        card = staging.create("README.md")
        card.write(model_card(self.manifest(files)).encode())
        manifest = self.manifest((*files, *staging.finish()))
        staging.create(MANIFEST).write(manifest.to_bytes())
        return manifest

    def manifest(self, files: Sequence[StagedRecord]) -> Manifest:
        """Return the manifest of an artefact that has these files beside it."""
        rows = tuple(self._row(item) for item in self.plan.items)
        totals = self.plan.totals
        return Manifest(
            source=self.source,
            plan_digest=self.plan.decisions_sha256(),
            settings=self.plan.settings,
            seed=self.plan.settings.seed,
            totals=Totals(
                n_params_before=totals["n_params_before"],
                n_params_after=totals["n_params_after"],
                nbytes_before=self.source.nbytes,
                nbytes_after=sum(file.nbytes for file in files),
            ),
            files=tuple(FileRecord(path=f.path, nbytes=f.nbytes, sha256=f.sha256) for f in files),
            tensors=rows,
            tied=tuple(Tied(name=r.name, of=r.of) for r in rows if r.action == "tied" and r.of),
            container=dict(self.checkpoint.container),
            tool=self.tool,
            job_key=self._job_key(files),
        ).sealed()

    def _job_key(self, files: Sequence[StagedRecord]) -> str:
        if not self.configuration:
            return ""
        hashes = {file.path: file.sha256 for file in files}
        inputs = [(file.path, file.sha256) for file in self.source.files]
        inputs += [(name, hashes[name]) for name in self.source.sidecars if name in hashes]
        return job_key_of(inputs, self.configuration)

    def _row(self, item: PlanItem) -> TensorRecord:
        matrix, outcome = self.matrices.get(item.name), self.outcomes[item.name]
        tensor = matrix.source if matrix else item.name
        done: dict[str, Any] = {}
        if item.action == "factorize":
            done = {"method": item.method, "rank": item.rank, "grouping": item.grouping}
        return TensorRecord(
            name=item.name,
            tensor=tensor,
            part=_part(matrix),
            role=item.role,
            layer=item.layer,
            direction=matrix.direction if matrix else None,
            layout=_layout(matrix),
            shape=item.shape,
            dtype=self.checkpoint.tensors[tensor].dtype,
            action=item.action,
            rel_error=outcome.rel_error,
            n_params_before=item.n_params_before,
            n_params_after=item.n_params_after,
            nbytes_before=item.nbytes_before,
            nbytes_after=item.nbytes_after,
            stored_as=outcome.stored_as,
            of=item.of,
            reason=item.reason,
            notes=outcome.notes,
            **done,
        )


def _part(matrix: GateMatrix | None) -> PartRecord | None:
    if matrix is None or matrix.part is None:
        return None
    return PartRecord(axis=matrix.part.axis, start=matrix.part.start, stop=matrix.part.stop)


def _layout(matrix: GateMatrix | None) -> LayoutRecord | None:
    if matrix is None or (not matrix.cell and matrix.layout == GateLayout()):
        return None
    layout = matrix.layout
    return LayoutRecord(
        cell=matrix.cell, gates=layout.gates, axis=layout.axis, transposed=layout.transposed,
        joint_input=layout.joint_input, forget_bias=layout.forget_bias,
    )  # fmt: skip
