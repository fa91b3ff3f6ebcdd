"""A recorded structure as a pickle that torch.load reads, with ``weights_only`` and without."""

import math
import struct
from collections.abc import Mapping
from typing import Any, Final

from ckptshrink.errors import ManifestMismatchError
from ckptshrink.io.torch_records import is_encodable
from ckptshrink.io.torch_walk import MAX_TREE_DEPTH
from ckptshrink.tensors import TensorRef

_STORAGES: Final = {
    "F64": "DoubleStorage", "F32": "FloatStorage", "F16": "HalfStorage",
    "BF16": "BFloat16Storage", "I64": "LongStorage", "I32": "IntStorage", "I16": "ShortStorage",
    "I8": "CharStorage", "U8": "ByteStorage", "BOOL": "BoolStorage", "C64": "ComplexFloatStorage",
}  # fmt: skip
# Dtypes younger than the typed storages: torch keeps them in untyped ones, with the dtype apart.
_UNTYPED: Final = {
    "U64": "uint64", "U32": "uint32", "U16": "uint16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
_ORDERED_DICT: Final = b"ccollections\nOrderedDict\n)R"
_INT32: Final = 1 << 31
_MAX_INT_BYTES: Final = 255


class StructurePickle:
    """Pickles a structure and gives each of its tensors a storage.

    Only opcodes of protocol 2 that torch's ``weights_only`` unpickler knows are used.

    Parameters
    ----------
    tensors : mapping of str to TensorRef
        The tensors that there are.

    Attributes
    ----------
    storages : dict of str to int
        Storage key by the name of the tensor whose payload it takes, in the order of first use.
    left_out : list of str
        What can't be written, one line each.
    """

    def __init__(self, tensors: Mapping[str, TensorRef]) -> None:
        self.storages: dict[str, int] = {}
        self.left_out: list[str] = []
        self._tensors = tensors

    def dump(self, structure: Any) -> bytes:
        """Return the pickle of a structure.

        Raises
        ------
        ManifestMismatchError
            The structure is not one, or names a tensor that is not there.
        """
        body = self._node(structure, ())
        return b"\x80\x02" + (b"N" if body is None else body) + b"."

    def _node(self, node: Any, path: tuple[str, ...]) -> bytes | None:
        """Return the opcodes of a node, None for what is left out."""
        if not isinstance(node, dict) or len(node) != 1 or len(path) > MAX_TREE_DEPTH:
            raise self._malformed(path)
        ((kind, content),) = node.items()
        if kind == "tensor":
            return self._tensor(content)
        if kind == "dict" and isinstance(content, list):
            return self._dict(content, path)
        if kind in ("list", "tuple") and isinstance(content, list):
            parts = [self._node(item, (*path, str(i))) for i, item in enumerate(content)]
            items = b"(" + b"".join(b"N" if part is None else part for part in parts)
            return b"]" + items + b"e" if kind == "list" else items + b"t"
        if kind in ("value", "float") and (packed := _scalar(kind, content)) is not None:
            return packed
        if kind == "opaque" or (kind == "value" and isinstance(content, int)):
            what = content if kind == "opaque" else "a large integer"
            self.left_out.append(f"{'.'.join(path)}: {what}")
            return None
        raise self._malformed(path)

    def _dict(self, content: list[Any], path: tuple[str, ...]) -> bytes:
        entries: list[bytes] = []
        holds_tensor = False
        for entry in content:
            if not isinstance(entry, list | tuple) or len(entry) != 2:
                raise self._malformed(path)
            key, child = {"value": entry[0]} if isinstance(entry[0], str) else entry[0], entry[1]
            if not isinstance(key, dict) or not key.keys() <= {"value", "float", "opaque"}:
                raise self._malformed(path)
            place = (*path, *map(str, key.values()))
            packed_key = self._node(key, place)
            packed = self._node(child, place) if packed_key is not None else None
            if packed_key is not None and packed is not None:
                entries.append(packed_key + packed)
                holds_tensor = holds_tensor or "tensor" in child
        # A dict that has tensors of its own was a state dict, which torch makes an OrderedDict.
        start = _ORDERED_DICT if holds_tensor else b"}"
        return start + (b"(" + b"".join(entries) + b"u" if entries else b"")

    def _tensor(self, name: Any) -> bytes:
        ref = self._tensors.get(name) if isinstance(name, str) else None
        if ref is None:
            raise ManifestMismatchError(
                "is part of the checkpoint's structure, and is not here", tensor=str(name)
            )
        owner = self._tensors.get(ref.shares_with or "", ref)
        if (owner.shape, owner.dtype) != (ref.shape, ref.dtype):
            owner = ref
        key = self.storages.setdefault(owner.name, len(self.storages))
        numel, strides = ref.n_params, _row_major(ref.shape)
        if ref.dtype in _STORAGES:
            storage, version, dtype = f"torch\n{_STORAGES[ref.dtype]}", "v2", b""
        else:
            storage, version, numel = "torch.storage\nUntypedStorage", "v3", ref.nbytes
            dtype = f"ctorch\n{_UNTYPED[ref.dtype]}\n".encode()
        reference = (
            b"(" + _text("storage") + f"c{storage}\n".encode()
            + _text(str(key)) + _text("cpu") + _int(numel) + b"tQ"
        )  # fmt: skip
        shape = b"(" + b"".join(map(_int, ref.shape)) + b"t"
        steps = b"(" + b"".join(map(_int, strides)) + b"t"
        call = f"ctorch._utils\n_rebuild_tensor_{version}\n(".encode()
        return call + reference + _int(0) + shape + steps + b"\x89" + _ORDERED_DICT + dtype + b"tR"

    def _malformed(self, path: tuple[str, ...]) -> ManifestMismatchError:
        place = ".".join(path) or "its root"
        return ManifestMismatchError(f"the record of the container is malformed at {place:.200}")


def _scalar(kind: str, value: Any) -> bytes | None:
    """Return the opcodes of a plain value, None if there are none that every torch reads."""
    if kind == "float":
        known = value in ("inf", "-inf", "nan")
        return b"G" + struct.pack(">d", float(value)) if known else None
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return _int(value) if value.bit_length() < 8 * _MAX_INT_BYTES else None
    if isinstance(value, float) and math.isfinite(value):
        return b"G" + struct.pack(">d", value)
    return _text(value) if isinstance(value, str) and is_encodable(value) else None


def _int(value: int) -> bytes:
    if -_INT32 <= value < _INT32:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<L", len(data)) + data


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a dense tensor: those that torch itself would give."""
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))
