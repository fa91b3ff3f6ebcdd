"""One walk over the records of a torch pickle, which finds every tensor and the path to it.

The walk keeps its own stack and counts its steps: a file decides how deep and how often its objects
refer to one another, and a few bytes of it can ask for more visits than there is time for.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from ckptshrink.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError
from ckptshrink.io.pickle_records import (
    Items,
    Made,
    Pairs,
    Persistent,
    Value,
    as_items,
    as_pairs,
    attribute,
    attributes,
    class_name,
    without_collection,
)
from ckptshrink.io.torch_records import (
    Cell,
    dotted,
    is_module,
    is_scalar,
    is_script_object,
    key_cell,
    key_text,
    scalar_cell,
)
from ckptshrink.io.torch_tensors import StoredView, TensorTable

MAX_REPEATS: Final = 100_000
"""Values looked at again because another object refers to them too. Each one is looked at once."""

MAX_NAME_CHARS: Final = 8_000_000
"""Characters of all names together: 100,000 tensors with long names."""

MAX_DEPTH: Final = 400
"""Objects in objects. Python itself pickles no deeper than its recursion limit of 1,000 allows."""

MAX_TREE_DEPTH: Final = 100
"""Dicts in dicts that are to be written again: what JSON's own recursion is sure to bear."""

MAX_VALUES: Final = 100_000
"""Plain values of a state dict that are carried along; a larger vocabulary is left out."""

MAX_NOTED: Final = 5
"""Objects left out that are named one by one."""

STATE, EXTRA, PLAIN, REST, TREE, SCRIPT = "state", "extra", "plain", "rest", "tree", "script"
"""What a walk is after: see `Walker`."""

_REGISTRIES: Final = ("_parameters", "_buffers", "_modules")


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
    """Finds tensors under a value, in one of six ways.

    - `STATE`: the state dict of a module, in the order in which torch would list it.
    - `EXTRA`: what a module and its submodules hold beside it, after all `STATE` walks.
    - `PLAIN`: an attribute of a module, which may repeat parameters (``_flat_weights``): whoever
      rewrites a file must know every name under which a storage can be reached.
    - `REST`: any other object, without the tensors that are known already.
    - `TREE`: dicts, lists and tuples, whose structure is kept to be written again.
    - `SCRIPT`: the state dict of a module of TorchScript.

    Attributes
    ----------
    table : TensorTable
    path : Path
        The file, for messages.
    known : dict of int to str
        Names of tensors by the identity of their record. An optimizer keys its state by them.
    module_classes : dict of str to None
        Classes of the modules met, in order.
    flat_names : dict of str to list of str
        For a recurrent module by its path: the weights that its ``_flat_weights`` stand for.
    opaque : list of (str, str)
        Path and class of what the structure leaves out, the first `MAX_NOTED`.
    n_opaque : int
        How many there were.
    """

    table: TensorTable
    path: Path
    known: dict[int, str] = field(default_factory=dict)
    module_classes: dict[str, None] = field(default_factory=dict)
    flat_names: dict[tuple[str, ...], list[str]] = field(default_factory=dict)
    opaque: list[tuple[str, str]] = field(default_factory=list)
    n_opaque: int = 0
    _seen: set[int] = field(default_factory=set)
    _visited: set[tuple[int, str]] = field(default_factory=set)
    _repeats: int = 0
    _name_chars: int = 0
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
        with without_collection():
            return self._walk(value, role, path, cell)

    def _walk(
        self, value: Value, role: str, path: tuple[str, ...], cell: Cell | None
    ) -> list[Found]:
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
                    found.append(Found(self._name(task), view, task.value, task.cell))
                continue
            if id(task.value) in open_ids:
                self._refer_back(task)
                continue
            self._check_limits(task)
            if below := list(self._below(task)):
                open_ids.add(id(task.value))
                stack.append(_Task(task.value, task.role, leaving=True))
                stack.extend(reversed(below))
        return found

    def _view(self, task: _Task) -> StoredView | None:
        if not isinstance(task.value, Made | Persistent):
            return None
        try:
            return self.table.view(task.value)
        except CheckpointError as error:
            error.tensor = dotted(task.path())
            raise

    def _name(self, task: _Task) -> tuple[str, ...]:
        path = task.path()
        self._name_chars += sum(map(len, path)) + len(path)
        if self._name_chars > MAX_NAME_CHARS:
            raise self._unsafe(f"its names take more than {MAX_NAME_CHARS:,} characters")
        return path

    def _check_limits(self, task: _Task) -> None:
        """Count what is visited again, and how deep: the file's size bounds only first visits."""
        visit = (id(task.value), task.role)
        if visit in self._visited:
            self._repeats += _size(task.value)
        self._visited.add(visit)
        if self._repeats > MAX_REPEATS:
            raise self._unsafe("its objects refer to one another too often for a checkpoint")
        if task.depth > (MAX_TREE_DEPTH if task.role == TREE else MAX_DEPTH):
            raise self._unsafe(f"its objects nest more than {task.depth - 1} levels deep")

    def _unsafe(self, message: str) -> UnsafeCheckpointError:
        return UnsafeCheckpointError(message, path=self.path)

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
        if task.role == SCRIPT:
            return self._script(task)
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
        others = [(k, v) for k, v in attributes(module) or () if k not in _REGISTRIES]
        # The list last: a masked weight is known by its own name, and the list refers to it.
        others.sort(key=lambda item: item[0] == "_flat_weights")
        yield from _tasks(task, inner, others)
        yield from _tasks(task, task.role, _registry(module, "_modules"))

    def _script(self, task: _Task) -> Iterator[_Task]:
        """Yield the parameters and buffers of a module of TorchScript, then its submodules.

        All attributes are in one list, parameters and buffers first and then ``training``, since
        torch makes the type of a module so. A tensor after it is no part of the state dict.
        """
        if not is_script_object(task.value):
            return
        self.module_classes.setdefault(class_name(task.value))
        if flat := _names(attribute(task.value, "_flat_weights_names")):
            self.flat_names[task.path()] = flat
        members = list(attributes(task.value) or ())
        names = [name for name, _ in members]
        n_state = names.index("training") if "training" in names else len(members)
        yield from _tasks(task, SCRIPT, members[:n_state])
        modules = (item for item in members[n_state:] if is_script_object(item[1]))
        yield from _tasks(task, SCRIPT, modules)

    def _note_module(self, task: _Task) -> None:
        self._seen.add(id(task.value))
        self.module_classes.setdefault(class_name(task.value))
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
        yield from _tasks(task, task.role, attributes(value) or ())
        listed = items.items if items is not None else []
        if pairs is not None:
            for i, (key, item) in enumerate(pairs):
                if not is_scalar(item):  # before its name is made: vocabularies are large
                    yield _Task(item, task.role, self._part(key, i), task, task.depth + 1)
        elif isinstance(value, Made) and items is None:
            listed = value.args
            if isinstance(value.state, Items):  # a state that is no dict of attributes
                yield from _tasks(task, task.role, [("state", value.state)])
        yield from _tasks(task, task.role, ((str(i), item) for i, item in enumerate(listed)))

    def _part(self, key: Value, index: int) -> str:
        """Return a key as a part of a name; one that is a parameter by the parameter's name."""
        text = key_text(key)
        return self.known.get(id(key), str(index)) if text is None else text

    def _tree(self, task: _Task) -> Iterator[_Task]:
        """Yield the parts of a dict, list or tuple and begin its node of the structure."""
        value = task.value
        cell = task.cell if task.cell is not None else {}
        pairs, items = as_pairs(value), as_items(value)
        inner = [v for _, v in pairs] if pairs is not None else items.items if items else []
        is_plain = pairs is not None or (items is not None and items.kind in ("list", "tuple"))
        if is_module(value) or not is_plain:
            self._leave_out(task, class_name(value))
        elif self._too_many(inner):
            self._leave_out(task, f"{class_name(value)} of {len(inner):,} values")
        if "opaque" in cell:
            rest = replace(task, role=REST, cell=None)
            yield from self._module(rest) if is_module(value) else self._object(rest)
            return
        # A dict of a class of its own can have tensors as attributes too.
        yield from _tasks(task, REST, attributes(value) or ())
        cells = [Cell() for _ in inner]
        if pairs is not None:
            keys = [self._part(key, i) for i, (key, _) in enumerate(pairs)]
            cell["dict"] = [[key_cell(pair[0]), c] for pair, c in zip(pairs, cells, strict=True)]
        else:
            keys = [str(i) for i in range(len(inner))]
            cell[items.kind if items else "list"] = cells
        for part, item, below in zip(keys, inner, cells, strict=True):
            if is_scalar(item):
                below.update(scalar_cell(item))
            else:
                yield _Task(item, TREE, part, task, task.depth + 1, below)

    def _too_many(self, inner: list[Value]) -> bool:
        """Count values to carry along; tell whether these are too many and have no tensor."""
        scalars = sum(map(is_scalar, inner))
        nested = sum(isinstance(value, Items | Pairs) for value in inner)
        plain = scalars + nested
        # A long list of tuples (merges of a tokenizer) is left out as a whole, not in its middle.
        many = self._values + plain > MAX_VALUES or nested > MAX_VALUES // 10
        if many and plain == len(inner):
            return True
        self._values += plain
        return False

    def _leave_out(self, task: _Task, what: str) -> None:
        if task.cell is not None:
            task.cell["opaque"] = what
        self.n_opaque += 1
        if self.n_opaque <= MAX_NOTED:
            self.opaque.append((dotted(task.path()), what))


def _size(value: Value) -> int:
    """Return about how many values a visit of this record looks at."""
    if isinstance(value, Items):
        return 1 + len(value.items)
    if isinstance(value, Pairs):
        return 1 + len(value.pairs)
    if not isinstance(value, Made):
        return 1
    own = len(value.args) + len(value.items or ()) + len(value.pairs or ())
    return 1 + own + sum(_size(v) for v in (*value.args, value.state) if not isinstance(v, Made))


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
