"""What a TorchScript archive holds: the tensors of its modules by name, and those of its program.

The program itself, in ``code/``, is neither run nor read: a module's attributes are pickled in the
way of any object, under a class whose name begins with ``__torch__``.
"""

import re
from pathlib import Path
from typing import Final

from ckptshrink.errors import CheckpointError
from ckptshrink.io.pickle_records import Value
from ckptshrink.io.torch_graph import Graph, flat_names_of, named
from ckptshrink.io.torch_records import dotted
from ckptshrink.io.torch_tensors import TensorTable
from ckptshrink.io.torch_walk import REST, SCRIPT, Walker

CONSTANTS: Final = "constants"

_MANGLED: Final = re.compile(r"^__torch__\.|___torch_mangle_[0-9]+\.")


def read_program(root: Value, constants: Value, table: TensorTable, path: Path) -> Graph:
    """Name every tensor of a TorchScript archive.

    Parameters
    ----------
    root : Value
        The saved module.
    constants : Value
        The program's constants, a tuple. A frozen program has its weights there, without names.
    table : TensorTable
        Of both.
    path : Path
        For messages.

    Raises
    ------
    CorruptCheckpointError, UnsafeCheckpointError
        See `read_graph`.
    CheckpointError
        There are no tensors, or one is quantized.
    """
    walker = Walker(table, path)
    state = walker.walk(root, SCRIPT)
    for tensor in state:
        walker.known.setdefault(id(tensor.record), dotted(tensor.path))
    beside = walker.walk(root, REST)
    baked = walker.walk(constants, REST, (CONSTANTS,))
    views = named([*state, *beside, *baked], path, dotted)
    classes = [_MANGLED.sub("", name) for name in walker.module_classes]
    if not views:
        raise CheckpointError(f"a TorchScript program without tensors: {classes[0]}", path=path)
    names = [dotted(tensor.path) for tensor in state] or list(views)
    container = {
        "kind": "module",
        "structure": {"dict": [[name, {"tensor": name}] for name in names]},
        "optimizer_class": None,
        "module_classes": classes,
    }
    notes = [f"TorchScript program ({classes[0]}): its code is not read"]
    matrices = sum(len(tensor.view.shape) > 1 for tensor in baked)
    if matrices:
        notes.append(
            f"{matrices} matrices are constants of the program ({CONSTANTS}.*), which have no names"
            + ("" if state else ": it is frozen, and which of them are recurrent can't be told")
        )
    return Graph(views, container, tuple(notes), flat_names_of(walker))
