"""Which records are modules and optimizers, and how keys and plain values are written down."""

import math
from typing import Any, Final, TypeAlias

from ckptshrink.io.pickle_records import (
    Items,
    Made,
    Pairs,
    Persistent,
    Token,
    Value,
    attributes,
    class_name,
)

_RECORDS: Final = frozenset({Items, Pairs, Made, Persistent, Token})

Cell: TypeAlias = dict[str, Any]
"""A node of the structure that is written again; the walk fills it in when it comes to it."""


def is_scalar(value: Value) -> bool:
    """Tell whether a value is a number, a flag, a string or None, and so holds no tensor."""
    return type(value) not in _RECORDS


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


def is_script_object(value: Value) -> bool:
    """Tell whether an object is one of a TorchScript program: a module, or a class of its own."""
    return isinstance(value, Made) and class_name(value).startswith("__torch__.")


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


def key_cell(key: Value) -> str | Cell:
    """Return a dict key of the structure: a string as it is, other plain keys as nodes."""
    if isinstance(key, str) and is_encodable(key):
        return key
    return scalar_cell(key) if is_scalar(key) else {"opaque": class_name(key)}
