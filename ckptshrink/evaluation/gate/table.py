"""Rules as they stand in a file: a ``[gate]`` table of TOML, each threshold with its reason."""

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from ckptshrink.errors import EvaluationInputError, printable
from ckptshrink.evaluation.gate.rules import MetricKind, amount_of, size_of
from ckptshrink.evaluation.gate.verdict import SIZE, Rule, Settings
from ckptshrink.plan import issues_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

_MOST_BYTES: Final = 1 << 20
_KINDS: Final[tuple[MetricKind, ...]] = ("max_drop", "max_rise")
_PLACES: Final = (("gate",), ("tool", "ckptshrink", "gate"))
"""Where the table may stand: in a file of its own, or in a ``pyproject.toml``."""


def read_gate_table(path: Path) -> tuple[tuple[Rule, ...], Settings]:
    """Read rules and settings from ``[gate]`` or ``[tool.ckptshrink.gate]`` of a TOML file.

    ::

        [gate]
        alpha = 0.05

        [gate.metrics.accuracy]
        max_drop = "0.5pp"
        reason = "half of what users noticed in March"

        [gate.size]
        max = 0.4
        reason = "the phone has 40 MB left"

    Returns
    -------
    (tuple of Rule, Settings)
        Rules in the order of the file, that of the size last; settings that are not there have
        their defaults.

    Raises
    ------
    EvaluationInputError
        It can't be read, is no TOML, has no such table or two, an unknown key, a value of the wrong
        kind, or a threshold without a reason. Says where.
    """
    return _gate_of(path, *_gate_table(path))


def gate_of_table(table: Mapping[str, Any]) -> tuple[tuple[Rule, ...], Settings]:
    """Return rules and settings of a ``[gate]`` table that stands in a file of something else.

    Raises
    ------
    EvaluationInputError
        See `read_gate_table`.
    """
    return _gate_of(None, "gate", table)


def _gate_of(
    path: Path | None, place: str, table: Mapping[str, Any]
) -> tuple[tuple[Rule, ...], Settings]:
    _check_keys(path, place, table, ("metrics", "size", *Settings.model_fields))
    given = {key: table[key] for key in Settings.model_fields if key in table}
    try:
        settings = Settings.model_validate(given, strict=True)
    except ValidationError as error:
        raise _fault(path, place, printable(issues_of(error)[0])) from error
    rules = [
        _metric_rule(path, f"{place}.metrics.{printable(name)}", name, entry)
        for name, entry in _table(path, f"{place}.metrics", table.get("metrics", {})).items()
    ]
    if "size" in table:
        rules.append(_size_rule(path, f"{place}.size", table["size"]))
    return tuple(rules), settings


def _gate_table(path: Path) -> tuple[str, Mapping[str, Any]]:
    """Return the table and what it is called."""
    found = []
    document = _document(path)
    for place in _PLACES:
        table: Any = document
        for key in place:
            table = table.get(key) if isinstance(table, Mapping) else None
        if table is not None:
            found.append((".".join(place), _table(path, ".".join(place), table)))
    if not found:
        raise EvaluationInputError(
            "has no [gate] table", path=path, hint="nor a [tool.ckptshrink.gate]; see docs/ci.md"
        )
    if len(found) > 1:
        raise EvaluationInputError(
            "has both [gate] and [tool.ckptshrink.gate]", path=path, hint="keep one of them"
        )
    return found[0]


def _document(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise EvaluationInputError("is too large for a file of rules", path=path)
        document: Mapping[str, Any] = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise EvaluationInputError(f"can't be read: {error.strerror}", path=path) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EvaluationInputError(f"is no TOML: {printable(str(error))}", path=path) from error
    return document


def _metric_rule(path: Path | None, place: str, name: str, entry: Any) -> Rule:
    table = _table(path, place, entry)
    _check_keys(path, place, table, (*_KINDS, "reason"))
    kinds = [kind for kind in _KINDS if kind in table]
    if len(kinds) != 1 or not name:
        raise _fault(path, place, f"needs one of {' and '.join(_KINDS)}", 'max_drop = "0.5pp"')
    number, unit = _amount(path, f"{place}.{kinds[0]}", table[kinds[0]], amount_of)
    return Rule(
        kind=kinds[0], metric=name, amount=number, unit=unit, reason=_reason(path, place, table)
    )


def _size_rule(path: Path | None, place: str, entry: Any) -> Rule:
    table = _table(path, place, entry)
    _check_keys(path, place, table, ("max", "reason"))
    if "max" not in table:
        raise _fault(path, place, "needs max", "max = 0.4")
    share = _amount(path, f"{place}.max", table["max"], size_of)
    return Rule(kind="max_size", metric=SIZE, amount=share, reason=_reason(path, place, table))


def _amount(path: Path | None, place: str, value: Any, read: Callable[[str], T]) -> T:
    """Return an amount, which TOML may have as a number or as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _fault(path, place, "is neither a number nor text")
    try:
        return read(value.strip() if isinstance(value, str) else repr(value))
    except ValueError as error:
        raise _fault(path, place, printable(str(error))) from error


def _reason(path: Path | None, place: str, table: Mapping[str, Any]) -> str:
    reason = table.get("reason")
    if not isinstance(reason, str) or not reason.strip():
        raise _fault(
            path, place, "has no reason",
            'reason = "why this much and no more": thresholds drift where nobody wrote that down',
        )  # fmt: skip
    return " ".join(reason.split())


def _table(path: Path | None, place: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _fault(path, place, "is no table")
    return value


def _check_keys(
    path: Path | None, place: str, table: Mapping[str, Any], known: Iterable[str]
) -> None:
    names = sorted(known)
    for key in table:
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            raise _fault(
                path, place, f"has an unknown key {printable(key)!r}; known: {', '.join(names)}",
                f"did you mean {close[0]!r}?" if close else None,
            )  # fmt: skip


def _fault(
    path: Path | None, place: str, what: str, hint: str | None = None
) -> EvaluationInputError:
    return EvaluationInputError(f"[{place}] {what}", path=path, hint=hint)
