"""What a program may answer: metrics as JSON, with per-example results or without.

Either numbers by name, ``{"accuracy": 0.5, "loss": 1.2}``, or ::

    {"metrics": [{"name": "accuracy", "value": 0.5, "better": "higher", "unit": "fraction",
                  "n": 2, "stderr": 0.5, "of": {"score": "correct"}}],
     "examples": [{"id": "1", "correct": 1}, {"id": "2", "correct": 0}]}

of which only `name` and `value` have to be there. ``NaN`` and ``Infinity`` are answers too: a
metric that no gate passes. All else that is no such document is refused.
"""

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from ckptshrink.errors import EvaluationError, printable
from ckptshrink.evaluation.directions import SLACK, better_of, unit_of
from ckptshrink.evaluation.evaluator import Scores
from ckptshrink.evaluation.examples import ID, Examples, disagreement, examples_of_rows
from ckptshrink.evaluation.files import strict_json
from ckptshrink.evaluation.metrics import FRACTION, PERCENT, Aggregate, Better, Metric, metric

_FORMS: Final = (
    'numbers by name, {"accuracy": 0.5}; or {"metrics": [{"name": ..., "value": ...}], '
    '"examples": [...]}; and nothing else on standard output'
)
_METRIC_KEYS: Final = frozenset({"name", "value", "better", "unit", "n", "stderr", "of"})
_LONGEST_NAME: Final = 200
_CORRECT: Final = "correct"
"""Column of zeros and ones that accuracies are made of, where there is none of their own name."""


@dataclass(frozen=True, slots=True)
class Stated:
    """What the user says of a program's metrics, by name; it goes before what the program says.

    Attributes
    ----------
    better : mapping of str to "higher" or "lower"
    units : mapping of str to str
    """

    better: Mapping[str, Better] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)


def scores_from(stdout: bytes, stated: Stated) -> Scores:
    """Return the scores that a program answered with.

    A metric that does not say how it follows from the examples does so if its value is the mean of
    their column of the same name, or, for an accuracy, of their column ``correct``.

    Parameters
    ----------
    stdout : bytes
        All of its standard output.
    stated : Stated

    Raises
    ------
    EvaluationError
        It makes no sense; the message says what does not.
    """
    try:
        if not stdout.strip():
            raise ValueError("is empty")
        answer = _answer(stdout)
        metrics, examples = _parts(answer)
        notes: list[str] = []
        found = [_metric(one, stated, examples, notes) for one in metrics]
        _check_names(found)
    except ValueError as error:
        reason = printable(" ".join(str(error).split()))
        raise EvaluationError(f"standard output {reason}", hint=_FORMS) from error
    notes += _unused(stated, {one.name for one in found})
    return Scores(metrics=tuple(found), examples=examples, notes=tuple(notes))


def _answer(stdout: bytes) -> Mapping[str, Any]:
    try:
        answer = strict_json(stdout, nonfinite=True)
    except ValueError as error:
        raise ValueError(f"is no single JSON document: {error}") from error
    if not isinstance(answer, dict):
        raise ValueError(f"is a JSON {_kind(answer)}, and no object")
    return answer


def _parts(answer: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Examples | None]:
    """Return what is said of each metric, and the examples."""
    if not isinstance(answer.get("metrics"), list):
        return [{"name": name, "value": value} for name, value in answer.items()], None
    unknown = answer.keys() - {"metrics", "examples"}
    if unknown:
        raise ValueError(f"has {min(unknown)[:40]!r} beside metrics and examples")
    for one in answer["metrics"]:
        if not isinstance(one, dict):
            raise ValueError(f"has a {_kind(one)} among its metrics, and no object")
    rows = answer.get("examples")
    if rows is None:
        return answer["metrics"], None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("has examples that are no list of objects")
    try:
        return answer["metrics"], examples_of_rows(map(_with_text_id, rows)) if rows else None
    except ValueError as error:
        raise ValueError(f"has examples that make no sense: {error}") from error


def _with_text_id(row: dict[str, Any]) -> dict[str, Any]:
    one = row.get(ID)
    return {**row, ID: str(one)} if type(one) is int else row


def _metric(
    said: Mapping[str, Any], stated: Stated, examples: Examples | None, notes: list[str]
) -> Metric:
    unknown = said.keys() - _METRIC_KEYS
    if unknown:
        raise ValueError(f"has a metric with an unknown key {min(unknown)[:40]!r}")
    name = _name(said.get("name"))
    where = f"has a metric {name!r} whose"
    value = _number(said.get("value"), f"{where} value")
    unit = _unit(name, value, stated.units.get(name, said.get("unit")), notes)
    of, stderr, n = _aggregate(said.get("of"), where), said.get("stderr"), said.get("n")
    if stderr is not None and not 0 <= _number(stderr, f"{where} stderr") < math.inf:
        raise ValueError(f"{where} stderr is {stderr}")
    if n is not None and (type(n) is not int or n < 0):
        raise ValueError(f"{where} n is {str(n)[:40]!r}, and no number of examples")
    better = _better(name, stated.better.get(name, said.get("better")))
    found = metric(name, value, better=better, unit=unit, n=n, stderr=stderr, of=of)
    if examples is None:
        if of is not None:
            raise ValueError(f"{where} `of` names examples, and there are none")
        return found
    return _from_examples(found, examples, notes)


def _from_examples(found: Metric, examples: Examples, notes: list[str]) -> Metric:
    """Return a metric with what follows from the examples; refuse one that they contradict."""
    if found.of is None:
        of = _inferred(found, examples)
        if of is None:
            if found.name in examples.columns:
                notes.append(
                    f"{found.name} is not the mean of the examples' {found.name}, and is taken as "
                    "one number"
                )
            return found
        found = found.model_copy(update={"of": of})
    wrong = disagreement(found, examples)
    if wrong is not None:
        raise ValueError(f"contradicts itself: {wrong}")
    aggregate = cast(Aggregate, found.of)
    columns = [examples.columns[c] for c in (aggregate.score, aggregate.weight) if c is not None]
    stderr = aggregate.stderr(*columns) if found.stderr is None else found.stderr
    return metric(
        found.name, found.number, better=found.better, unit=found.unit, n=len(examples),
        stderr=stderr, of=aggregate,
    )  # fmt: skip


def _inferred(found: Metric, examples: Examples) -> Aggregate | None:
    columns = [found.name]
    if unit_of(found.name, 1.0) == FRACTION and "acc" in found.name.casefold():
        columns.append(_CORRECT)
    for column in columns:
        of = Aggregate(score=column)
        tried = found.model_copy(update={"of": of})
        if column in examples.columns and disagreement(tried, examples) is None:
            return of
    return None


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise ValueError("has a metric without a name")
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"has a metric whose name can't be shown: {name[:40]!r}")
    return name


def _number(value: Any, what: str) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{what} is {_kind(value)} {str(value)[:40]!r}, and no number")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _better(name: str, said: Any) -> Better:
    known = better_of(name) if said is None else said
    if known is None:
        raise ValueError(
            f"has a metric {name!r} of which nothing says which way it is better: "
            f"--better {name}=higher or --better {name}=lower"
        )
    if known not in ("higher", "lower"):
        raise ValueError(f"has a metric {name!r} that is better {str(known)[:40]!r}")
    return cast(Better, known)


def _unit(name: str, value: float, said: Any, notes: list[str]) -> str:
    if said is not None and (not isinstance(said, str) or not said or not said.isprintable()):
        raise ValueError(f"has a metric {name!r} whose unit is {str(said)[:40]!r}")
    unit = unit_of(name, value) if said is None else said
    if said is None and unit == PERCENT:
        notes.append(f"{name} is taken as percent, since it is above 1")
    most = {FRACTION: 1.0, PERCENT: 100.0}.get(unit, math.inf)
    if math.isfinite(value) and most < math.inf and not -SLACK <= value <= most + SLACK:
        raise ValueError(f"has a metric {name!r} of {value!r}, and a {unit} is from 0 to {most:g}")
    return unit


def _aggregate(said: Any, where: str) -> Aggregate | None:
    if said is None:
        return None
    try:
        return Aggregate.model_validate(said, strict=True)
    except ValueError as error:
        raise ValueError(f"{where} `of` makes no sense: {str(said)[:80]}") from error


def _check_names(metrics: Collection[Metric]) -> None:
    if not metrics:
        raise ValueError("has no metric")
    names = [one.name for one in metrics]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"has the metric {twice!r} twice")


def _unused(stated: Stated, names: Collection[str]) -> list[str]:
    """Return notes on names that the user spoke of and that no metric has."""
    notes = []
    for name in sorted({*stated.better, *stated.units} - set(names)):
        close = difflib.get_close_matches(name, names, n=1)
        there = f"; did you mean {close[0]!r}?" if close else f": {', '.join(names)}"
        notes.append(f"no metric is called {name!r}{there}")
    return notes


def _kind(value: Any) -> str:
    kinds = ((bool, "boolean"), (str, "text"), (list, "list"), (dict, "object"), (type(None), ""))
    return next((kind for of, kind in kinds if isinstance(value, of)), "number") or "null"
