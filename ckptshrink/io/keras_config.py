"""What a Keras model's config says of its recurrent cells, held against the weights beside it.

The config is data: no class that it names is looked up. In Keras 3 a variable's name is only its
place in its layer, so that a config that belongs to another file would give wrong roles in silence.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ckptshrink.errors import CorruptCheckpointError, UnsafeCheckpointError, printable
from ckptshrink.tensors import TensorRef

_GATES: Final = {
    "LSTM": 4, "GRU": 3, "SimpleRNN": 1, "CuDNNLSTM": 4, "CuDNNGRU": 3,
    "LSTMCell": 4, "GRUCell": 3, "SimpleRNNCell": 1,
}  # fmt: skip
_MAX_DEPTH: Final = 64
_RECURRENT_KERNEL: Final = re.compile(r"recurrent_kernel(?:_[0-9]{1,4})?(?::0)?")
_OF_A_CELL: Final = re.compile(r"(?:(?:recurrent_)?kernel|bias)(?:_[0-9]{1,4})?(?::0)?")


@dataclass(frozen=True, slots=True)
class ConfiguredCell:
    """A recurrent cell as a config has it.

    Attributes
    ----------
    path : str
        Where Keras 3 keeps its variables: ``layers/bidirectional/forward_layer/cell``.
    top : str
        Name of the layer of the outermost model that it is in, the group of its weights in Keras 2.
    layer : str
        Name of the layer that it is the cell of.
    class_name : str
    gates : int or None
        How many gates its kernels have side by side; None for a class that is not one of Keras's.
    units : int or None
    is_built : bool
        Whether the config says that its layer had weights.
    """

    path: str
    top: str
    layer: str
    class_name: str
    gates: int | None
    units: int | None
    is_built: bool

    @property
    def recurrent_shape(self) -> tuple[int, ...] | None:
        """The shape of its recurrent kernel, None if the config doesn't tell."""
        if self.gates is None or self.units is None:
            return None
        return (self.units, self.gates * self.units)


def cells_in(config: Any) -> tuple[ConfiguredCell, ...]:
    """Return the recurrent cells of a model's config, in the order of its layers.

    A config that is not one of a Sequential or functional model tells nothing of its layers.

    Raises
    ------
    UnsafeCheckpointError
        Models are nested too deeply.
    """
    return tuple(_in_model(config, "", "", 0))


def check_archive(
    cells: Iterable[ConfiguredCell], tensors: Mapping[str, TensorRef], where: str
) -> dict[str, str]:
    """Hold the cells of a config to weights that are named as in Keras 3.

    Parameters
    ----------
    where : str
        What the config is, for a message.

    Returns
    -------
    mapping of str to str
        Tensors whose role the config leaves open, and why.

    Raises
    ------
    CorruptCheckpointError
        A cell has another shape in the weights, or none at all.
    """
    doubts: dict[str, str] = {}
    cells = list(cells)
    present = {cell.layer for cell in cells if _variables(cell, tensors)}
    for cell in cells:
        variables = _variables(cell, tensors)
        if cell.gates is None:
            why = f"its cell {printable(cell.class_name)[:100]} is not one of Keras's"
            doubts |= dict.fromkeys(variables, why)
            continue
        if not variables:
            # a layer that two models share is stored with the first of them
            if cell.is_built and cell.layer not in present:
                raise CorruptCheckpointError(
                    f"{where} has the {_named(cell)}, and there are no weights at {cell.path}/vars"
                )
            continue
        recurrent = next((name for name in variables if name.endswith("/1")), None)
        if recurrent is not None and cell.recurrent_shape is not None:
            _compare(cell, tensors[recurrent], where)
    return doubts


def check_named(
    cells: Iterable[ConfiguredCell], tensors: Mapping[str, TensorRef], prefix: str, where: str
) -> dict[str, str]:
    """Hold the cells of a config to weights that lie in groups by layer, as in Keras 2.

    Returns and raises as `check_archive`.

    Parameters
    ----------
    prefix : str
        Group of the weights, with the slash behind it.
    """
    by_top: dict[str, list[ConfiguredCell]] = {}
    for cell in cells:
        by_top.setdefault(cell.top, []).append(cell)
    by_group: dict[str, list[str]] = {}
    for name in tensors:
        if name.startswith(prefix):
            by_group.setdefault(name[len(prefix) :].partition("/")[0], []).append(name)
    doubts: dict[str, str] = {}
    for top, inside in by_top.items():
        own = by_group.get(top, [])
        strange = next((cell for cell in inside if cell.gates is None), None)
        if strange is not None:
            why = f"its cell {printable(strange.class_name)[:100]} is not one of Keras's"
            doubts |= {name: why for name in own if _OF_A_CELL.fullmatch(name.rpartition("/")[2])}
            continue
        found = [name for name in own if _RECURRENT_KERNEL.fullmatch(name.rpartition("/")[2])]
        _compare_all(inside, [tensors[name] for name in found], where)
    return doubts


def _variables(cell: ConfiguredCell, tensors: Mapping[str, TensorRef]) -> list[str]:
    """Return kernel, recurrent kernel and bias of a cell, those that there are."""
    # how tf.keras 2.12 called the layers of a model
    others = cell.path.replace("layers/", "_layer_checkpoint_dependencies/")
    names = [f"{path}/vars/{place}" for path in (cell.path, others) for place in range(3)]
    return [name for name in names if name in tensors]


def _compare_all(cells: Iterable[ConfiguredCell], kernels: Iterable[TensorRef], where: str) -> None:
    """Hold the recurrent kernels of a layer to its cells, whose order the names don't tell."""
    cells = list(cells)
    left = Counter(cell.recurrent_shape for cell in cells)
    strange = None
    for ref in kernels:
        if left[ref.shape] > 0:
            left[ref.shape] -= 1
        elif len(ref.shape) == 2:  # those of a ConvLSTM have more
            strange = strange or ref
    expected = next((cell for cell in cells if cell.units and left[cell.recurrent_shape]), None)
    if strange is not None and expected is not None:
        _compare(expected, strange, where)


def _compare(cell: ConfiguredCell, ref: TensorRef, where: str) -> None:
    if ref.shape != cell.recurrent_shape:
        raise CorruptCheckpointError(
            f"{where} has the {_named(cell)} of {cell.units} units, whose recurrent kernel is "
            f"{cell.recurrent_shape}, and here it is {ref.shape}",
            tensor=ref.name,
            hint="the config belongs to other weights: get the file again",
        )


def _named(cell: ConfiguredCell) -> str:
    return f"{cell.class_name} '{printable(cell.layer)[:100]}'"


def _in_model(node: Any, path: str, top: str, depth: int) -> Iterator[ConfiguredCell]:
    """Yield the cells of a serialized model, whose own place ends in a slash or is empty."""
    if depth > _MAX_DEPTH:
        raise UnsafeCheckpointError(f"its config nests layers over {_MAX_DEPTH} deep")
    config = _table(node).get("config")
    layers = config if isinstance(config, list) else _table(config).get("layers")
    used: Counter[str] = Counter()
    for layer in layers if isinstance(layers, list) else ():
        name = _unique(_text(layer, "class_name"), used)
        yield from _in_layer(layer, f"{path}layers/{name}", top or _name(layer), depth + 1)


def _in_layer(node: Any, path: str, top: str, depth: int) -> Iterator[ConfiguredCell]:
    kind, config = _text(node, "class_name"), _table(_table(node).get("config"))
    if "layers" in config:
        yield from _in_model(node, f"{path}/", top, depth)
    elif not _is_keras(node):
        return
    elif kind == "Bidirectional":
        forward = config.get("layer")
        backward = config.get("backward_layer") or forward
        yield from _in_layer(forward, f"{path}/forward_layer", top, depth)
        yield from _in_layer(backward, f"{path}/backward_layer", top, depth)
    elif kind == "TimeDistributed":
        if depth > _MAX_DEPTH:
            raise UnsafeCheckpointError(f"its config nests layers over {_MAX_DEPTH} deep")
        yield from _in_layer(config.get("layer"), f"{path}/layer", top, depth + 1)
    elif kind == "RNN":
        yield from _in_rnn(node, config.get("cell"), f"{path}/cell", top)
    elif kind in _GATES:
        yield _cell(node, node, f"{path}/cell", top)


def _in_rnn(layer: Any, cell: Any, path: str, top: str) -> Iterator[ConfiguredCell]:
    cells = _table(_table(cell).get("config")).get("cells")
    if _text(cell, "class_name") != "StackedRNNCells" or not isinstance(cells, list):
        yield _cell(layer, cell, path, top)
        return
    used: Counter[str] = Counter()
    for one in cells:
        name = _unique(_text(one, "class_name"), used)
        yield _cell(layer, one, f"{path}/cells/{name}", top)


def _cell(layer: Any, cell: Any, path: str, top: str) -> ConfiguredCell:
    kind = _text(cell, "class_name")
    units = _table(_table(cell).get("config")).get("units")
    return ConfiguredCell(
        path=path,
        top=top,
        layer=_name(layer),
        class_name=kind,
        gates=_GATES.get(kind) if _is_keras(cell) else None,
        units=units if isinstance(units, int) and not isinstance(units, bool) else None,
        is_built=bool(_table(layer).get("build_config")),
    )


def _is_keras(node: Any) -> bool:
    """Return whether a class is one of Keras's own; before Keras 3 its module is not said."""
    module, registered = _table(node).get("module"), _table(node).get("registered_name")
    own = module is None or str(module).split(".", 1)[0] in {"keras", "tf_keras"}
    name = str(registered or "").rpartition(">")
    return own and name[0] in {"", "Keras", "keras"}


def _unique(class_name: str, used: "Counter[str]") -> str:
    """Return the name that Keras 3 gives a layer's group: of its class, in snake case, numbered."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    name = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
    used[name] += 1
    return name if used[name] == 1 else f"{name}_{used[name] - 1}"


def _table(node: Any) -> Mapping[str, Any]:
    return node if isinstance(node, dict) else {}


def _text(node: Any, key: str) -> str:
    value = _table(node).get(key)
    return value if isinstance(value, str) else ""


def _name(layer: Any) -> str:
    return _text(_table(layer).get("config"), "name") or _text(layer, "name")
