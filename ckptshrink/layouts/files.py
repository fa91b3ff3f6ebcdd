"""Read layout files, and refuse what they can't mean."""

import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, TypeVar

from ckptshrink.errors import LayoutError
from ckptshrink.gates import ROLES
from ckptshrink.layouts.rules import (
    BIAS,
    JOINT,
    NO_ROLE,
    CellRule,
    CopyRule,
    DropRule,
    KeepRule,
    Kind,
    Layout,
    ListRule,
    Mark,
    MatrixRule,
    Pattern,
    RecurrentRule,
    Tokens,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

_GROUPS: Final = frozenset(
    {"part", "list", "layer", "group", "direction", "cell", "gate", "raw", "index"}
)
_PARTS: Final = frozenset({"Wi", "Wh", "P", JOINT, BIAS})
_DIRECTIONS: Final = frozenset({"forward", "backward"})


def load_layouts(extra: Path | None = None) -> tuple[Layout, ...]:
    """Return the built-in layouts, and those of a folder, by priority.

    Parameters
    ----------
    extra : Path, optional
        A folder of ``*.toml`` files. A family that is built in can't be given again.

    Raises
    ------
    LayoutError
        A file is no TOML, has an unknown or missing key, a value of the wrong kind, a pattern that
        doesn't compile, or a family's name that is taken. Says which file and key.
    """
    layouts = list(_builtin())
    if extra is not None:
        if not extra.is_dir():
            raise LayoutError("no folder of layouts", path=extra)
        for path in sorted(extra.glob("*.toml")):
            layout = parse_layout(path.read_bytes(), path.name)
            if layout.family in {known.family for known in layouts}:
                raise LayoutError(f"family {layout.family!r} is defined already", path=path)
            layouts.append(layout)
    return tuple(sorted(layouts, key=lambda layout: layout.priority))


@cache
def _builtin() -> tuple[Layout, ...]:
    folder = files("ckptshrink") / "layouts"
    found = sorted(
        (entry for entry in folder.iterdir() if entry.name.endswith(".toml")),
        key=lambda entry: entry.name,
    )
    return tuple(parse_layout(entry.read_bytes(), entry.name) for entry in found)


def parse_layout(content: bytes, file: str) -> Layout:
    """Return the layout that a TOML file's content says.

    Raises
    ------
    LayoutError
        As `load_layouts`.
    """
    try:
        data = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LayoutError(f"no TOML: {error}", path=file) from error
    table = _Table(data, file, "the file")
    tokens = [_tokens(t) for t in table.tables("tokens")]
    layout = Layout(
        family=table.text("family"),
        priority=table.integer("priority"),
        about=table.text("about"),
        model_types=table.texts("model_types", []),
        marks=tuple(t.closed(Mark(t.pattern(), t.flag("wide"))) for t in table.tables("marks")),
        cells=tuple(_cell_rule(t) for t in table.tables("cells")),
        matrices=tuple(_matrix_rule(t) for t in table.tables("matrices")),
        copies=tuple(t.closed(CopyRule(t.pattern(), t.text("of"))) for t in table.tables("copies")),
        lists=tuple(
            t.closed(ListRule(t.pattern(), t.texts("order"), t.texts("directions"), t.text("raw")))
            for t in table.tables("lists")
        ),
        keeps=tuple(
            t.closed(KeepRule(t.pattern(), t.text("reason"), t.text("note", "")))
            for t in table.tables("keeps")
        ),
        drops=tuple(_drop_rule(t) for t in table.tables("drops")),
        recurrent=tuple(
            t.closed(RecurrentRule(t.pattern(), t.text("why"))) for t in table.tables("recurrent")
        ),
        tokens=tokens[0] if tokens else None,
    )
    return table.closed(layout)


def _cell_rule(table: "_Table") -> CellRule:
    rule = CellRule(
        pattern=table.pattern(),
        parts=table.mapping("parts", _PARTS),
        kinds=tuple(
            t.closed(Kind(t.text("cell"), t.text("gates"), t.text("input_gates", "")))
            for t in table.tables("kinds")
        ),
        directions=table.mapping("directions", _DIRECTIONS),
        numbering=table.one_of("numbering", {"name", "order", "model"}, "order"),
        transposed=table.flag("transposed"),
        forget_bias=table.real("forget_bias"),
        needs_raw=table.flag("needs_raw"),
        needs_recurrent=table.flag("needs_recurrent"),
        suspect=table.text("suspect", ""),
        halves=table.flag("halves"),
    )
    if not rule.parts or not rule.kinds:
        raise table.fault("a cell needs parts and kinds")
    orders = [order for kind in rule.kinds for order in (kind.gates, kind.input_gates)]
    if any(len(set(order)) != len(order) for order in orders):
        raise table.fault("a gate is named twice")
    return table.closed(rule)


def _matrix_rule(table: "_Table") -> MatrixRule:
    role = table.one_of("role", {*ROLES, NO_ROLE})
    return table.closed(MatrixRule(table.pattern(), role, table.flag("transposed")))


def _drop_rule(table: "_Table") -> DropRule:
    head = table.text("head", "")
    reason = table.text("reason")
    if head:
        whole = table.compiled(f"(?:{head})(?:/.*)?")
        return table.closed(DropRule(None, whole, reason))
    return table.closed(DropRule(table.pattern(), None, reason))


def _tokens(table: "_Table") -> Tokens:
    return table.closed(
        Tokens(
            table.compiled(table.text("recurrent")),
            frozenset(table.texts("exempt")),
            table.compiled(table.text("exempt_component")),
        )
    )


class _Table:
    """A TOML table that knows where it stands, and which of its keys nobody asked for."""

    def __init__(self, data: Mapping[str, Any], file: str, where: str) -> None:
        self._data = dict(data)
        self._file = file
        self._where = where

    def fault(self, message: str) -> LayoutError:
        return LayoutError(f"{self._where}: {message}", path=self._file)

    def closed(self, value: T) -> T:
        """Return `value`, unless the table has keys that were not read."""
        if self._data:
            raise self.fault(f"unknown key {next(iter(self._data))!r}")
        return value

    def _take(self, key: str, kind: type[T], default: T | None) -> T:
        value = self._data.pop(key, default)
        if value is None:
            raise self.fault(f"key {key!r} is missing")
        # bool is an int in Python, and never what a number should be
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.fault(f"key {key!r} must be of type {kind.__name__}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        return self._take(key, str, default)

    def integer(self, key: str) -> int:
        return self._take(key, int, None)

    def real(self, key: str) -> float:
        return self._take(key, float, 0.0)

    def flag(self, key: str) -> bool:
        return self._take(key, bool, False)

    def one_of(self, key: str, allowed: set[str], default: str | None = None) -> str:
        value = self.text(key, default)
        if value not in allowed:
            raise self.fault(f"key {key!r} must be one of {', '.join(sorted(allowed))}")
        return value

    def texts(self, key: str, default: list[str] | None = None) -> tuple[str, ...]:
        values = self._take(key, list, default)
        if not all(isinstance(value, str) for value in values):
            raise self.fault(f"key {key!r} must be a list of strings")
        return tuple(values)

    def mapping(self, key: str, allowed: frozenset[str]) -> dict[str, str]:
        values = self._take(key, dict, {})
        for name, value in values.items():
            if value not in allowed:
                raise self.fault(f"{key}.{name!r} must be one of {', '.join(sorted(allowed))}")
        return values

    def tables(self, key: str) -> Iterator["_Table"]:
        values = self._data.pop(key, [])
        values = [values] if isinstance(values, dict) else values
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise self.fault(f"key {key!r} must hold tables")
        for i, value in enumerate(values):
            yield _Table(value, self._file, f"{key}[{i}]")

    def compiled(self, source: str) -> re.Pattern[str]:
        try:
            pattern = re.compile(source, re.ASCII | re.DOTALL)
        except re.error as error:
            raise self.fault(f"pattern {source!r} doesn't compile: {error}") from error
        if unknown := set(pattern.groupindex) - _GROUPS:
            raise self.fault(f"pattern {source!r} has an unknown group {min(unknown)!r}")
        return pattern

    def pattern(self) -> Pattern:
        leaf = self.compiled(self.text("leaf"))
        scope, wrapper = self.text("scope", ""), self.text("wrapper", "")
        if not scope and not wrapper:
            return Pattern(leaf, None, 0)
        source = (f"(?:{scope})/" if scope else "") + (f"(?:(?:{wrapper})/)?" if wrapper else "")
        return Pattern(leaf, self.compiled(source), source.replace("[^/]", "").count("/"))
