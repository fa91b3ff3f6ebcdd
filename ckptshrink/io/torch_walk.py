"""One walk over the records of a torch pickle, which finds every tensor and the path to it.

The walk keeps its own stack and counts its steps: a file decides how deep and how often its objects
refer to one another, and a few bytes of it can ask for more visits than there is time for.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ckptshrink.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError
from ckptshrink.io.pickle_records import (
    Items,
    Made,
    Value,
    as_items,
    as_pairs,
    attribute,
    attributes,
    class_name,
)
from ckptshrink.io.torch_tensors import StoredView, TensorTable, is_scalar

MAX_VISITS: Final = 2_000_000
"""Values looked at: ten times those of the largest module pickle seen, its vocabulary included."""

MAX_DEPTH: Final = 400
"""Objects in objects. Python itself pickles no deeper than its recursion limit of 1,000 allows."""

MAX_TREE_DEPTH: Final = 100
"""Dicts in dicts that are to be written again: what JSON's own recursion is sure to bear."""

MAX_VALUES: Final = 100_000
"""Plain values of a state dict that are carried along; a larger vocabulary is left out."""

STATE, EXTRA, PLAIN, REST, TREE = "state", "extra", "plain", "rest", "tree"
"""What a walk is after: see `Walker`."""

_REGISTRIES: Final = ("_parameters", "_buffers", "_modules")

Cell = dict[str, Any]
"""A node of the structure that is written again, filled in when the walk comes to it."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A tensor, the names that lead to it, its record, and its node of the structure, if any."""

    path: tuple[str, ...]
    view: StoredView
    record: Value
    cell: Cell | None


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """A value to visit. Its path is a chain, joined only where there is a tensor."""

    value: Value
    role: str
    part: str = ""
    parent: "_Task | None" = None
    depth: int = 0
    cell: Cell | None = None
    leaving: bool = False

    def path(self) -> tuple[str, ...]:
        parts: list[str] = []
        task: _Task | None = self
        while task is not None and task.parent is not None:
            parts.append(task.part)
            task = task.parent
        return tuple(reversed(parts))


@dataclass(slots=True)
class Walker:
    """Finds tensors under a value, in one of five ways.

    - `STATE`: the state dict of a module, in the order in which torch would list it.
    - `EXTRA`: what a module and its submodules hold beside it, after all `STATE` walks.
    - `PLAIN`: an attribute of a module, which may repeat parameters (``_flat_weights``): whoever
      rewrites a file must know every name under which a storage can be reached.
    - `REST`: any other object, without the tensors that are known already.
    - `TREE`: dicts, lists and tuples, whose structure is kept to be written again.

    Attributes
    ----------
    table : TensorTable
    path : Path
        The file, for messages.
    known : dict of int to str
        Names of tensors by the identity of their record. An optimizer keys its state by them.
    module_classes : list of str
        Classes of the modules met, each once.
    flat_names : dict of str to list of str
        For a recurrent module by its path: the weights that its ``_flat_weights`` stand for.
    opaque : list of (str, str)
        Path and class of what the structure leaves out.
    """

    table: TensorTable
    path: Path
    known: dict[int, str] = field(default_factory=dict)
    module_classes: list[str] = field(default_factory=list)
    flat_names: dict[tuple[str, ...], list[str]] = field(default_factory=dict)
    opaque: list[tuple[str, str]] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)
    _visits: int = 0
    _values: int = 0

    def walk(
        self, value: Value, role: str, path: tuple[str, ...] = (), cell: Cell | None = None
    ) -> list[Found]:
        """Return the tensors under `value`, which lies at `path`, in stored order.

        Raises
        ------
        UnsafeCheckpointError
            The objects nest too deeply or refer to one another too often.
        CorruptCheckpointError
            A module contains itself, or a tensor is impossible.
        """
        found: list[Found] = []
        open_ids: set[int] = set()
        stack = [_task_at(path, value, role, cell)]
        while stack:
            task = stack.pop()
            if task.leaving:
                open_ids.discard(id(task.value))
                continue
            view = self._view(task)
            if view is not None:
                if task.role != REST or id(task.value) not in self.known:
                    found.append(Found(task.path(), view, task.value, task.cell))
                continue
            if id(task.value) in open_ids:
                self._refer_back(task)
                continue
            below = list(self._below(task))
            self._spend(task, len(below))
            if below:
                open_ids.add(id(task.value))
                stack.append(_Task(task.value, task.role, leaving=True))
                stack.extend(reversed(below))
        return found

    def _view(self, task: _Task) -> StoredView | None:
        if not isinstance(task.value, Made):
            return None
        try:
            return self.table.view(task.value)
        except CheckpointError as error:
            error.tensor = dotted(task.path())
            raise

    def _spend(self, task: _Task, n: int) -> None:
        self._visits += n
        if self._visits > MAX_VISITS:
            raise UnsafeCheckpointError(
                f"its objects refer to one another more than {MAX_VISITS:,} times", path=self.path
            )
        if task.depth > (MAX_TREE_DEPTH if task.role == TREE else MAX_DEPTH):
            raise UnsafeCheckpointError(
                f"its objects nest more than {task.depth - 1} levels deep", path=self.path
            )

    def _refer_back(self, task: _Task) -> None:
        """Stop at an object that contains itself: a parent link of a tree, or a trap."""
        if task.role == STATE:
            raise CorruptCheckpointError(
                f"the module {dotted(task.path())!r:.200} contains itself", path=self.path
            )
        if task.cell is not None:
            self._leave_out(task, "an object that contains itself")

    def _below(self, task: _Task) -> Iterator[_Task]:
        if task.role == TREE:
            return self._tree(task)
        if is_module(task.value):
            return self._module(task)
        if task.role == STATE:
            return iter(())  # a parameter of None, or of a class that has no values
        return self._object(task)

    def _module(self, task: _Task) -> Iterator[_Task]:
        """Yield what a module holds. Its state dict is listed once, before anything else of it."""
        module = task.value
        hidden = _names(attribute(module, "_non_persistent_buffers_set"))
        buffers = list(_registry(module, "_buffers"))
        if task.role == STATE:
            self._note_module(task)
            yield from _tasks(task, STATE, _registry(module, "_parameters"))
            yield from _tasks(task, STATE, ((k, v) for k, v in buffers if k not in hidden))
            yield from _tasks(task, STATE, _registry(module, "_modules"))
            return
        listed = id(module) in self._seen
        if listed and task.role != EXTRA:
            return
        inner = PLAIN if task.role == EXTRA else task.role
        if not listed:
            self._note_module(task)
            yield from _tasks(task, inner, _registry(module, "_parameters"))
        yield from _tasks(task, inner, ((k, v) for k, v in buffers if not listed or k in hidden))
        others = ((k, v) for k, v in attributes(module) or () if k not in _REGISTRIES)
        yield from _tasks(task, inner, others)
        yield from _tasks(task, task.role, _registry(module, "_modules"))

    def _note_module(self, task: _Task) -> None:
        self._seen.add(id(task.value))
        name = class_name(task.value)
        if name not in self.module_classes:
            self.module_classes.append(name)
        flat = attribute(task.value, "_flat_weights_names") or attribute(task.value, "_all_weights")
        names = _names(flat)
        if names:
            self.flat_names[task.path()] = names

    def _object(self, task: _Task) -> Iterator[_Task]:
        """Yield the parts of anything that is no module: a container, or an object's attributes."""
        value = task.value
        pairs, items = as_pairs(value), as_items(value)
        if isinstance(value, Made) and pairs is None and items is None:
            if id(value) in self._seen:
                return
            self._seen.add(id(value))
        parts: list[tuple[str, Value]] = list(attributes(value) or ())
        if pairs is not None:
            parts += [(self._part(key, i), item) for i, (key, item) in enumerate(pairs)]
        elif items is not None:
            parts += [(str(i), item) for i, item in enumerate(items.items)]
        elif isinstance(value, Made):
            parts += [(str(i), arg) for i, arg in enumerate(value.args)]
            if isinstance(value.state, Items):
                parts.append(("state", value.state))
        yield from _tasks(task, task.role, parts)

    def _part(self, key: Value, index: int) -> str:
        """Return a key as a part of a name; one that is a parameter by the parameter's name."""
        text = key_text(key)
        return self.known.get(id(key), str(index)) if text is None else text

    def _tree(self, task: _Task) -> Iterator[_Task]:
        """Yield the parts of a dict, list or tuple and begin its node of the structure."""
        value = task.value
        cell = task.cell if task.cell is not None else {}
        pairs, items = as_pairs(value), as_items(value)
        if is_module(value) or (pairs is None and (items is None or "set" in items.kind)):
            self._leave_out(task, class_name(value))
            rest = replace(task, role=REST, cell=None)
            yield from self._module(rest) if is_module(value) else self._object(rest)
            return
        inner = [v for _, v in pairs] if pairs is not None else items.items if items else []
        scalars = sum(map(is_scalar, inner))
        if scalars == len(inner) and self._values + scalars > MAX_VALUES:
            self._leave_out(task, f"{class_name(value)} of {scalars:,} values")
            return
        self._values += scalars
        self._spend(task, scalars)
        cells = [Cell() for _ in inner]
        if pairs is not None:
            keys = [self._part(key, i) for i, (key, _) in enumerate(pairs)]
            cell["dict"] = [[_key_cell(pair[0]), c] for pair, c in zip(pairs, cells, strict=True)]
        else:
            keys = [str(i) for i in range(len(inner))]
            cell[items.kind if items else "list"] = cells
        for part, item, below in zip(keys, inner, cells, strict=True):
            if is_scalar(item):
                below.update(scalar_cell(item))
            else:
                yield _Task(item, TREE, part, task, task.depth + 1, below)

    def _leave_out(self, task: _Task, what: str) -> None:
        if task.cell is not None:
            task.cell["opaque"] = what
        self.opaque.append((dotted(task.path()), what))


def _task_at(path: tuple[str, ...], value: Value, role: str, cell: Cell | None) -> _Task:
    """Return the first task of a walk, below a chain that stands for its path."""
    task = _Task(None if path else value, role, cell=cell)
    for depth, part in enumerate(path, 1):
        task = _Task(value if depth == len(path) else None, role, part, task, depth, cell)
    return task


def _tasks(task: _Task, role: str, parts: Iterable[tuple[str, Value]]) -> Iterator[_Task]:
    for part, value in parts:
        if not is_scalar(value):
            yield _Task(value, role, part, task, task.depth + 1)


def dotted(path: tuple[str, ...]) -> str:
    """Return the name of a tensor from the path that leads to it."""
    return ".".join(path) if path else "tensor"


def is_encodable(text: str) -> bool:
    """Tell whether a string can be written as UTF-8: lone surrogates of a pickle can't."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def is_module(value: Value) -> bool:
    """Tell whether an object is a torch module, of whatever class."""
    names = {name for name, _ in attributes(value) or ()}
    return {"_parameters", "_modules"} <= names


def is_optimizer(value: Value) -> bool:
    """Tell whether an object is a torch optimizer, of whatever class."""
    names = {name for name, _ in attributes(value) or ()}
    return {"state", "param_groups"} <= names


def key_text(key: Value) -> str | None:
    """Return a dict key as a part of a name: its ``str()``; None for an object."""
    if isinstance(key, bytes):
        return str(key, "utf-8", "replace")
    if is_scalar(key):
        return str(key)
    if isinstance(key, Items) and all(map(is_scalar, key.items)):
        inner = ", ".join(repr(item) for item in key.items)
        return f"({inner})" if len(key.items) != 1 else f"({inner},)"
    return None


def scalar_cell(value: Value) -> Cell:
    """Return the structure's node of a plain value; JSON has no infinity, which losses begin at."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, bytes) or (isinstance(value, str) and not is_encodable(value)):
        return {"opaque": type(value).__name__}
    return {"value": value}


def _key_cell(key: Value) -> str | Cell:
    if isinstance(key, str) and is_encodable(key):
        return key
    return scalar_cell(key) if is_scalar(key) else {"opaque": class_name(key)}


def _registry(module: Value, name: str) -> Iterator[tuple[str, Value]]:
    for key, value in as_pairs(attribute(module, name)) or ():
        yield key_text(key) or "", value


def _names(value: Value) -> list[str]:
    """Return the strings of a list or set, or of a list of lists."""
    outer = as_items(value)
    names: list[str] = []
    for item in outer.items if outer else ():
        inner = as_items(item)
        names += [n for n in (inner.items if inner else [item]) if isinstance(n, str)]
    return names
