"""One checkpoint, start to finish: plan it, compress it, restore it. The story in order."""

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch

from ckptshrink.averages import averages_of, compare_averages
from ckptshrink.digest import CHUNK
from ckptshrink.errors import PlanError, printable
from ckptshrink.events import Listener, Progress, silent
from ckptshrink.export.dense import write_dense
from ckptshrink.export.factored import Outcome, write_factored
from ckptshrink.export.rebuilt import Rebuilt
from ckptshrink.gates import GateMatrix
from ckptshrink.io.checkpoint import Reader, is_single
from ckptshrink.io.containers import write_new
from ckptshrink.io.model_folder import copy_sidecars, recorded_sidecars
from ckptshrink.io.staging import Staging, check_target
from ckptshrink.manifest import FileRecord, Manifest, read_manifest
from ckptshrink.matrices import MatrixSource
from ckptshrink.payload import Compute
from ckptshrink.plan import Plan, PlanItem
from ckptshrink.planning.opened import open_source, plan_opened
from ckptshrink.planning.replan import replan
from ckptshrink.planning.request import Request
from ckptshrink.planning.targets import matrices_of
from ckptshrink.recording import Facts, source_record, tool_record

DEFAULT_SHARD_BYTES: Final = 5_000_000_000
"""Largest payload of one file of an artefact: the Hugging Face convention."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a compression came to.

    Attributes
    ----------
    out : Path
        The artefact's folder, or the dense checkpoint.
    manifest : Manifest
        Of the artefact; for a dense checkpoint the same facts, not written anywhere.
    """

    out: Path
    manifest: Manifest


def compress(
    path: Path,
    out: Path,
    request: Request | Plan,
    *,
    dense: bool = False,
    overwrite: bool = False,
    strict: bool = False,
    compute: Compute | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    configuration: str = "",
    listen: Listener = silent,
) -> Result:
    """Write a smaller checkpoint, and return its manifest.

    Parameters
    ----------
    path : Path
        The source: a file, an index of shards, or a folder of shards. Never written to.
    out : Path
        The artefact's folder to come; with `dense` the checkpoint to come.
    request : Request or Plan
        A plan is run as it is.
    dense : bool
        Whether to write the source's own container, with every compressed matrix multiplied back.
    configuration : str
        Hash of what a batch job was asked for, by which its manifest names it; see `job_key_of`.

    Raises
    ------
    CheckpointError, PlanError, OutputError
        Nothing half-written is left and the source is untouched, whatever the cause.
    """
    compute = compute or Compute()
    reader, recognition = open_source(path, use_averaged=request.settings.use_averaged)
    checkpoint = reader.checkpoint
    target = _Target(
        out,
        single=dense and checkpoint.is_single,
        overwrite=overwrite,
        inputs=(*checkpoint.files, *checkpoint.sidecars),
    )
    with closing(reader), compute.limits() as threads, ThreadPoolExecutor(1) as pool:
        target.check()
        stop = threading.Event()
        hashes: Callable[[], list[FileRecord]] = partial(_hash_files, checkpoint.files, stop)
        if compute.aside:  # made meanwhile, it also draws the file into the page cache
            hashes = pool.submit(hashes).result
        try:
            if isinstance(request, Plan):
                plan = replan(request, checkpoint, recognition)
            else:
                plan = plan_opened(
                    reader, recognition, request,
                    strict=strict, device=compute.device, threads=compute.threads, listen=listen,
                )  # fmt: skip
            matrices = matrices_of(plan, checkpoint, recognition)
            plan = _without_nonfinite(plan, matrices, reader)
            needed = checkpoint.nbytes if dense else plan.totals["nbytes_after"]
            with target.staging(needed, aside=compute.aside) as staging:
                run = _Run(reader, plan, matrices, staging, compute.resolve(), listen)
                outcomes = run.dense() if dense else run.factored(max_shard_bytes)
                if not staging.single:
                    copy_sidecars(checkpoint.sidecars, staging)
                listen(Progress("syncing and reading back", 1, 1))
                average = compare_averages(reader)
                notes = [*checkpoint.notes, *recognition.notes, *([average] if average else [])]
                source = source_record(checkpoint, recognition.family, hashes(), notes)
                tool = tool_record(threads, run.device.type)
                facts = Facts(checkpoint, plan, matrices, outcomes, source, tool, configuration)
                manifest = facts.manifest(staging.finish()) if dense else facts.write(staging)
                staging.commit()
        finally:
            stop.set()
    return Result(staging.target, manifest)


@dataclass(frozen=True, slots=True)
class _Target:
    """Where the output is to appear, and what it may not be."""

    out: Path
    single: bool
    overwrite: bool
    inputs: tuple[Path, ...]

    def check(self) -> None:
        check_target(self.out, single=self.single, overwrite=self.overwrite, inputs=self.inputs)

    def staging(self, needed: int, *, aside: bool) -> Staging:
        return Staging(
            self.out, single=self.single, overwrite=self.overwrite, inputs=self.inputs,
            needed=needed, aside=aside,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Run:
    """A plan about to be run."""

    reader: Reader
    plan: Plan
    matrices: Mapping[str, GateMatrix]
    staging: Staging
    device: torch.device
    listen: Listener

    def dense(self) -> dict[str, Outcome]:
        averages = averages_of(self.reader.checkpoint)
        return write_dense(
            self.reader, self.plan, self.matrices, averages, self.staging,
            device=self.device, listen=self.listen,
        )  # fmt: skip

    def factored(self, max_shard_bytes: int) -> dict[str, Outcome]:
        return write_factored(
            self.reader, self.plan, self.matrices, self.staging,
            device=self.device, max_shard_bytes=max_shard_bytes, listen=self.listen,
        )  # fmt: skip


def _without_nonfinite(plan: Plan, matrices: Mapping[str, GateMatrix], reader: Reader) -> Plan:
    """Return the plan with matrices that hold NaN or infinity left as they are, if so asked.

    Only ``nonfinite="copy"`` looks ahead: sizes must be known before the first byte is written.
    """
    if plan.settings.nonfinite != "copy":
        return plan
    source = MatrixSource(reader)
    items: list[PlanItem] = []
    for item in plan.items:
        if item.action == "factorize":
            bad = int((~source.matrix(matrices[item.name]).isfinite()).sum())
            if bad:
                item = item.model_copy(
                    update={
                        "action": "keep",
                        "reason": f"{bad} values are NaN or infinite; stays dense",
                        "n_params_after": item.n_params_before,
                        "nbytes_after": item.nbytes_before,
                    }
                )
        items.append(item)
    return plan.model_copy(update={"items": tuple(items)})


def _hash_files(files: Sequence[Path], stop: threading.Event) -> list[FileRecord]:
    records = []
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    for path in files:
        sha, nbytes = hashlib.sha256(), 0
        with path.open("rb", buffering=0) as file:
            while (n := file.readinto(buffer)) and not stop.is_set():
                sha.update(view[:n])
                nbytes += n
        records.append(FileRecord(path=printable(path.name), nbytes=nbytes, sha256=sha.hexdigest()))
    return records


def restore(
    artefact: Path, out: Path, *, overwrite: bool = False, listen: Listener = silent
) -> tuple[Path, tuple[str, ...]]:
    """Write the dense checkpoint in its source's container, from an artefact alone.

    Whole-module pickles come back as the plain state dict of the model: their classes are someone
    else's code, which is never written.

    Returns
    -------
    (Path, tuple of str)
        What was written, and what the source held that the artefact does not, one line each.

    Raises
    ------
    ManifestMismatchError, OutputError
        The artefact isn't whole, or the target can't be written.
    """
    manifest = read_manifest(artefact)
    if not manifest.tensors:
        raise PlanError("the artefact lists no tensors", path=artefact)
    rebuilt = Rebuilt(artefact, manifest)
    needed = sum(ref.nbytes for ref in rebuilt.tensors.values())
    single = is_single(manifest.container, len(manifest.source.files))
    with (
        closing(rebuilt),
        Staging(
            out,
            single=single,
            overwrite=overwrite,
            inputs=[artefact, *(artefact / file.path for file in manifest.files)],
            needed=needed,
        ) as staging,
    ):
        left_out = write_new(
            manifest.source.format, manifest.container, rebuilt.tensors, rebuilt.chunks,
            rebuilt.carried, staging,
        )  # fmt: skip
        if not single:
            listed = {file.path for file in manifest.files}
            names = manifest.source.sidecars
            copy_sidecars(recorded_sidecars(artefact, names, listed), staging)
        staging.commit()
    reasons = Counter(row.reason for row in manifest.tensors if row.action == "drop")
    dropped = tuple(f"{count} tensors: {reason}" for reason, count in reasons.items())
    return staging.target, left_out + dropped
