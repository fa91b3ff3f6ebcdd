"""The plain structure around a checkpoint's tensors: dicts, lists and scalars, as JSON.

A node is one of ``{"dict": [[key, node], ...]}``, ``{"list": [...]}``, ``{"tuple": [...]}``,
``{"tensor": name}``, ``{"value": scalar}``, ``{"float": "inf", "-inf" or "nan"}`` and
``{"opaque": class name}``.
"""

from collections.abc import Collection, Iterator
from typing import Any


def tensors_in(node: Any) -> Iterator[str]:
    """Yield the names of the tensors in a node, in stored order."""
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if not isinstance(current, dict):
            continue
        if "tensor" in current:
            yield current["tensor"]
        waiting += reversed([child for _, child in current.get("dict", ())])
        waiting += reversed([*current.get("list", ()), *current.get("tuple", ())])


def without(node: Any, dropped: Collection[str]) -> Any:
    """Return a node without the entries whose tensors were all dropped.

    A dict loses such an entry, a list or tuple keeps its length and gets None there.
    """
    if not isinstance(node, dict):
        return node
    if "dict" in node:
        return {
            "dict": [
                [key, without(child, dropped)]
                for key, child in node["dict"]
                if not _all_dropped(child, dropped)
            ]
        }
    for kind in ("list", "tuple"):
        if kind in node:
            return {
                kind: [
                    {"value": None} if _all_dropped(child, dropped) else without(child, dropped)
                    for child in node[kind]
                ]
            }
    return node


def unwrapped(node: Any, dropped: Collection[str]) -> Any:
    """Return `without` of a whole file, and a model alone where its optimizer was dropped.

    fastai's loaders look for exactly the two keys ``model`` and ``opt``, and take every other dict
    for the state dict itself, which is how they save a model without its optimizer.
    """
    kept = without(node, dropped)
    if _keys(node) == ["model", "opt"] and _keys(kept) == ["model"]:
        return kept["dict"][0][1]
    return kept


def _keys(node: Any) -> list[Any]:
    return [key for key, _ in node.get("dict", ())] if isinstance(node, dict) else []


def _all_dropped(node: Any, dropped: Collection[str]) -> bool:
    names = list(tensors_in(node))
    return bool(names) and all(name in dropped for name in names)
