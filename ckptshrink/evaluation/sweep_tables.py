"""The tables of a sweep: as the papers print them, and as data."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import Field

from ckptshrink.errors import printable
from ckptshrink.evaluation.document import DataRecord, Outcome, ToolRecord
from ckptshrink.evaluation.efficiency import SCOPES
from ckptshrink.evaluation.metrics import FRACTION, Metric
from ckptshrink.evaluation.rows import FIELDS, rows_of
from ckptshrink.plan import Frozen

SWEEP_SCHEMA_VERSION: Final = 1

LOSES: Final = "†"
"""Mark of a cell that a rival of no more parameters is better than."""

CSV_FIELDS: Final = (
    "weights", "method", "key", "size", *FIELDS, "file",
)  # fmt: skip
"""Columns of ``sweep.csv``: a row for each metric of each cell, the baseline's first. `key` and
`size` are what is varied, and how far: ``rank``, 10."""


class SweptCell(Frozen):
    """One cell of a sweep, and the file that has its whole evaluation."""

    weights: str
    method: str
    key: str
    value: float | int
    file: str
    outcome: Outcome


class SweepRecord(Frozen):
    """A sweep; see `Evaluation` for the fields that they share."""

    schema_version: Literal[1] = SWEEP_SCHEMA_VERSION
    task: str
    data: DataRecord | None
    protocol: dict[str, Any]
    seed: int
    environment: dict[str, str]
    tool: ToolRecord
    key: str
    values: tuple[float | int, ...]
    weights: tuple[str, ...]
    methods: tuple[str, ...]
    baseline: Outcome
    rivals: tuple[Outcome, ...] = Field(
        (), description="other models of the task, such as dense ones that are small from the start"
    )
    cells: tuple[SweptCell, ...] = Field(description="those that are done, in order")

    def to_json(self) -> str:
        """Return the record as text."""
        plain = self.model_dump(mode="json")
        return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_csv(record: SweepRecord) -> str:
    """Return every number of a sweep, unrounded: a row for each metric of each cell."""
    written = io.StringIO()
    writer = csv.DictWriter(written, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in rows_of(record.baseline):
        writer.writerow({"weights": "", "method": "baseline"} | row)
    for rival in record.rivals:
        for row in rows_of(rival):
            writer.writerow({"weights": "", "method": f"rival {rival.model.name}"} | row)
    for cell in record.cells:
        where = cell.model_dump(include={"weights", "method", "key", "file"})
        for row in rows_of(cell.outcome):
            writer.writerow(where | {"size": cell.value} | row)
    return written.getvalue()


def as_markdown(record: SweepRecord) -> str:
    """Return the tables of a sweep as the paper has them: sizes across, then best and average.

    A table for each metric, then E(r) of it in each scope, then parameters. A cell whose
    evaluation failed says so, and the average is of the others, whose number it gives. A cell that
    is worse than a rival of no more parameters has the mark `LOSES`.
    """
    marks = _marks(record)
    lines = [
        *_heading(record),
        *_metric_tables(record, marks),
        *_notes(marks),
        *_size_tables(record),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _marks(record: SweepRecord) -> dict[str, str]:
    """Return a mark for each note that some cells have and the baseline has not."""
    notes = (note for cell in record.cells for note in cell.outcome.notes)
    own = dict.fromkeys(note for note in notes if note not in record.baseline.notes)
    return {note: f"[{number}]" for number, note in enumerate(own, 1)}


def _notes(marks: Mapping[str, str]) -> Iterator[str]:
    for note, mark in marks.items():
        yield f"{mark} {_plain(note)}"
        yield ""


def _heading(record: SweepRecord) -> Iterator[str]:
    model = record.baseline.model
    yield f"# {record.task}: {_plain(model.name)}"
    yield ""
    on = "" if record.data is None else f" on {_plain(record.data.name)}"
    subset = record.protocol.get("max_examples")
    part = f", its first {subset:,} examples" if isinstance(subset, int) else ""
    yield f"Scored{on}{part}; every number is of the file as it was written and read again."
    if record.data is not None:
        yield f"Data: sha256 {record.data.sha256}. Checkpoint: sha256 {model.sha256}."
    total = len(record.weights) * len(record.methods) * len(record.values)
    if len(record.cells) < total:
        yield f"**{len(record.cells)} of {total} cells are done.**"
    yield ""


def _metric_tables(record: SweepRecord, marks: Mapping[str, str]) -> Iterator[str]:
    for metric in record.baseline.metrics:
        yield f"## {_plain(metric.name)} ({metric.better} is better)"
        yield ""
        error = "" if metric.stderr is None else f" ± {_number(metric.stderr, metric)}"
        n = "" if metric.n is None else f", n = {metric.n:,}"
        yield f"Baseline: {_number(metric.number, metric)}{error}{n}."
        yield ""
        best = min if metric.better == "lower" else max
        yield from _table(
            record,
            _value_of(metric.name),
            lambda value, m=metric: _number(value, m),  # type: ignore[misc]
            best,
            lambda outcome, m=metric: _marked(outcome, m, record.rivals, marks),  # type: ignore[misc]
        )
        yield from _rivals(record, metric)
        for scope in SCOPES:
            if getattr(record.baseline.model.n_params, scope) is None:
                continue
            yield f"### E(r) of {_plain(metric.name)}, scope {scope}"
            yield ""
            yield from _table(record, _efficiency_of(metric.name, scope), _short, min)
    yield (
        "E(r) = R(M)/R(P) where the metric got worse, R(M)/(1 - R(P)) where it got better; R(M) is "
        "the loss relative to the baseline, R(P) the share of parameters that is gone: those of "
        "the recurrent layers (scope lstm), or of everything that ran (scope model). Smaller is "
        "better, negative is an improvement; there is none where nothing was saved. Never compare "
        "it across scopes."
    )
    yield ""


def _size_tables(record: SweepRecord) -> Iterator[str]:
    for scope in SCOPES:
        before = getattr(record.baseline.model.n_params, scope)
        if before is None:
            continue
        yield f"## Parameters, scope {scope}"
        yield ""
        yield f"Baseline: {before:,}."
        yield ""
        yield from _table(record, _params_of(scope), lambda n: f"{n:,.0f}", None)


Value = Callable[[Outcome], float | None]
Text = Callable[[float], str]
Mark = Callable[[Outcome], str]


def _table(
    record: SweepRecord,
    value: Value,
    text: Text,
    best: Callable[[list[float]], float] | None,
    mark: Mark = lambda outcome: "",
) -> Iterator[str]:
    """Yield a table with a row for each weights and method, and a column for each size."""
    sizes = [f"{record.key}={v}" for v in record.values]
    titles = ["weights", "method", *sizes, *(["best", "average"] if best else [])]
    yield _line(titles)
    yield _line(["---", "---", *(["---:"] * (len(titles) - 2))])
    cells = {(c.weights, c.method, c.value): c.outcome for c in record.cells}
    for weights in record.weights:
        for method in record.methods:
            row = [cells.get((weights, method, size)) for size in record.values]
            if any(row):
                shown = [_shown(outcome, value, text, mark) for outcome in row]
                found = [v for o in row if o and (v := value(o)) is not None]
                ends = _ends(found, len(row), text, best) if best else []
                yield _line([_plain(weights), method, *shown, *ends])
    yield ""


def _shown(outcome: Outcome | None, value: Value, text: Text, mark: Mark) -> str:
    if outcome is None:
        return ""
    found = value(outcome)
    if found is None:
        return "failed" if outcome.failure is not None else "-"
    return text(found) + mark(outcome)


def _marked(
    outcome: Outcome, metric: Metric, rivals: Sequence[Outcome], marks: Mapping[str, str]
) -> str:
    """Return what stands behind a cell's number: that it loses, and its notes."""
    loses = f" {LOSES}" if beaten_by(outcome, metric.name, rivals) else ""
    return loses + "".join(f" {marks[note]}" for note in outcome.notes if note in marks)


def beaten_by(outcome: Outcome, metric: str, rivals: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Return the rivals of no more parameters whose metric is better than a cell's."""
    mine, n_params = outcome.metric(metric), outcome.model.n_params.model
    if mine is None or mine.value is None or n_params is None:
        return ()
    sign = 1.0 if mine.better == "lower" else -1.0
    found = []
    for rival in rivals:
        theirs, size = rival.metric(metric), rival.model.n_params.model
        if theirs is None or theirs.value is None or size is None or size > n_params:
            continue
        if sign * (theirs.value - mine.value) < 0:
            found.append(rival)
    return tuple(found)


def _rivals(record: SweepRecord, metric: Metric) -> Iterator[str]:
    """Yield the table of what the cells have to be as good as."""
    if not record.rivals:
        return
    yield f"{LOSES} loses to one of these, which has no more parameters:"
    yield ""
    yield _line(["rival", _plain(metric.name), "change", "parameters"])
    yield _line(["---", "---:", "---:", "---:"])
    for rival in record.rivals:
        found = rival.metric(metric.name)
        change = next((c.difference for c in rival.changes if c.metric == metric.name), None)
        size = rival.model.n_params.model
        yield _line(
            [
                _plain(rival.model.name),
                "failed" if found is None else _number(found.number, metric),
                "-" if change is None else f"{change:+.3g}",
                "-" if size is None else f"{size:,}",
            ]
        )
    yield ""


def _ends(
    found: list[float], total: int, text: Text, best: Callable[[list[float]], float]
) -> list[str]:
    if not found:
        return ["-", "-"]
    of = f" ({len(found)} of {total})" if len(found) < total else ""
    return [text(best(found)), text(sum(found) / len(found)) + of]


def _value_of(name: str) -> Value:
    def value(outcome: Outcome) -> float | None:
        metric = outcome.metric(name)
        return None if metric is None else metric.number

    return value


def _efficiency_of(name: str, scope: str) -> Value:
    def value(outcome: Outcome) -> float | None:
        change = next((c for c in outcome.changes if c.metric == name), None)
        return None if change is None else change.efficiency.get(scope)

    return value


def _params_of(scope: str) -> Value:
    def value(outcome: Outcome) -> float | None:
        number: int | None = getattr(outcome.model.n_params, scope)
        return None if number is None else float(number)

    return value


def _number(value: float, metric: Metric) -> str:
    """Return a metric as tables show it: proportions as such, the rest with five digits."""
    return f"{value:.4f}" if metric.unit == FRACTION else f"{value:.5g}"


def _short(value: float) -> str:
    return f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    return printable(text).replace("|", "\\|")
