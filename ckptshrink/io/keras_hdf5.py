"""The HDF5 files of Keras 1 and 2, and the .h5 files of Keras 3: a group of weights for each layer.

Attributes say which groups and datasets there are, in the order of the model: ``layer_names`` of
the group of the weights, ``weight_names`` of every layer's. Where one would be too large it is
parted into ``layer_names0``, ``layer_names1`` ... A whole model has its config beside them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ckptshrink.errors import CorruptCheckpointError, printable
from ckptshrink.io.hdf5_index import Index
from ckptshrink.io.keras_config import cells_in, check_named
from ckptshrink.tensors import TensorRef

_WEIGHTS: Final = "model_weights"


@dataclass(frozen=True, slots=True)
class KerasFile:
    """What the attributes of such a file say.

    Attributes
    ----------
    order : tuple of str
        Names of the tensors in the order of the model, those that no attribute lists behind.
    doubts : mapping of str to str
        Tensors whose role the config leaves open, and why.
    notes : tuple of str
        Where datasets lie among a model's and none of its layers has them.
    """

    order: tuple[str, ...]
    doubts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def keras_file(found: Index, tensors: Mapping[str, TensorRef]) -> KerasFile | None:
    """Return what Keras's attributes say of a file, None if it has none.

    Raises
    ------
    CorruptCheckpointError
        A layer or weight that is listed is not there, or the config is of other weights.
    """
    attributes = {
        group.name: {attribute.name: attribute.value for attribute in group.attributes}
        for group in found.groups
    }
    group = next(
        (name for name in (_WEIGHTS, "") if _listed(attributes.get(name, {}), "layer_names")), None
    )
    if group is None:
        return None
    prefix = f"{group}/" if group else ""
    order = _model_order(attributes, prefix, tensors)
    unlisted = [name for name in tensors if name.startswith(prefix) and name not in order]
    outside = ("optimizer_weights/", f"{prefix}top_level_model_weights/")
    left = [name for name in unlisted if not name.startswith(outside)]
    notes = [f"{printable(left[0])}: no layer lists it ({len(left)} such tensors)"] if left else []
    names = (*order, *(name for name in tensors if name not in order))
    doubts = _doubts(attributes.get("", {}).get("model_config"), tensors, prefix)
    return KerasFile(names, doubts, tuple(notes))


def _model_order(
    attributes: Mapping[str, Mapping[str, Any]], prefix: str, tensors: Mapping[str, TensorRef]
) -> dict[str, None]:
    """Return the names of the tensors that the attributes list."""
    order: dict[str, None] = {}
    for layer in _listed(attributes[prefix.rstrip("/")], "layer_names") or ():
        group = f"{prefix}{layer}"
        if group not in attributes:
            raise _missing("layer_names", layer, "group")
        for weight in _listed(attributes[group], "weight_names") or ():
            name = f"{group}/{weight}"
            if name not in tensors:
                raise _missing("weight_names", f"{layer}: {weight}", "dataset")
            order[name] = None
    return order


def _missing(attribute: str, name: str, kind: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"its attribute {attribute} lists '{printable(name)[:200]}', and there is no such {kind}",
        hint="the file was cut short or changed, and Keras does not load it: get it again",
    )


def _listed(attributes: Mapping[str, Any], name: str) -> list[str] | None:
    """Return an attribute that is a list of names, put together again where it is parted."""
    if name in attributes:
        parts = [attributes[name]]
    else:
        parts = []
        while f"{name}{len(parts)}" in attributes:
            parts.append(attributes[f"{name}{len(parts)}"])
    if not parts:
        return None
    if not all(isinstance(part, list) for part in parts):
        raise CorruptCheckpointError(f"its attribute {name} is no list")
    # an empty list is one of numbers, since numpy has no other
    return [str(name) for part in parts for name in part]


def _doubts(config: Any, tensors: Mapping[str, TensorRef], prefix: str) -> Mapping[str, str]:
    if not isinstance(config, str):
        return {}
    try:
        parsed = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError("its attribute model_config is no JSON") from error
    return check_named(cells_in(parsed), tensors, prefix, "its model_config")
