"""What is kept of each model of a zoo: its record, beside its log and scores."""

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from ckptshrink.evaluation.document import Change
from ckptshrink.evaluation.gate.verdict import Verdict
from ckptshrink.evaluation.metrics import Metric
from ckptshrink.plan import Frozen

RECORD: Final = "job.json"
LOG: Final = "log.txt"
PAGE: Final = "report.html"

RECORD_SCHEMA_VERSION: Final = 1
_MOST_BYTES: Final = 1 << 26

Status = Literal["done", "not good enough", "failed"]
"""done: compressed, scored, and past its gate. not good enough: the gate failed or could not tell.
failed: there is no artefact, or no scores."""


class Failed(Frozen):
    """Why a model has no artefact, or no scores.

    Attributes
    ----------
    step : str
        ``compress``, ``verify``, or the name of a task.
    transient : bool
        Whether it may go better the next time, without anything changed: the disk, the network, a
        worker that was lost. The next run tries it again; of others only ``--failed`` does.
    key : str
        Hash of what was tried, and on what: it is not tried again as long as that is the same.
    """

    step: str
    message: str
    hint: str | None = None
    transient: bool = False
    key: str = ""


class Size(Frozen):
    """What compression came to."""

    family: str
    format: str
    n_params_before: int
    n_params_after: int
    nbytes_before: int
    nbytes_after: int = Field(description="of all files of the artefact, its manifest too")
    worst: str | None = Field(None, description="the matrix with the largest error")
    worst_rel_error: float | None = None
    manifest_sha256: str


class Scored(Frozen):
    """What one task came to.

    Attributes
    ----------
    key : str
        Hash of the model, the task and its data; scores are redone where it is another one.
    documents : mapping of str to str
        SHA-256 of each file of results beside the record.
    """

    key: str
    baseline_key: str
    documents: dict[str, str]
    baseline: tuple[Metric, ...] = ()
    metrics: tuple[Metric, ...] = ()
    changes: tuple[Change, ...] = ()


class Gated(Frozen):
    """What the gate said, of each task that it has a rule for."""

    key: str
    verdicts: tuple[Verdict, ...]


class Record(Frozen):
    """What is known of a model; `job.json` in its folder of the reports."""

    schema_version: Literal[1] = RECORD_SCHEMA_VERSION
    name: str
    source: str
    artefact: str = Field(description="its place in the output")
    status: Status
    identity: str = Field("", description="of a source that is a URL: what its store says of it")
    size: Size | None = None
    tasks: dict[str, Scored] = Field(default_factory=dict)
    gate: Gated | None = None
    failed: Failed | None = None
    seconds: float = Field(0.0, ge=0, description="that its last run took")
    attempts: int = Field(1, ge=1)

    def to_bytes(self) -> bytes:
        """Return the text of the record."""
        text = json.dumps(
            self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False
        )
        return text.encode() + b"\n"


def read_record(reports: Path) -> Record | None:
    """Read a model's record; None where there is none that this version can read."""
    try:
        path = reports / RECORD
        if path.stat().st_size > _MOST_BYTES:
            return None
        return record_of(path.read_bytes())
    except OSError:
        return None


def record_of(data: bytes) -> Record | None:
    """Return a record from its text; None if it is none that this version can read."""
    try:
        return Record.model_validate_json(data)
    except ValidationError:
        return None


def row_of(record: Record) -> dict[str, Any]:
    """Return a record as one flat row: of a table, of ``zoo.csv`` and of ``zoo.json``."""
    size, failed = record.size, record.failed
    row: dict[str, Any] = {
        "name": record.name,
        "status": record.status,
        "family": size and size.family,
        "nbytes_before": size and size.nbytes_before,
        "nbytes_after": size and size.nbytes_after,
        "n_params_before": size and size.n_params_before,
        "n_params_after": size and size.n_params_after,
        "worst_rel_error": size and size.worst_rel_error,
        "gate": gate_status(record),
        "gate_because": gate_because(record),
        "metrics": metrics_text(record),
        "seconds": record.seconds,
        "attempts": record.attempts,
        "step": failed and failed.step,
        "error": failed and failed.message,
        "source": record.source,
        "artefact": record.artefact if size else None,
    }
    return row


def gate_status(record: Record) -> str | None:
    """Return the worst of the verdicts; None where there is no gate."""
    if record.gate is None:
        return None
    found = {verdict.status for verdict in record.gate.verdicts}
    return next((s for s in ("FAIL", "INCONCLUSIVE", "PASS") if s in found), None)


def gate_because(record: Record) -> str | None:
    """Return why the first check that does not pass has its status; None where all do."""
    if record.gate is None:
        return None
    checks = (check for verdict in record.gate.verdicts for check in verdict.checks)
    return next((check.because for check in checks if check.status != "PASS"), None)


def metrics_text(record: Record) -> str:
    """Return the scores in one line: ``lm ppl 115.6 → 118.6``."""
    parts = []
    for task, scored in record.tasks.items():
        before = {metric.name: metric for metric in scored.baseline}
        for metric in scored.metrics:
            was = before.get(metric.name)
            value = f"{metric.number:.5g}"
            old = f"{was.number:.5g} → " if was is not None else ""
            parts.append(f"{task} {metric.name} {old}{value}")
    return "; ".join(parts)
