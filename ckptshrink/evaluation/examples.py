"""Per-example results of an evaluation, as a file that two runs can be compared by, line by line.

The file is JSON lines: ``{"id": "17", "correct": 1.0}``, one example a line in the order of the
data, the same columns in each.
"""

import hashlib
import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckptshrink.errors import EvaluationInputError, printable
from ckptshrink.evaluation.files import read_whole, strict_json
from ckptshrink.evaluation.metrics import Metric

ID: Final = "id"
"""Key of what tells an example from the others."""

_MOST_BYTES: Final = 1 << 30
"""Size above which a file is no file of per-example results: ten million of them take less."""

_AGREE: Final = 1e-9
"""How far a metric may be from what its examples make it, relative and absolute: sums of a million
float64 in another order differ by less, a value rounded for people by more."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Results by example.

    Attributes
    ----------
    ids : tuple of str
        Each once; two runs are paired by them.
    columns : mapping of str to (n,) float64
        Scores and weights by name; see `Aggregate`. Finite.
    labels : mapping of str to tuple of str
        What a person wants to see beside the scores, such as the answer given; never compared.
    """

    ids: tuple[str, ...]
    columns: Mapping[str, NDArray[np.float64]]
    labels: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.ids)

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of the file. Raises ValueError on a NaN or an infinity."""
        for i, one in enumerate(self.ids):
            row: dict[str, Any] = {ID: one}
            row |= {name: values[i].item() for name, values in self.columns.items()}
            row |= {name: values[i] for name, values in self.labels.items()}
            yield json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def examples_of(
    ids: Sequence[str],
    columns: Mapping[str, Sequence[float] | NDArray[np.float64]],
    labels: Mapping[str, Sequence[str]] | None = None,
) -> Examples:
    """Return the examples that these columns make up.

    Raises
    ------
    ValueError
        Columns of unequal length, a name or an id that is there twice, an id or a label that is no
        text, or a score that is no finite number.
    """
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
    said = {name: tuple(values) for name, values in (labels or {}).items()}
    if ID in arrays or ID in said or arrays.keys() & said.keys():
        twice = ID if ID in {*arrays, *said} else min(arrays.keys() & said.keys())
        raise ValueError(f"the column {twice!r} is there twice")
    for name, column in arrays.items():
        if column.ndim != 1 or not np.isfinite(column).all():
            raise ValueError(f"column {name!r} holds something else than finite numbers")
    for name, values in [*arrays.items(), *said.items()]:
        if len(values) != len(ids):
            raise ValueError(f"column {name!r} has {len(values)} values for {len(ids)} examples")
    for name, texts in [(ID, tuple(ids)), *said.items()]:
        if not all(isinstance(text, str) for text in texts) or not _is_unicode(texts):
            raise ValueError(f"column {name!r} holds something else than text")
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        one = next(one for one in ids if one in seen or seen.add(one))  # type: ignore[func-returns-value]
        raise ValueError(f"the id {one!r} is there twice")
    return Examples(tuple(ids), arrays, said)


def examples_of_rows(rows: Iterable[Mapping[str, Any]], called: str = "example") -> Examples:
    """Return the examples that rows of JSON make up, one object each.

    Numbers and booleans are columns, text is a label.

    Parameters
    ----------
    rows : iterable of mapping
        Each has the same keys, with values of the same kinds.
    called : str
        What messages call a row, before its number.

    Raises
    ------
    ValueError
        A row is not what the first one lets expect, or as of `examples_of`.
    """
    ids: list[str] = []
    numbers: dict[str, array[float]] = {}
    texts: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 1):
        one = row.get(ID)
        if not isinstance(one, str):
            raise ValueError(f'{called} {number} has no text under "id"')
        if not ids:
            numbers = {n: array("d") for n, v in row.items() if not isinstance(v, str)}
            texts = {n: [] for n, v in row.items() if isinstance(v, str) and n != ID}
        ids.append(one)
        if len(row) != 1 + len(numbers) + len(texts):
            raise ValueError(f"{called} {number} has other keys than {called} 1")
        for name, value in row.items():
            if name == ID:
                continue
            if isinstance(value, str) and name in texts:
                texts[name].append(value)
            elif name in numbers:
                numbers[name].append(_finite(value, f"{called} {number}: {name!r}"))
            else:
                raise ValueError(
                    f"{called} {number} has other keys or kinds of values than {called} 1"
                )
    return examples_of(ids, {n: np.asarray(v) for n, v in numbers.items()}, texts)


def read_examples(path: Path, sha256: str | None = None) -> Examples:
    """Read a file of per-example results.

    Parameters
    ----------
    sha256 : str, optional
        What its content has to hash to.

    Raises
    ------
    EvaluationInputError
        It can't be read, is another content, or a line is not what the first one lets expect; the
        message says which.
    """
    data = read_whole(path, _MOST_BYTES, "per-example results")
    if sha256 not in (None, hashlib.sha256(data).hexdigest()):
        raise EvaluationInputError("was changed since it was written", path=path)
    lines = data.splitlines()
    try:
        return examples_of_rows(map(_row, range(1, len(lines) + 1), lines), "line")
    except ValueError as error:
        reason = printable(" ".join(str(error).split()))
        raise EvaluationInputError(reason, path=path) from error


def disagreement(metric: Metric, examples: Examples) -> str | None:
    """Return in what a metric is not what its examples make it; None where they agree.

    A metric that does not follow from examples (`Metric.of` is None) agrees with any.
    """
    if metric.of is None:
        return None
    if not len(examples):  # a file without a line has no columns either
        return None if math.isnan(metric.number) else f"{metric.name} is of no examples"
    for name in (metric.of.score, metric.of.weight):
        if name is not None and name not in examples.columns:
            known = ", ".join(examples.columns) or "no numbers"
            return f"{metric.name} is made of {name!r}, and examples have {known}"
    weight = None if metric.of.weight is None else examples.columns[metric.of.weight]
    if weight is not None and (weight < 0).any():
        return f"{metric.name} is weighted by {metric.of.weight!r}, which is below zero somewhere"
    if metric.n is not None and metric.n != len(examples):
        return f"{metric.name} is of {metric.n} examples, and there are {len(examples)}"
    made = metric.of.value(examples.columns[metric.of.score], weight)
    same = math.isnan(made) and math.isnan(metric.number)
    if not same and not math.isclose(metric.number, made, rel_tol=_AGREE, abs_tol=_AGREE):
        return f"{metric.name} is {metric.number!r}, and its examples make it {made!r}"
    return None


def _row(number: int, line: bytes) -> Mapping[str, Any]:
    try:
        row = strict_json(line)
    except ValueError as error:
        raise ValueError(f"line {number} is no result: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no result: it is no object")
    return row


def _finite(value: Any, where: str) -> float:
    if isinstance(value, bool | int | float):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise ValueError(f"{where} is {str(value)[:40]!r}, and no finite number")


def _is_unicode(texts: Iterable[str]) -> bool:
    try:
        "\n".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True
