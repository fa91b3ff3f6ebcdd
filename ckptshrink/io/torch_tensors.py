"""Tensors of a torch pickle, recognised by the names of the functions that would rebuild them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckptshrink.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError
from ckptshrink.io.pickle_records import (
    CONSTRUCTORS,
    Items,
    Made,
    Persistent,
    Token,
    Value,
    as_items,
    as_pairs,
    class_name,
)
from ckptshrink.tensors import ITEMSIZE

STORAGES: Final = {
    "FloatStorage": "F32", "DoubleStorage": "F64", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
    "UntypedStorage": "U8", "_UntypedStorage": "U8",
}  # fmt: skip
"""Dtype codes by the name of a storage class, which lies in ``torch`` or ``torch.cuda``."""

_UNTYPED: Final = ("UntypedStorage", "_UntypedStorage")

_DTYPES: Final = {
    "torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16",
    "torch.bfloat16": "BF16", "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2",
    "torch.int64": "I64", "torch.int32": "I32", "torch.int16": "I16", "torch.int8": "I8",
    "torch.uint64": "U64", "torch.uint32": "U32", "torch.uint16": "U16", "torch.uint8": "U8",
    "torch.bool": "BOOL", "torch.complex64": "C64",
}  # fmt: skip

_UTILS: Final = "torch._utils."
_REBUILDS: Final = {f"{_UTILS}_rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
# Called on a tensor, these give that tensor. Torch 0.1 to 0.3 pickled parameters by their class.
_WRAPPERS: Final = {
    f"{_UTILS}_rebuild_parameter",
    f"{_UTILS}_rebuild_parameter_with_state",
    f"{_UTILS}_rebuild_device_tensor_from_cpu_tensor",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
    "torch.autograd.variable.Variable",
}
_SUBCLASSES: Final = {"torch._tensor._rebuild_from_type_v2", "torch._tensor._rebuild_from_type"}
_REFUSED: Final = {
    f"{_UTILS}_rebuild_sparse_tensor": "is a sparse tensor",
    f"{_UTILS}_rebuild_sparse_csr_tensor": "is a sparse tensor",
    f"{_UTILS}_rebuild_qtensor": "is a quantized tensor",
    f"{_UTILS}_rebuild_nested_tensor": "is a nested tensor",
    f"{_UTILS}_rebuild_meta_tensor_no_storage": "is on the meta device and has no values",
    f"{_UTILS}_rebuild_wrapper_subclass": "is a wrapper tensor and has no values of its own",
    f"{_UTILS}_rebuild_device_tensor_from_numpy": "is stored as a numpy array",
    f"{_UTILS}_rebuild_xla_tensor": "is stored as a numpy array",
}
MAX_DIMS: Final = 32
MAX_COUNT: Final = 1 << 40
_MAX_WRAPPED: Final = 16
_DENSE_HINT: Final = "save it from torch as a dense tensor, or leave it out"


@dataclass(frozen=True, slots=True)
class StoredView:
    """Where a tensor's elements lie in a storage. Offset and strides count elements."""

    key: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor when it is dense and row-major."""
        return math.prod(self.shape) * ITEMSIZE[self.dtype]

    @property
    def start(self) -> int:
        """First byte in the storage."""
        return self.offset * ITEMSIZE[self.dtype]

    @property
    def span(self) -> int:
        """Bytes from the first element to the last."""
        if 0 in self.shape:
            return 0
        reach = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        return (reach + 1) * ITEMSIZE[self.dtype]

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie in the storage row by row without a gap."""
        expected = 1
        for n, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if n != 1 and stride != expected:
                return 0 in self.shape
            expected *= n
        return True


@dataclass(frozen=True, slots=True)
class StorageId:
    """A persistent id's storage; a view of old files begins at `first` and has `numel` elements."""

    key: str
    dtype: str
    untyped: bool
    first: int
    numel: int


class TensorTable:
    """Every storage that a pickle refers to, and its tensors by their record.

    Parameters
    ----------
    persistent : iterable of Persistent
        The persistent ids of the pickle.
    path : Path
        For messages.

    Attributes
    ----------
    storages : dict of str to (int, int)
        Bytes and item size of each storage by key, as its first persistent id has them.

    Raises
    ------
    CorruptCheckpointError
        A persistent id is malformed, or two disagree on a storage.
    """

    def __init__(self, persistent: Iterable[Persistent], path: Path) -> None:
        self.storages: dict[str, tuple[int, int]] = {}
        self._path = path
        self._ids: dict[int, StorageId | str] = {}
        self._views: dict[int, StoredView | None] = {}
        for reference in persistent:
            self._register(reference)

    def view(self, value: Value) -> StoredView | None:
        """Return where a tensor lies, or None if the record is of something else.

        Raises
        ------
        CorruptCheckpointError
            Sizes, strides or offset are impossible, or reach out of the storage.
        CheckpointError
            The tensor is sparse, quantized or otherwise not an array of numbers in a storage.
        """
        if not isinstance(value, Made | Persistent):
            return None
        if id(value) not in self._views:
            self._views[id(value)] = self._resolve(value)
        return self._views[id(value)]

    def add(self, persistent: Iterable[Persistent], folder: str) -> None:
        """Register the storages of another pickle, whose keys are names within `folder`.

        Raises
        ------
        CorruptCheckpointError
            As for the first pickle.
        """
        for reference in persistent:
            self._register(reference, folder)

    def referred(self, reference: Persistent) -> StoredView | None:
        """Return the tensor that a persistent id is. Only the tar container has such ids."""
        return None

    def _resolve(self, value: Made | Persistent) -> StoredView | None:
        made: Value = value
        for _ in range(_MAX_WRAPPED):
            if isinstance(made, Persistent):
                return self.referred(made)
            if not isinstance(made, Made):
                return None
            function = class_name(made)
            args = made.args
            if function in _WRAPPERS:
                made = _wrapped(made)
            elif function in _SUBCLASSES and len(args) >= 3 and isinstance(args[2], Items):
                made = Made(args[0], args[2].items)
            else:
                break
        if not isinstance(made, Made):
            return None
        if function in _REFUSED:
            raise self._error(CheckpointError, _REFUSED[function], _DENSE_HINT)
        if function in _REBUILDS:
            return self._rebuilt(function, made.args)
        if _is_tensor_class(function) and isinstance(made.state, Items):
            return self._rebuilt(function, made.state.items)  # __setstate__ of torch 0.1
        return None

    def _rebuilt(self, function: str, args: list[Value]) -> StoredView:
        if len(args) < 4:
            raise self._error(CorruptCheckpointError, "is rebuilt from too few values")
        storage = self._storage(args[0])
        offset, shape, strides = args[1], self._ints(args[2]), self._ints(args[3])
        dtype = storage.dtype
        if function.endswith("_v3"):
            dtype = self._dtype(args[6] if len(args) > 6 else None)
            if not storage.untyped:
                raise self._error(CorruptCheckpointError, "has a dtype and a typed storage")
        elif storage.untyped:
            raise self._error(CorruptCheckpointError, "lies in a storage without a dtype")
        flags = args[-1] if len(args) in (7, 8) else None
        if any(flag is True for _, flag in as_pairs(flags) or ()):
            raise self._error(CheckpointError, "is lazily conjugated or negated", _DENSE_HINT)
        if type(offset) is not int or offset < 0 or shape is None or strides is None:
            raise self._error(CorruptCheckpointError, "has no proper size, stride or offset")
        if len(shape) != len(strides) or len(shape) > MAX_DIMS:
            raise self._error(
                CorruptCheckpointError, f"has {len(shape)} sizes and {len(strides)} strides"
            )
        return self.placed(storage, dtype, offset, shape, strides)

    def placed(
        self,
        storage: StorageId,
        dtype: str,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> StoredView:
        """Return a tensor at its place in a storage, which it must not reach out of."""
        view = StoredView(storage.key, dtype, storage.first + offset, shape, strides)
        room = storage.numel // (ITEMSIZE[dtype] if storage.untyped else 1)
        if offset + view.span // ITEMSIZE[dtype] > room:
            raise self._error(CorruptCheckpointError, "reaches out of its storage")
        return view

    def _storage(self, value: Value) -> StorageId:
        if isinstance(value, Made) and class_name(value) == "torch.storage._load_from_bytes":
            raise self._error(
                UnsafeCheckpointError,
                "holds its values as a pickle inside the pickle",
                "it was written by pickle.dump: load it where you trust it, and use torch.save",
            )
        if isinstance(value, Made) and class_name(value).endswith("TypedStorage") and value.args:
            value = value.args[0]
        found = self._ids.get(id(value)) if isinstance(value, Persistent) else None
        if isinstance(found, str):
            raise self._error(CheckpointError, f"has values of type {found}", _DENSE_HINT)
        if found is None:
            raise self._error(CorruptCheckpointError, "has no storage")
        return found

    def _register(self, reference: Persistent, folder: str = "") -> None:
        """Note the storage of a persistent id; one of an unknown type keeps the type's name."""
        pid = reference.pid
        if not isinstance(pid, Items) or len(pid.items) < 2:
            raise CorruptCheckpointError("a reference to no storage", path=self._path)
        if pid.items[0] == "module":
            return
        if pid.items[0] != "storage" or len(pid.items) not in (5, 6):
            raise CorruptCheckpointError("a reference to no storage", path=self._path)
        kind, key, _, numel = pid.items[1:5]
        if type(numel) is not int or numel < 0 or not isinstance(key, str | int):
            raise CorruptCheckpointError("a storage without key or size", path=self._path)
        storage_class = kind.name if isinstance(kind, Token) else "no storage class"
        dtype = STORAGES.get(storage_class)
        if dtype is None:
            self._ids[id(reference)] = storage_class
            return
        key, itemsize = f"{folder}{key}", ITEMSIZE[dtype]
        known = self.storages.setdefault(key, (numel * itemsize, itemsize))
        if known[0] != numel * itemsize:
            raise CorruptCheckpointError(f"two sizes for storage {key!r:.80}", path=self._path)
        first = 0
        if len(pid.items) == 6 and pid.items[5] is not None:
            first, numel = self._old_view(pid.items[5], numel)
        untyped = storage_class in _UNTYPED
        self._ids[id(reference)] = StorageId(key, dtype, untyped, first, numel)

    def _old_view(self, metadata: Value, numel: int) -> tuple[int, int]:
        """Return first element and count of a storage that is a part of another (torch 0.1)."""
        view = as_items(metadata)
        if view is not None and len(view.items) == 3:
            first, count = view.items[1:]
            if type(first) is int and type(count) is int and 0 <= first <= first + count <= numel:
                return first, count
        raise CorruptCheckpointError("a storage that reaches out of its parent", path=self._path)

    def _dtype(self, value: Value) -> str:
        if not isinstance(value, Token) or value.qualified not in _DTYPES:
            found = class_name(value)
            raise self._error(CheckpointError, f"has values of type {found}", _DENSE_HINT)
        return _DTYPES[value.qualified]

    def _ints(self, value: Value) -> tuple[int, ...] | None:
        items = as_items(value)
        if items is None:
            return None
        found = tuple(n for n in items.items if type(n) is int and 0 <= n < MAX_COUNT)
        return found if len(found) == len(items.items) else None

    def _error(
        self, kind: type[CheckpointError], message: str, hint: str | None = None
    ) -> CheckpointError:
        return kind(message, path=self._path, hint=hint)  # the walk adds the tensor's name


def _wrapped(made: Made) -> Value:
    """Return what a parameter or variable was made of: its tensor."""
    args = made.args
    if isinstance(made.target, Token) and made.target.qualified in CONSTRUCTORS:
        args = args[1:]  # the class; protocols 0 and 1 go through copyreg
    if args:
        return args[0]
    # A Variable of the first betas has all of it in its state, the tensor first.
    state = made.state
    return state.items[0] if isinstance(state, Items) and len(state.items) == 5 else None


def _is_tensor_class(function: str) -> bool:
    module, _, name = function.rpartition(".")
    return module in ("torch", "torch.cuda") and name.endswith("Tensor")
