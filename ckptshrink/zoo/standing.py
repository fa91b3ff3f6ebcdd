"""How far a model of a zoo is: what of its job is there, whole, and made of the same things.

Nothing is believed for having the right name: an artefact counts if its manifest names the key of
this job and every byte is what the manifest says; scores count if their files are those that the
record lists, and were made of this artefact, this task and this data.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckptshrink.digest import value_sha256
from ckptshrink.errors import CheckpointError, CkptshrinkError, printable
from ckptshrink.io.files import SourceFile
from ckptshrink.manifest import Manifest, job_key_of
from ckptshrink.verification import verify
from ckptshrink.version import __version__
from ckptshrink.zoo.jobs import Job
from ckptshrink.zoo.recipes import Gate, Scoring, Work
from ckptshrink.zoo.records import Record, Scored, read_record

_UNREADABLE: Final = "unreadable"


@dataclass(frozen=True, slots=True)
class Standing:
    """What of a job is done.

    Attributes
    ----------
    manifest : Manifest or None
        Of the artefact, where that is whole and of this job.
    record : Record or None
    tasks : tuple of str
        Those whose scores are there, of this artefact and this data.
    gated : bool
        Whether the gate has spoken of just these scores.
    given_up : bool
        Whether it failed before, at just this, and there is no reason why it should not again.
    """

    manifest: Manifest | None
    record: Record | None
    tasks: tuple[str, ...] = ()
    gated: bool = False
    given_up: bool = False

    def finished(self, work: Work) -> bool:
        """Return whether nothing is left to do."""
        if self.manifest is None or self.record is None or self.record.failed is not None:
            return False
        size = self.record.size  # killed between the two, a run leaves the record of the one before
        if size is None or size.manifest_sha256 != self.manifest.manifest_sha256:
            return False
        scored = len(self.tasks) == len(work.scorings)
        return scored and (work.gate is None) == (self.record.gate is None) and self.gated


class Hashes:
    """SHA-256 of files, each read once as long as it does not change."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int, int], str]] = {}

    def __call__(self, path: Path) -> str:
        """Return the hash of a file, or a word of its own for one that can't be read."""
        try:
            found = path.stat()
            sign = (found.st_ino, found.st_size, found.st_mtime_ns)
            known = self._known.get(path)
            if known is None or known[0] != sign:
                known = sign, _sha256(path)
                self._known[path] = known
        except OSError:
            return _UNREADABLE
        return known[1]


def standing_of(
    job: Job, source: Path | str, artefact: Path, reports: Path, data_hashes: Hashes
) -> Standing:
    """Return how far a model is.

    Parameters
    ----------
    source : Path or str
        Where it is on this machine; of one in a store, which is not fetched, its identity.
    artefact, reports : Path
        Where they are on this machine.
    data_hashes : Hashes
        Of the files of tasks, which many models have in common.
    """
    record = read_record(reports)
    manifest = _whole(artefact, job.work, lambda found: present_inputs(found, source, record))
    return standing_with(
        job, manifest, record, lambda scored: documents_whole(scored, reports), source, data_hashes
    )


def standing_with(
    job: Job,
    manifest: Manifest | None,
    record: Record | None,
    are_there: Callable[[Scored], bool],
    source: Path | str,
    data_hashes: Hashes,
) -> Standing:
    """Return how far a model is.

    Parameters
    ----------
    manifest : Manifest or None
        Of its artefact, if that is whole.
    record : Record or None
    are_there : callable
        Tells whether the documents of scores are those that were written.
    source : Path or str
        As of `standing_of`.
    """
    if record is None:
        return Standing(manifest, None)
    failed, given_up = record.failed, False
    if failed is not None and not failed.transient and failed.key:
        given_up = failed.key == failure_key(job.work, source, data_hashes)
    if manifest is None:
        return Standing(None, record, given_up=given_up)
    tasks = tuple(
        scoring.name
        for scoring in job.work.scorings
        if _scored(scoring, manifest, record.tasks.get(scoring.name), are_there, data_hashes)
    )
    return Standing(manifest, record, tasks, _gated(job.work.gate, record), given_up)


def present_inputs(
    manifest: Manifest, source: Path | str, record: Record | None
) -> list[tuple[str, str]] | None:
    """Return name and present hash of what an artefact was made from; None if it can't be told.

    Of a source in a store that is what they were, if it is as it was when the record was made.
    """
    if isinstance(source, Path):
        return list(inputs_of(manifest, source))
    if record is None or not source or record.identity != source:
        return None
    return recorded_inputs(manifest)


def inputs_of(manifest: Manifest, source: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and present hash of each file that an artefact was made from."""
    is_folder = source.is_dir()
    folder = source if is_folder else source.parent
    for file in manifest.source.files:
        itself = not is_folder and file.path == printable(source.name)
        yield file.path, _sha256(source if itself else folder / file.path)
    for name in manifest.source.sidecars:
        yield name, _sha256(folder / name)


def recorded_inputs(manifest: Manifest) -> list[tuple[str, str]]:
    """Return the name and hash of each file that an artefact was made from, as they were then."""
    inputs = [(file.path, file.sha256) for file in manifest.source.files]
    hashes = {file.path: file.sha256 for file in manifest.files}
    return inputs + [(name, hashes[name]) for name in manifest.source.sidecars if name in hashes]


def task_keys(scoring: Scoring, manifest: Manifest, hashes: Hashes) -> tuple[str, str]:
    """Return the keys of a task's scores, of the artefact and of its source."""
    task = scoring.sha256({path: hashes(path) for path in scoring.files})
    source = [list(pair) for pair in recorded_inputs(manifest)]
    return (
        value_sha256([manifest.manifest_sha256, source, task, __version__]),
        value_sha256([source, task, __version__]),
    )


def gate_key(gate: Gate, tasks: Iterable[Scored], sizes: tuple[int, int]) -> str:
    """Return the key of a verdict: of the rules, and of all that they are held to."""
    return value_sha256([gate.sha256, [s.key for s in tasks], list(sizes), __version__])


def failure_key(work: Work, source: Path | str, hashes: Hashes) -> str:
    """Return the key of a failure: of everything that the job depends on.

    Parameters
    ----------
    source : Path or str
        As of `standing_of`.
    """
    tasks = [
        [scoring.name, scoring.sha256({path: hashes(path) for path in scoring.files})]
        for scoring in work.scorings
    ]
    gate = work.gate.sha256 if work.gate is not None else ""
    return value_sha256([_fingerprint(source), work.compression.sha256, tasks, gate, __version__])


def documents_whole(scored: Scored, reports: Path) -> bool:
    """Return whether the files of scores are those that were written."""
    return all(_sha256(reports / name) == sha for name, sha in scored.documents.items())


def _whole(
    artefact: Path, work: Work, inputs_now: Callable[[Manifest], list[tuple[str, str]] | None]
) -> Manifest | None:
    """Return the manifest of an artefact that is this job's, and every byte of it as written."""
    try:
        found = verify(artefact)
    except CkptshrinkError:
        return None
    manifest = found.manifest
    if not manifest.job_key or not found.passed:
        return None
    inputs = inputs_now(manifest)
    if inputs is None:
        return None
    key = job_key_of(inputs, work.compression.sha256)
    return manifest if key == manifest.job_key else None


def _scored(
    scoring: Scoring,
    manifest: Manifest,
    scored: Scored | None,
    are_there: Callable[[Scored], bool],
    hashes: Hashes,
) -> bool:
    if scored is None:
        return False
    keys = task_keys(scoring, manifest, hashes)
    return keys == (scored.key, scored.baseline_key) and are_there(scored)


def _gated(gate: Gate | None, record: Record) -> bool:
    if gate is None or record.gate is None:
        return gate is None and record.gate is None
    if record.size is None:
        return False
    sizes = (record.size.nbytes_before, record.size.nbytes_after)
    return record.gate.key == gate_key(gate, record.tasks.values(), sizes)


def _fingerprint(source: Path | str) -> str:
    """Return what tells one state of a source from another, whether it can be read or not."""
    if isinstance(source, str):
        return source or _UNREADABLE
    try:
        if not source.is_dir():
            beside = source.name.endswith(".index.json")
            return value_sha256([_sha256(source), _listing(source.parent) if beside else []])
        return value_sha256(_listing(source))
    except OSError:
        return _UNREADABLE


def _listing(folder: Path) -> list[list[str | int]]:
    with os.scandir(folder) as entries:
        found = [(os.fsencode(e.name).hex(), e.stat()) for e in entries]
    return sorted([name, stat.st_size, stat.st_mtime_ns] for name, stat in found)


def _sha256(path: Path) -> str:
    """Return the hash of a plain file; a pipe or a device would have no end."""
    sha = hashlib.sha256()
    try:
        with closing(SourceFile(path)) as file:
            for chunk in file.chunks(0, file.size):
                sha.update(chunk)
    except (OSError, CheckpointError):
        return _UNREADABLE
    return sha.hexdigest()
