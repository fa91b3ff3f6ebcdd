"""What a torch checkpoint holds: the names of its tensors, and the structure to write again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from ckptshrink.errors import CheckpointError, CorruptCheckpointError
from ckptshrink.io.pickle_records import Value, as_items, as_pairs, attributes, class_name
from ckptshrink.io.torch_records import (
    Cell,
    dotted,
    is_encodable,
    is_module,
    is_optimizer,
    key_text,
)
from ckptshrink.io.torch_tensors import StoredView, TensorTable
from ckptshrink.io.torch_walk import EXTRA, REST, STATE, TREE, Found, Walker

_BESIDE_WEIGHTS: Final = frozenset(
    {
        "opt", "optim", "optimizer", "optimizers", "optimizer_state", "optimizer_state_dict",
        "optimizer_states", "scheduler", "schedulers", "lr_scheduler", "lr_schedulers",
        "scheduler_state_dict", "scaler", "grad_scaler", "amp", "callbacks", "loops",
    }
)  # fmt: skip
"""Keys under which training scripts put what is no weight. Generators' states end in rng_state."""

_MODEL_WRAPPERS: Final = frozenset({"module", "_orig_mod"})
"""DataParallel, DDP and torch's AveragedModel; torch.compile."""

Parts: TypeAlias = list[tuple[str, Value]]


@dataclass(frozen=True, slots=True)
class Graph:
    """The tensors of a checkpoint by name, in stored order, and what is known of the rest.

    Attributes
    ----------
    views : mapping of str to StoredView
    container : mapping
        `Checkpoint.container`.
    notes : tuple of str
    flat_names : mapping of str to tuple of str
        For a recurrent module by its name: the weights that its ``_flat_weights`` stand for.
    """

    views: Mapping[str, StoredView]
    container: Mapping[str, Any]
    notes: tuple[str, ...]
    flat_names: Mapping[str, tuple[str, ...]]


def read_graph(root: Value, table: TensorTable, path: Path) -> Graph:
    """Name every tensor under the root of a pickle.

    Parameters
    ----------
    root : Value
        What was saved.
    table : TensorTable
        Of the same pickle.
    path : Path
        For messages.

    Raises
    ------
    CorruptCheckpointError
        Two tensors have one name, or a tensor is impossible.
    UnsafeCheckpointError
        A limit is exceeded.
    CheckpointError
        There are no tensors, or one has no values of its own.
    """
    parts = _top_level(root)
    graph = (
        _whole_modules(root, parts, table, path)
        if any(is_module(value) for _, value in parts)
        else _plain_structure(root, table, path)
    )
    if not graph.views:
        raise CheckpointError(
            f"holds no tensors: what was saved is of class {class_name(root)}", path=path
        )
    return graph


def _top_level(root: Value) -> list[tuple[str, Value]]:
    """Return what lies directly in the saved object, or the object itself if it is a module."""
    if is_module(root):
        return [("", root)]
    pairs, items = as_pairs(root), as_items(root)
    if pairs is not None:
        texts = [(key_text(key), value) for key, value in pairs]
        return [(str(i) if t is None else t, value) for i, (t, value) in enumerate(texts)]
    if items is not None:
        return [(str(i), value) for i, value in enumerate(items.items)]
    return list(attributes(root) or ())


def _whole_modules(root: Value, parts: Parts, table: TensorTable, path: Path) -> Graph:
    """Name the tensors of pickled modules as their state dicts would, then everything else."""
    walker = Walker(table, path)
    prefixes = _module_prefixes(parts, Walker(table, path), in_list=as_items(root) is not None)
    states = {i: walker.walk(parts[i][1], STATE, prefix) for i, prefix in prefixes.items()}
    found = [tensor for state in states.values() for tensor in state]
    for tensor in found:
        walker.known.setdefault(id(tensor.record), dotted(tensor.path))
    # What only repeats a parameter comes after it, so that it can refer to it by its name.
    for i, prefix in prefixes.items():
        found += walker.walk(parts[i][1], EXTRA, prefix)
    for i, key in enumerate(_rest_prefixes(parts)):
        if i not in prefixes:
            found += walker.walk(parts[i][1], REST, (key,))
    views = named(found, path, dotted)
    dicts = [
        {"dict": [[dotted(t.path[len(prefixes[i]) :]), {"tensor": dotted(t.path)}] for t in state]}
        for i, state in states.items()
        if state
    ]
    classes = list(walker.module_classes)
    optimizers = [class_name(value) for _, value in parts if is_optimizer(value)]
    optimizer_class = optimizers[0] if optimizers else None
    container = {
        "kind": "module",
        "structure": dicts[0] if len(dicts) == 1 else {"list": dicts},
        "optimizer_class": optimizer_class,
        "module_classes": classes,
    }
    notes = [f"whole-module pickle ({classes[0]}): read without its classes"]
    if optimizer_class is not None:
        notes.append(_optimizer_note(optimizer_class, views))
    return Graph(views, container, tuple(notes), flat_names_of(walker))


def _module_prefixes(parts: Parts, probe: Walker, *, in_list: bool) -> dict[int, tuple[str, ...]]:
    """Return the prefix of each module by its position, the one with the bare names first.

    A criterion can come before its model; the first module that has any state is the model.
    """
    modules = [i for i, (_, value) in enumerate(parts) if is_module(value)]
    model = next((i for i in modules if probe.walk(parts[i][1], STATE)), modules[0])
    others = [i for i in modules if i != model]
    if not in_list:
        return {model: ()} | {i: (parts[i][0],) for i in others}
    return {model: ()} | {
        i: ("criterion" if n == 0 else f"module{i}",) for n, i in enumerate(others)
    }


def _rest_prefixes(parts: Parts) -> list[str]:
    """Return the prefix of each part that is no module: its key, or ``optimizer`` if that is none.

    A list has no keys, and training scripts call an optimizer object by many.
    """
    prefixes = [key for key, _ in parts]
    if "optimizer" in prefixes:
        return prefixes
    for i, (key, value) in enumerate(parts):
        if is_optimizer(value) or (key.isdigit() and _is_optimizer_state(value)):
            prefixes[i] = "optimizer"
            break
    return prefixes


def _plain_structure(root: Value, table: TensorTable, path: Path) -> Graph:
    """Name the tensors of state dicts by their keys, and keep the structure around them."""
    walker = Walker(table, path)
    structure = Cell()
    found = walker.walk(root, TREE, cell=structure)
    parts = _top_level(root)
    prefix = dict(zip((key for key, _ in parts), _rest_prefixes(parts), strict=True))
    weights = _only_weights(parts, found)

    def full(names: tuple[str, ...]) -> str:
        return dotted((prefix.get(names[0], names[0]), *names[1:]) if names else names)

    def bare(names: tuple[str, ...]) -> str:
        return dotted(names[1:]) if names[0] == weights else full(names)

    name = full
    if weights is not None and len({bare(tensor.path) for tensor in found}) == len(found):
        name = bare
    views = named(found, path, name)
    for tensor in found:
        if tensor.cell is not None:
            tensor.cell["tensor"] = name(tensor.path)
    is_plain = as_pairs(root) is not None or as_items(root) is not None
    if "opaque" in structure:
        structure = {"dict": [[key, {"tensor": key}] for key in views]}
    container = {
        "kind": "state_dict" if is_plain else "object",
        "structure": structure,
        "optimizer_class": None,
        "module_classes": list(walker.module_classes),
    }
    notes = (*_opaque_notes(walker), *_average_notes(found))
    return Graph(views, container, notes, flat_names_of(walker))


def _only_weights(parts: Parts, found: list[Found]) -> str | None:
    """Return the key of the one dict that holds the weights, None if there is not just one."""
    values = dict(parts)
    holding = dict.fromkeys(tensor.path[0] for tensor in found if tensor.path)
    # A best score, a threshold or a counter beside the model can be a tensor too.
    matrices = dict.fromkeys(t.path[0] for t in found if t.path and len(t.view.shape) > 1)
    weights = [
        key
        for key in matrices or holding
        if key not in _BESIDE_WEIGHTS
        and not key.endswith("rng_state")
        and not _is_optimizer_state(values.get(key))
    ]
    if len(weights) == 1 and as_pairs(values.get(weights[0])) is not None:
        return weights[0]
    return None


def _is_optimizer_state(value: Value) -> bool:
    """Tell whether a dict is what an optimizer's ``state_dict()`` returns."""
    pairs = as_pairs(value)
    return pairs is not None and {"state", "param_groups"} <= {
        key for key, _ in pairs if isinstance(key, str)
    }


def named(
    found: list[Found], path: Path, name: Callable[[tuple[str, ...]], str]
) -> dict[str, StoredView]:
    """Return tensors by their names.

    Raises
    ------
    CorruptCheckpointError
        Two have the same one, or one can't be written down.
    """
    views: dict[str, StoredView] = {}
    for tensor in found:
        full = name(tensor.path)
        if full in views:
            raise CorruptCheckpointError("two tensors have this name", path=path, tensor=full)
        if not is_encodable(full):
            raise CorruptCheckpointError("has a name that is no Unicode", path=path, tensor=full)
        views[full] = tensor.view
    return views


def flat_names_of(walker: Walker) -> dict[str, tuple[str, ...]]:
    """Return what ``_flat_weights`` of each recurrent module stand for, by its dotted name."""
    return {".".join(path): tuple(names) for path, names in walker.flat_names.items()}


def _optimizer_note(optimizer_class: str, views: Mapping[str, StoredView]) -> str:
    averages = sum(n.startswith("optimizer.state.") and n.endswith(".ax") for n in views)
    with_averages = f" with averages (ax) for {averages} parameters" if averages else ""
    return f"optimizer {optimizer_class}{with_averages}"


def _average_notes(found: list[Found]) -> list[str]:
    """Return a line for each dict of weights with the names and shapes of another one's.

    Training scripts keep a moving average beside the weights; nothing but the key says which.
    """
    by_head: dict[str, dict[tuple[str, ...], tuple[int, ...]]] = {}
    for tensor in found:
        if len(tensor.path) > 1 and tensor.path[0] not in _BESIDE_WEIGHTS:
            inner = _bare(tensor.path[1:])
            by_head.setdefault(tensor.path[0], {})[inner] = tensor.view.shape
    first: dict[frozenset[tuple[tuple[str, ...], tuple[int, ...]]], str] = {}
    notes = []
    for head, shapes in by_head.items():
        if not any(len(shape) > 1 for shape in shapes.values()):
            continue
        known = first.setdefault(frozenset(shapes.items()), head)
        if known != head:
            notes.append(
                f"{head} has the tensors of {known} a second time, maybe their average: "
                f"both are compressed; --keep '{head}.*' leaves it as it is"
            )
    return notes


def _bare(path: tuple[str, ...]) -> tuple[str, ...]:
    """Return a path without what wrappers of whole models put in front of it."""
    parts = [part for name in path for part in name.split(".")]
    while len(parts) > 1 and parts[0] in _MODEL_WRAPPERS:
        del parts[0]
    return tuple(parts)


def _opaque_notes(walker: Walker) -> tuple[str, ...]:
    notes = [f"{place}: ignored object of class {what}" for place, what in walker.opaque]
    if more := walker.n_opaque - len(notes):
        notes.append(f"{more:,} more ignored objects")
    return tuple(notes)
