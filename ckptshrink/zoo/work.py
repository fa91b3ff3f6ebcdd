"""One job of a zoo from start to finish, in whatever process and on whatever machine it is done.

It looks at what is there, does what is left, and leaves a record. Done again it does nothing; done
twice at once, both do the same and one of them is kept.
"""

import os
import re
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from ckptshrink.errors import CkptshrinkError, ManifestMismatchError, OutputError, printable
from ckptshrink.io.part_folder import sweep, sweep_in
from ckptshrink.io.staged_file import os_errors
from ckptshrink.io.staging import MANIFEST, Staging
from ckptshrink.manifest import Manifest
from ckptshrink.zoo import remote
from ckptshrink.zoo.failures import is_transient
from ckptshrink.zoo.jobs import Job
from ckptshrink.zoo.records import (
    LOG,
    PAGE,
    RECORD,
    Failed,
    Gated,
    Record,
    Scored,
    Size,
    Status,
    gate_because,
    gate_status,
    read_record,
)
from ckptshrink.zoo.standing import (
    Hashes,
    Standing,
    failure_key,
    gate_key,
    standing_of,
)

_MOST_LOG: Final = 200_000
"""Characters of a log that are kept; its end, where the cause stands."""

_MOST_SAID: Final = 2_000
"""Characters of a message in an answer, which must go through a pipe in one piece: a worker that is
killed in the middle of a longer one would leave half of it, and its parent waiting."""

_OURS: Final = re.compile(r"model.*\.safetensors(\.index\.json)?|README\.md|[a-z_]+\.json")
"""Names of files that an artefact has."""

said_by_libraries: Callable[[], str] = str
"""Returns what was written to the streams of this process; set in workers that have their own."""


@dataclass(frozen=True, slots=True)
class Order:
    """A job, and how it is to be done.

    Attributes
    ----------
    job : Job
    out : str
        The output: a folder's path, or a URL.
    threads : int
        CPU threads of the arithmetic.
    device : str
    force : bool
        Whether everything is done again, whatever is there.
    retry : bool
        Whether a failure of an earlier run is no reason not to try.
    attempt : int
        Which one this is, from 1.
    lost : tuple of str
        What became of the attempts before.
    """

    job: Job
    out: str = field(repr=False)  # a URL can have a password in it
    threads: int = 1
    device: str = "auto"
    force: bool = False
    retry: bool = False
    attempt: int = 1
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job is done: everything is a path of this machine.

    Attributes
    ----------
    source, artefact, reports : Path
    identity : str
        Of a source that is a URL: what its store says of it, where that tells its states apart.
    names : tuple of (str, str)
        Paths of files that were fetched, and what they are called in messages.
    error : CkptshrinkError or None
        Why the source could not be fetched, which is a failure of this model.
    """

    source: Path
    artefact: Path
    reports: Path
    identity: str = ""
    names: tuple[tuple[str, str], ...] = ()
    error: CkptshrinkError | None = None

    @property
    def fingerprint(self) -> Path | str:
        """Return what tells one state of the source from another."""
        return self.identity or self.source

    def named(self, text: str) -> str:
        """Return a text with URLs in the place of where their files are for now."""
        for path, name in self.names:
            text = text.replace(path, name)
        return text


@dataclass(slots=True)
class Log:
    """What is said while a job is done, each line with the seconds since its start."""

    clock: Callable[[], float] = time.monotonic
    lines: list[str] = field(default_factory=list)
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def say(self, *lines: str) -> None:
        """Add lines."""
        seconds = f"{self.clock() - self.started:9.3f}"
        self.lines += [f"{seconds}  {printable(line)}" for line in lines]

    @property
    def seconds(self) -> float:
        """Return the time since the start."""
        return self.clock() - self.started

    @property
    def text(self) -> str:
        """Return what was said."""
        whole = "".join(f"{line}\n" for line in self.lines)
        return whole if len(whole) <= _MOST_LOG else "...\n" + whole[-_MOST_LOG:]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of an order.

    Attributes
    ----------
    status : Status or "again"
        ``again``: it failed at something that a further attempt may not meet, and left no record.
    gate : str or None
    nbytes_before, nbytes_after : int
        Zero where there is no artefact.
    message : str
        Why it failed, or is not good enough.
    """

    status: Status | Literal["again"]
    gate: str | None = None
    nbytes_before: int = 0
    nbytes_after: int = 0
    seconds: float = 0.0
    message: str = ""


def work(order: Order) -> Answer:
    """Do a job, leave its record, and say what became of it. Raises nothing but a bug of ours."""
    log = Log()
    log.say(f"attempt {order.attempt} by process {os.getpid()} of {socket.gethostname()}")
    log.say(*(f"before: {line}" for line in order.lost))
    said_by_libraries()  # what was said of an earlier job
    try:
        with remote.workspace(order.job, order.out) as place:
            record = _Run(order, place, log).record()
    except (CkptshrinkError, OSError, MemoryError) as error:
        return Answer("again", seconds=log.seconds, message=_message(error)[:_MOST_SAID])
    return answer_of(record)


def answer_of(record: Record) -> Answer:
    """Return a record in short."""
    size, failed = record.size, record.failed
    message = "" if failed is None else f"{failed.step}: {failed.message}"
    if record.status == "not good enough":
        message = gate_because(record) or ""
    return Answer(
        record.status,
        gate=gate_status(record),
        nbytes_before=0 if size is None else size.nbytes_before,
        nbytes_after=0 if size is None else size.nbytes_after,
        seconds=record.seconds,
        message=message[:_MOST_SAID],
    )


def give_up(order: Order, message: str, *, crashed: bool = False) -> Answer:
    """Record a job that could not be done for reasons beyond it, after its last attempt.

    Raises
    ------
    CkptshrinkError, OSError
        Not even that can be written.
    """
    log = Log()
    log.say(*order.lost, message)
    key = ""
    if crashed:
        with suppress(CkptshrinkError):  # a store that does not answer: then the next run tries
            source = remote.fingerprint_of(order.job.source)
            key = failure_key(order.job.work, source, Hashes()) if source else ""
    failed = Failed(step="run", message=message, key=key, transient=not key)
    record = Record(
        name=order.job.shown, source=remote.shown(order.job.source),
        artefact=printable(order.job.artefact), status="failed", failed=failed,
        attempts=order.attempt,
    )  # fmt: skip
    with remote.workspace(order.job, order.out, fetch=False) as place:
        _keep(order.job, place, record, None, log)
    return answer_of(record)


class _Run:
    """One attempt at a job."""

    def __init__(self, order: Order, place: Place, log: Log) -> None:
        self._order, self._place, self._log = order, place, log
        self._hashes = Hashes()
        self._work = order.job.work
        self._step = "read"

    def record(self) -> Record:
        """Do what is left, and return the record as it is kept."""
        with os_errors(self._place.reports):
            self._place.reports.mkdir(parents=True, exist_ok=True)
            self._place.artefact.parent.mkdir(parents=True, exist_ok=True)
        if self._order.attempt > 1:  # the one before may have been killed when all was written
            sweep(self._place.artefact)
            sweep_in(self._place.reports)
        standing = self._standing()
        if standing.given_up and standing.record is not None and not self._order.retry:
            return standing.record
        if standing.finished(self._work) and standing.record is not None:
            return self._confirmed(standing.record)
        old = standing.record.tasks if standing.record is not None else {}
        manifest, tasks, gated = standing.manifest, dict[str, Scored](), None
        failed = None
        try:
            if self._place.error is not None:
                raise self._place.error
            if manifest is None:
                manifest = self._made()
            size = _size(manifest, self._place.artefact)
            for scoring in self._work.scorings:
                done = scoring.name in standing.tasks
                tasks[scoring.name] = (
                    old[scoring.name]
                    if done
                    else self._score(scoring.name, manifest, old.get(scoring.name))
                )
            gated = self._gate(tasks, size, standing)
        except (CkptshrinkError, OSError, MemoryError) as error:
            if is_transient(error):
                raise
            failed = self._failed(error, "")
        except Exception as error:  # a bug of ours, or of an evaluator: one model's, not the zoo's
            failed = self._failed(error, traceback.format_exc())
        record = Record(
            name=self._order.job.shown,
            source=remote.shown(self._order.job.source),
            artefact=printable(self._order.job.artefact),
            status=_status(failed, gated),
            identity=self._place.identity,
            size=None if manifest is None else _size(manifest, self._place.artefact),
            tasks=tasks,
            gate=gated,
            failed=failed,
            seconds=round(self._log.seconds, 3),
            attempts=self._order.attempt,
        )
        self._log.say(*said_by_libraries().splitlines())
        _keep(self._order.job, self._place, record, manifest, self._log)
        return record

    def _confirmed(self, record: Record) -> Record:
        """Return the record of a finished model, with what the store says of its source now.

        It was written again with the same content, say; the next look should not have to fetch it.
        """
        if record.identity != self._place.identity:
            record = record.model_copy(update={"identity": self._place.identity})
            _keep_record(self._place, record)
        return record

    def _standing(self) -> Standing:
        place = self._place
        if self._order.force:
            return Standing(None, None)
        found = standing_of(
            self._order.job, place.source, place.artefact, place.reports, self._hashes
        )
        failed = None if found.record is None else found.record.failed
        if place.identity and failed is not None and not failed.transient and failed.key:
            # the fetched files are another folder each time, and their store's word is the same
            key = failure_key(self._work, place.identity, self._hashes)
            found = replace(found, given_up=failed.key == key)
        return found

    def _made(self) -> Manifest:
        """Return the manifest of the artefact that is made now, or was by somebody meanwhile."""
        try:
            return self._compress()
        except OutputError:
            # two batches on one output, or a worker that was given up and works on: its artefact
            # is as good as ours, byte for byte
            found = None if self._order.force else self._standing().manifest
            if found is None:
                raise
            self._log.say("it was made by another run meanwhile")
            return found

    def _clear_remains(self) -> None:
        """Remove what is left of an artefact of ours whose manifest is gone: it is worth nothing.

        Anything that no artefact has in it is somebody's, and then nothing is touched.
        """
        artefact = self._place.artefact
        record = read_record(self._place.reports)
        gone = artefact.is_dir() and not (artefact / MANIFEST).exists()
        if not gone or record is None or record.size is None:
            return
        with os_errors(artefact):
            files = list(artefact.iterdir())
            if all(_OURS.fullmatch(file.name) and file.is_file() for file in files):
                for file in files:
                    file.unlink()
                artefact.rmdir()

    def _compress(self) -> Manifest:
        from ckptshrink import rewrite  # computes, so it needs torch
        from ckptshrink.payload import Compute
        from ckptshrink.verification import verify

        self._step = "compress"
        place, compression = self._place, self._work.compression
        self._clear_remains()
        result = rewrite.compress(
            place.source, place.artefact, compression.request,
            overwrite=(place.artefact / MANIFEST).is_file(), strict=compression.strict,
            # other workers take the other cores
            compute=Compute(self._order.device, self._order.threads, aside=self._order.threads > 1),
            configuration=compression.sha256,
            max_shard_bytes=compression.max_shard_bytes or rewrite.DEFAULT_SHARD_BYTES,
        )  # fmt: skip
        totals = result.manifest.totals
        self._log.say(
            f"compressed {result.manifest.source.family or result.manifest.source.format}: "
            f"{totals.n_params_before:,} → {totals.n_params_after:,} parameters",
            *(f"note: {note}" for note in result.manifest.source.notes),
        )
        self._step = "verify"
        found = verify(place.artefact, source=place.source)
        if not found.passed:
            raise ManifestMismatchError("; ".join(found.differences[:5]), path=place.artefact)
        self._log.say(f"verified {found.n_files} files and {found.n_tensors} tensors")
        return result.manifest

    def _score(self, name: str, manifest: Manifest, old: Scored | None) -> Scored:
        from ckptshrink.zoo.scoring import Scorer  # runs models, so it needs torch

        self._step = name
        scoring = next(each for each in self._work.scorings if each.name == name)
        place, order = self._place, self._order
        scorer = Scorer(
            place.source, place.artefact, place.reports, manifest, order.threads, order.device
        )
        scored = scorer.score(scoring, old, self._hashes)
        before = {metric.name: metric for metric in scored.baseline}
        self._log.say(
            *(
                f"{name}: {m.name} {before[m.name].number:.6g} → {m.number:.6g}"
                for m in scored.metrics
                if m.name in before
            )
        )
        return scored

    def _gate(self, tasks: dict[str, Scored], size: Size, standing: Standing) -> Gated | None:
        gate = self._work.gate
        if gate is None:
            return None
        from ckptshrink.zoo.scoring import verdicts_of  # statistics, which take a second to import

        self._step = "gate"
        key = gate_key(gate, tasks.values(), (size.nbytes_before, size.nbytes_after))
        old = standing.record.gate if standing.record is not None else None
        if old is not None and old.key == key:
            return old
        verdicts = verdicts_of(gate, self._work.scorings, self._place.reports, size)
        for verdict in verdicts:
            self._log.say(f"gate, {verdict.task}: {verdict.status}")
            self._log.say(*(f"  {check.status} {check.because}" for check in verdict.checks))
        return Gated(key=key, verdicts=verdicts)

    def _failed(self, error: Exception, trace: str) -> Failed:
        named = self._place.named
        message, hint = named(_message(error)), getattr(error, "hint", None)
        self._log.say(f"{self._step} failed: {message}", *named(trace).splitlines())
        self._log.say(*named(getattr(error, "log", "")).splitlines())
        self._log.say(*map(named, getattr(error, "issues", ())))
        key = failure_key(self._work, self._place.fingerprint, self._hashes)
        return Failed(
            step=self._step, message=message, hint=hint and named(hint), key=key,
            transient=self._step == "verify",
        )  # fmt: skip


def _status(failed: Failed | None, gated: Gated | None) -> Status:
    if failed is not None:
        return "failed"
    verdicts = () if gated is None else gated.verdicts
    return "done" if all(v.status == "PASS" for v in verdicts) else "not good enough"


def _size(manifest: Manifest, artefact: Path) -> Size:
    factorized = [row for row in manifest.tensors if row.action == "factorize"]
    worst = max(factorized, key=lambda row: row.rel_error or 0.0, default=None)
    own = len(manifest.to_bytes())
    return Size(
        family=manifest.source.family,
        format=manifest.source.format,
        n_params_before=manifest.totals.n_params_before,
        n_params_after=manifest.totals.n_params_after,
        nbytes_before=manifest.totals.nbytes_before,
        nbytes_after=manifest.totals.nbytes_after + own,
        worst=None if worst is None else worst.name,
        worst_rel_error=None if worst is None else worst.rel_error,
        manifest_sha256=manifest.manifest_sha256,
    )


def _message(error: Exception) -> str:
    text = str(error) if isinstance(error, CkptshrinkError) else f"{type(error).__name__}: {error}"
    return " ".join(printable(" ".join(text.split())).split())


def _keep(job: Job, place: Place, record: Record, manifest: Manifest | None, log: Log) -> None:
    """Write the log, the page and the record, which comes last."""
    from ckptshrink.zoo.pages import report_page

    with os_errors(place.reports):
        place.reports.mkdir(parents=True, exist_ok=True)
    page = report_page(record, manifest, job.name)
    for name, text in ((LOG, log.text), (PAGE, page)):
        write_text(place.reports / name, text)
    _keep_record(place, record)


def _keep_record(place: Place, record: Record) -> None:
    data = record.to_bytes()
    with Staging(place.reports / RECORD, single=True, overwrite=True) as staging:
        staging.create(RECORD).write(data)
        staging.commit()


def write_text(path: Path, text: str) -> None:
    """Write a file of text in the place of whatever it was."""
    with Staging(path, single=True, overwrite=True) as staging:
        staging.create(path.name).write(text.encode("utf-8", "backslashreplace"))
        staging.commit()
