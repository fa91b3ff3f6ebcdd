"""Records of what a pickle holds: names and calls that were never looked up or made.

Containers are records too, and not lists and dicts: hashing a dict key of the file's choice would
let it spend our time (a tuple of itself twice, 60 levels deep, takes years to hash).
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias


@dataclass(frozen=True, slots=True, eq=False)
class Token:
    """A name that a pickle refers to. Nothing is imported."""

    module: str
    name: str

    @property
    def qualified(self) -> str:
        """The dotted name, with Python 2's ``__builtin__`` and ``copy_reg`` as they are today."""
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(self.module, self.module)
        return f"{module}.{self.name}"


@dataclass(slots=True, eq=False, repr=False)
class Items:
    """A list, tuple, set or frozenset; `kind` says which."""

    kind: str
    items: list["Value"]


@dataclass(slots=True, eq=False, repr=False)
class Pairs:
    """A dict: its keys and values in stored order, repeated keys included."""

    pairs: list[tuple["Value", "Value"]]


@dataclass(slots=True, eq=False, repr=False)
class Made:
    """What calling `target` would have made.

    Attributes
    ----------
    target : Value
        The callable or class; a `Token` in every honest file.
    args : list of Value
        Positional arguments.
    kwargs : Pairs or None
    state : Value
        What BUILD would have set; None if there was none.
    items : list of Value or None
        What was appended or added to it.
    pairs : list of (Value, Value) or None
        What was set on it by key.
    """

    target: "Value"
    args: list["Value"]
    kwargs: Pairs | None = None
    state: "Value" = None
    items: list["Value"] | None = None
    pairs: list[tuple["Value", "Value"]] | None = None


@dataclass(slots=True, eq=False, repr=False)
class Persistent:
    """A reference to something outside the pickle: a storage, or a class with its source text."""

    pid: "Value"


Value: TypeAlias = (
    bool | int | float | str | bytes | Token | Items | Pairs | Made | Persistent | None
)
"""Everything that can come out of a pickle."""

_DICTS: Final = frozenset(
    {"collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"}
)
_SEQUENCES: Final = {
    "builtins.list": "list",
    "builtins.tuple": "tuple",
    "builtins.set": "set",
    "builtins.frozenset": "frozenset",
    "torch.Size": "tuple",
    **dict.fromkeys(
        (f"torch.jit._pickle.build_{kind}list" for kind in ("tensor", "int", "double", "bool")),
        "list",
    ),
}
_TYPED: Final = "torch.jit._pickle.restore_type_tag"
CONSTRUCTORS: Final = frozenset({"copyreg._reconstructor", "copyreg.__newobj__"})
"""Functions through which old protocols make an object: its class is their first argument."""


def class_name(value: Value) -> str:
    """Return the dotted name of a record's class, or of the function that would make it."""
    if isinstance(value, Made):
        target = value.target
        if isinstance(target, Token) and target.qualified in CONSTRUCTORS and value.args:
            target = value.args[0]
        return _name_of(target)
    if isinstance(value, Items):
        return value.kind
    if isinstance(value, Pairs):
        return "dict"
    if isinstance(value, Token | Persistent):
        return _name_of(value)
    return type(value).__name__


def _name_of(target: Value) -> str:
    """Return the name of a class: by token, or by an id with its source, which old torch saved."""
    if isinstance(target, Persistent):
        # ("module", class, file, source) in the legacy container, the last three in the tar one
        parts = target.pid.items[:2] if isinstance(target.pid, Items) else []
        target = next((part for part in parts if isinstance(part, Token)), None)
    return target.qualified if isinstance(target, Token) else "object"


def as_pairs(value: Value) -> list[tuple[Value, Value]] | None:
    """Return the keys and values of anything dict-like, or None.

    An OrderedDict of Python 2 is a call on a list of two-item lists; of Python 3, an empty call
    whose items are set one by one.
    """
    value = _untagged(value)
    if isinstance(value, Pairs):
        return value.pairs
    if not isinstance(value, Made):
        return None
    if class_name(value) not in _DICTS:
        return value.pairs
    given: list[tuple[Value, Value]] = []
    for arg in value.args:
        if isinstance(arg, Pairs):
            given.extend(arg.pairs)
        elif isinstance(arg, Items):
            given.extend(
                (pair.items[0], pair.items[1])
                for pair in arg.items
                if isinstance(pair, Items) and len(pair.items) == 2
            )
    return given + (value.pairs or [])


def as_items(value: Value) -> Items | None:
    """Return anything list-, tuple- or set-like as a record of its kind, or None."""
    value = _untagged(value)
    if isinstance(value, Items):
        return value
    if not isinstance(value, Made):
        return None
    kind = _SEQUENCES.get(class_name(value))
    if kind is not None:
        given = value.args[0].items if value.args and isinstance(value.args[0], Items) else []
        return Items(kind, given + (value.items or []))
    return Items("list", value.items) if value.items is not None else None


def _untagged(value: Value) -> Value:
    """Return a list or dict of TorchScript without the call that says of what type it is."""
    if isinstance(value, Made) and value.args and class_name(value) == _TYPED:
        return value.args[0]
    return value


def attributes(value: Value) -> list[tuple[str, Value]] | None:
    """Return the attributes that an object's state would set, or None if it has no such state."""
    if not isinstance(value, Made):
        return None
    state = value.state
    parts = [state]
    if isinstance(state, Items) and state.kind == "tuple" and len(state.items) == 2:
        parts = state.items  # (instance dict, slots)
    found = [part.pairs for part in parts if isinstance(part, Pairs)]
    if not found:
        return None
    return [(key, item) for pairs in found for key, item in pairs if isinstance(key, str)]


def attribute(value: Value, name: str) -> Value:
    """Return one attribute of an object, None where it has none; of several, the last wins."""
    found = [item for key, item in attributes(value) or () if key == name]
    return found[-1] if found else None


@contextmanager
def without_collection() -> Iterator[None]:
    """Keep Python from looking for cycles while records are made by the hundred thousand.

    It would go over all of them again and again, and find none: on nested tuples that took three
    quarters of the time.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
