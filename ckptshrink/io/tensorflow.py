"""Tell the files of a TensorFlow checkpoint, which is not read: say how to convert it.

A checkpoint of TensorFlow is a prefix, and no file: ``model.ckpt-7.index`` is a table of names in
the format of LevelDB, ``model.ckpt-7.data-00000-of-00001`` has the bytes, ``model.ckpt-7.meta`` the
graph, and ``checkpoint`` the name of the latest prefix. The first version of the format is a single
table with the bytes in it.
"""

import os
import re
from contextlib import closing
from pathlib import Path
from typing import Final

from ckptshrink.errors import CheckpointError, UnknownFormatError
from ckptshrink.io.files import SourceFile

_TABLE_END: Final = bytes.fromhex("57fb808b247547db")
"""The last bytes of a LevelDB table: 0xdb4775248b80fb57, the lower half first."""

_FOOTER: Final = 48

_DATA: Final = re.compile(r"(?P<prefix>.+)\.data-[0-9]{5}-of-[0-9]{5}(?:\.tempstate[0-9]+)?")
_STATE: Final = re.compile(rb"\s*(?:all_)?model_checkpoint_paths?\s*:")

CONVERT: Final = (
    'where TensorFlow is: python -c "import tensorflow as tf, numpy as np; '
    "from safetensors.numpy import save_file as s; r = tf.train.load_checkpoint('{prefix}'); "
    "s({{n: np.array(r.get_tensor(n)) for n, t in "
    "r.get_variable_to_dtype_map().items() if t != tf.string}}, 'model.safetensors')\""
)
"""A line for the shell that writes every variable under its own name."""


def tensorflow_file(file: SourceFile, start: bytes) -> UnknownFormatError | None:
    """Return the refusal of a file of a TensorFlow checkpoint, None if it is none."""
    path = file.path
    if _is_table(file):
        return _refusal("is the table of a TensorFlow checkpoint", path, _stem(path, ".index"))
    parts = _DATA.fullmatch(path.name)
    if parts is not None:
        what = "has the values of a TensorFlow checkpoint"
        return _refusal(what, path, path.with_name(parts["prefix"]))
    if _STATE.match(start):
        return _refusal("names the latest TensorFlow checkpoint of its folder", path, path.parent)
    if path.name.endswith(".meta") and os.path.lexists(_stem(path, ".meta", ".index")):
        return _refusal("is the graph of a TensorFlow checkpoint", path, _stem(path, ".meta"))
    return None


def tensorflow_prefix(path: Path) -> UnknownFormatError | None:
    """Return the refusal of a path that is the prefix of a TensorFlow checkpoint and no file."""
    try:
        if path.exists():
            return None
        with closing(SourceFile(path.with_name(f"{path.name}.index"))) as file:
            is_prefix = _is_table(file)
    except (CheckpointError, OSError, ValueError):  # a name that no file can have
        return None
    return _refusal("is the prefix of a TensorFlow checkpoint", path, path) if is_prefix else None


def is_tensorflow_folder(names: list[str]) -> bool:
    """Tell from the names of a folder's files whether a TensorFlow checkpoint is in it."""
    return any(_DATA.fullmatch(name) for name in names)


def refuse_folder(folder: Path) -> UnknownFormatError:
    """Return the refusal of a folder with a TensorFlow checkpoint."""
    return _refusal("is a folder with a TensorFlow checkpoint", folder, folder)


def _is_table(file: SourceFile) -> bool:
    if file.size < _FOOTER:
        return False
    return bytes(file.read(file.size - len(_TABLE_END), len(_TABLE_END))) == _TABLE_END


def _refusal(what: str, path: Path, prefix: Path) -> UnknownFormatError:
    shown = os.fspath(prefix)
    if not re.fullmatch(r"[\w./@+,: -]+", shown):  # it would end the quotes of the line
        shown = "PREFIX"
    hint = CONVERT.format(prefix=shown)
    return UnknownFormatError(f"{what}, which is not read", path=path, hint=hint)


def _stem(path: Path, suffix: str, other: str = "") -> Path:
    return path.with_name(path.name.removesuffix(suffix) + other)
