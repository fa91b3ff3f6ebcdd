"""The document that an evaluation leaves behind: every metric of every model, and what it ran on.

`gate` compares two of them. Per-example results lie in files beside it, by their hash.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from ckptshrink.errors import EvaluationInputError, printable
from ckptshrink.evaluation.examples import Examples, disagreement, read_examples
from ckptshrink.evaluation.files import read_whole, strict_json
from ckptshrink.evaluation.metrics import Metric
from ckptshrink.io.staging import Staging
from ckptshrink.plan import Frozen, issues_of

EVALUATION_SCHEMA_VERSION: Final = 1
_MAX_BYTES: Final = 1 << 28

Role = Literal["baseline", "variant"]


class DataRecord(Frozen):
    """What models were scored on."""

    name: str
    sha256: str
    nbytes: int = Field(ge=0)


class ParameterCounts(Frozen):
    """Parameters by scope; see `efficiency.SCOPES`. None where there are no such."""

    model: int | None = Field(None, ge=0)
    lstm: int | None = Field(None, ge=0)


class ModelRecord(Frozen):
    """A model that was scored; see `Subject`."""

    name: str
    kind: Literal["source", "artefact", "file"]
    sha256: str
    source_sha256: str | None = None
    nbytes: int = Field(ge=0)
    n_params: ParameterCounts


class ExamplesRecord(Frozen):
    """A file of per-example results, in the folder of the document."""

    path: str
    n: int = Field(ge=0)
    nbytes: int = Field(ge=0)
    sha256: str


class Failure(Frozen):
    """Why there are no metrics."""

    reason: str
    log: str = ""


class Change(Frozen):
    """A metric against that of the baseline.

    Attributes
    ----------
    difference : float or None
        Value less the baseline's, in the metric's unit.
    relative_loss : float or None
        R(M): positive is worse.
    efficiency : mapping of str to (float or None)
        E(r) by scope.
    """

    metric: str
    difference: float | None = Field(None, allow_inf_nan=False)
    relative_loss: float | None = Field(None, allow_inf_nan=False)
    efficiency: dict[str, float | None] = Field(default_factory=dict)


class Outcome(Frozen):
    """What became of one model."""

    role: Role
    model: ModelRecord
    metrics: tuple[Metric, ...] = ()
    failure: Failure | None = None
    examples: ExamplesRecord | None = None
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = Field(0.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _metrics_or_failure(self) -> "Outcome":
        if bool(self.metrics) == (self.failure is not None):
            raise ValueError("an outcome has metrics, or a failure")
        names = [metric.name for metric in self.metrics]
        if len(set(names)) != len(names):
            raise ValueError("a metric is there twice")
        return self

    def metric(self, name: str) -> Metric | None:
        """Return the metric of a name, None where there is none."""
        return next((m for m in self.metrics if m.name == name), None)


class ToolRecord(Frozen):
    """What made the document."""

    name: str
    version: str


class Evaluation(Frozen):
    """One run of one task over any number of models; see docs/evaluation.md."""

    schema_version: Literal[1] = EVALUATION_SCHEMA_VERSION
    task: str
    data: DataRecord | None
    protocol: dict[str, Any] = Field(
        description="all that must be alike for two scores to be comparable"
    )
    seed: int
    environment: dict[str, str] = Field(default_factory=dict)
    tool: ToolRecord
    outcomes: tuple[Outcome, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> "Evaluation":
        names = [outcome.model.name for outcome in self.outcomes]
        if len(set(names)) != len(names):
            raise ValueError("a model's name is there twice")
        if sum(outcome.role == "baseline" for outcome in self.outcomes) > 1:
            raise ValueError("there is more than one baseline")
        return self

    @property
    def baseline(self) -> Outcome | None:
        """Return the outcome of the baseline, None where there is none."""
        return next((o for o in self.outcomes if o.role == "baseline"), None)

    def to_bytes(self) -> bytes:
        """Return the text of the document."""
        text = json.dumps(
            self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False
        )
        return text.encode() + b"\n"


def write_evaluation(
    evaluation: Evaluation,
    examples: Mapping[str, Examples],
    out: Path,
    *,
    overwrite: bool = False,
) -> Evaluation:
    """Write a document and the per-example results beside it; return it as written.

    Parameters
    ----------
    evaluation : Evaluation
    examples : mapping of str to Examples
        By the name of the model.
    out : Path
        The document. The results of each model go to a file beside it, see `examples_paths`.

    Raises
    ------
    OutputError
        Something can't be written. The document comes last: where it is, its results are; and
        where it does not come, what it was to replace is as it was, results and all.
    """
    paths = examples_paths(out, list(examples))
    found: dict[str, ExamplesRecord] = {}
    with Staging(out, single=True, overwrite=overwrite, beside=tuple(paths.values())) as staging:
        for name, results in examples.items():
            file = staging.create(paths[name].name)
            for line in results.lines():
                file.write(line)
            (record,) = staging.finish()
            found[name] = ExamplesRecord(
                path=record.path, n=len(results), nbytes=record.nbytes, sha256=record.sha256
            )
        written = evaluation.model_copy(
            update={
                "outcomes": tuple(
                    o.model_copy(update={"examples": found.get(o.model.name)})
                    for o in evaluation.outcomes
                )
            }
        )
        staging.create(out.name).write(written.to_bytes())
        staging.commit()  # one for all: an old document never stands beside new results
    return written


def examples_paths(out: Path, names: Sequence[str]) -> dict[str, Path]:
    """Return where the per-example results of each model go; only several need names.

    Examples
    --------
    >>> paths = examples_paths(Path("runs/a.json"), ["elmo.hdf5", "elmo r=8"])
    >>> [str(path) for path in paths.values()]
    ['runs/a.elmo.hdf5.examples.jsonl', 'runs/a.elmo_r_8.examples.jsonl']
    """
    if len(names) == 1:
        return {names[0]: out.with_name(f"{out.stem}.examples.jsonl")}
    paths: dict[str, Path] = {}
    for name in names:
        # ASCII, since a name's length is limited in bytes
        kept = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:100]
        path = out.with_name(f"{out.stem}.{kept}.examples.jsonl")
        number = 2
        while path in paths.values():  # two names that differ in such characters only
            path = out.with_name(f"{out.stem}.{kept}.{number}.examples.jsonl")
            number += 1
        paths[name] = path
    return paths


def read_evaluation(path: Path) -> Evaluation:
    """Read a document.

    Raises
    ------
    EvaluationInputError
        It can't be read, or is no such document.
    """
    data = read_whole(path, _MAX_BYTES, "an evaluation")
    try:
        strict_json(data)  # pydantic takes the last of two equal keys
        return Evaluation.model_validate_json(data, strict=True)
    except ValueError as error:
        reason = issues_of(error)[0] if isinstance(error, ValidationError) else str(error)
        raise EvaluationInputError(
            f"is no evaluation of schema version {EVALUATION_SCHEMA_VERSION}: {printable(reason)}",
            path=path,
            hint="ckptshrink eval -o writes one",
        ) from error


def examples_beside(path: Path, outcome: Outcome) -> Examples | None:
    """Read the per-example results of an outcome; None where the run kept none.

    Parameters
    ----------
    path : Path
        The document that `outcome` is from.

    Raises
    ------
    EvaluationInputError
        They are gone, not those that the document was written with, or do not make up its metrics.
    """
    record = outcome.examples
    if record is None:
        return None
    file = path.parent / record.path
    if Path(record.path).is_absolute() or ".." in Path(record.path).parts:
        raise EvaluationInputError("names a file outside of its folder", path=path)
    examples = read_examples(file, record.sha256)
    for metric in outcome.metrics:
        wrong = disagreement(metric, examples)
        if wrong is not None:
            raise EvaluationInputError(f"does not agree with its examples: {wrong}", path=path)
    return examples
