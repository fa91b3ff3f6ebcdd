"""The header of a safetensors file: the strict check of one read, and the bytes of one to write.

The library accepts duplicate keys (the last wins, even with another shape), unknown fields and a
leading space, against its own specification. A file that two readers can read in two ways is not
evidence of anything, so all of these are refused here, before a payload is touched.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from ckptshrink.errors import CorruptCheckpointError, OutputError, UnsafeCheckpointError
from ckptshrink.tensors import ITEMSIZE, nbytes_of

MAX_HEADER: Final = 100_000_000
"""Largest header in bytes, the library's own limit when reading and when writing."""

MAX_TENSORS: Final = 100_000
"""Most tensors of one file: the index of a file is held in memory, at about 1 kB each."""

SINGLE_NAME: Final = "model.safetensors"
"""The file that a folder is expected to hold if it has no index."""

INDEX_SUFFIX: Final = ".safetensors.index.json"

PT_METADATA: Final[Mapping[str, str]] = MappingProxyType({"format": "pt"})
"""What PyTorch users expect, and the only metadata this program writes of its own accord."""

_FIELDS: Final = frozenset({"dtype", "shape", "data_offsets"})

# The library stores the most strictly aligned dtype first, so that no tensor needs padding. This is
# its order, taken from the files it writes.
_STORED_ORDER: Final = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16",
    "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL",
)  # fmt: skip
_STORED_RANK: Final = {dtype: rank for rank, dtype in enumerate(_STORED_ORDER)}

Entry = tuple[str, tuple[int, ...], str]
"""Name, shape and dtype code of a tensor to be written."""


@dataclass(frozen=True, slots=True)
class Span:
    """A tensor of a file: bytes `start` to `stop`, counted from the beginning of the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: its metadata (None where there is none) and its tensors by offset."""

    metadata: dict[str, str] | None
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class FilePlan:
    """A file to be written: everything but the payloads.

    Attributes
    ----------
    header : bytes
        The file up to the first payload, length field and padding included.
    order : tuple of str
        Names in the order in which their payloads follow.
    sizes : mapping of str to int
        Bytes of each payload.
    nbytes : int
        Bytes of the whole file.
    """

    header: bytes
    order: tuple[str, ...]
    sizes: Mapping[str, int]
    nbytes: int


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A file of a split checkpoint and the tensors it is to hold."""

    name: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """Files to be written, and the index that goes with two or more of them."""

    files: tuple[ShardFile, ...]
    index: bytes | None


def parse_header(text: bytes, data_size: int, path: Path) -> Header:
    """Check the JSON header of a safetensors file.

    Parameters
    ----------
    text : bytes
        The header without its length field.
    data_size : int
        Bytes of the file that follow the header.
    path : Path
        For messages.

    Raises
    ------
    CorruptCheckpointError
        It is not the one reading of a well-formed file. The message says where.
    UnsafeCheckpointError
        It announces more than `MAX_TENSORS` tensors.
    """
    if not text.startswith(b"{"):
        raise CorruptCheckpointError("the header does not start with '{'", path=path)
    if text.count(b'"data_offsets"') > MAX_TENSORS:
        raise UnsafeCheckpointError(f"holds more than {MAX_TENSORS:,} tensors", path=path)
    table = strict_json(text, "header", path)
    metadata = table.pop("__metadata__", None)
    if metadata is not None and not _is_str_mapping(metadata):
        raise CorruptCheckpointError("__metadata__ is not a mapping of text to text", path=path)
    base = 8 + len(text)
    spans = sorted(
        (_span(name, entry, base, path) for name, entry in table.items()),
        key=lambda span: (span.start, span.stop),
    )
    _check_tiling(spans, base, base + data_size, path)
    return Header(metadata, tuple(spans))


def strict_json(data: bytes, what: str, path: Path) -> dict[str, Any]:
    """Return the JSON object in `data`, which must have one reading only.

    Raises
    ------
    CorruptCheckpointError
        It is not UTF-8 or not JSON, repeats a key, holds NaN, an infinity or an absurd number, is
        nested too deeply, or is no object.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_integer,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CorruptCheckpointError(f"the {what} is not valid: {reason}", path=path) from error
    if not isinstance(value, dict):
        raise CorruptCheckpointError(f"the {what} is not a JSON object", path=path)
    return value


def lenient_json(data: bytes, what: str, path: Path) -> dict[str, Any]:
    """Return the JSON object in `data` as Python writes it: with NaN and infinities, if it has any.

    Raises
    ------
    CorruptCheckpointError
        It is not UTF-8 or not JSON, repeats a key, is nested too deeply, or is no object.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CorruptCheckpointError(f"the {what} is not valid: {reason}", path=path) from error
    if not isinstance(value, dict):
        raise CorruptCheckpointError(f"the {what} is not a JSON object", path=path)
    return value


def plan_file(
    entries: Iterable[Entry], metadata: Mapping[str, str] | None = PT_METADATA
) -> FilePlan:
    """Lay out a file as the safetensors library does, from names, shapes and dtypes alone.

    Parameters
    ----------
    entries : iterable of (name, shape, dtype)
    metadata : mapping of str to str, or None for none
        The library writes two or more keys in random order; here they keep the order given.

    Raises
    ------
    OutputError
        A name is empty, repeated, ``__metadata__`` or not UTF-8, a dtype has no place in the
        format, or the header is over `MAX_HEADER`.
    """
    listed = list(entries)
    for name, _, dtype in listed:
        _check_storable(name, dtype)
    listed.sort(key=lambda entry: (_STORED_RANK[entry[2]], entry[0].encode()))
    return plan_in_order(listed, metadata)


def plan_in_order(entries: Iterable[Entry], metadata: Mapping[str, str] | None) -> FilePlan:
    """Lay out a file with its payloads in the order given; otherwise as `plan_file`."""
    table: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    sizes: dict[str, int] = {}
    stop = 0
    for name, shape, dtype in entries:
        _check_storable(name, dtype)
        if name in sizes:
            raise OutputError("is there twice", tensor=name)
        start, stop = stop, stop + nbytes_of(shape, dtype)
        sizes[name] = stop - start
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise OutputError(f"the header takes {len(text):,} bytes, and {MAX_HEADER:,} is the most")
    header = len(text).to_bytes(8, "little") + text
    return FilePlan(header, tuple(sizes), sizes, len(header) + stop)


def plan_shards(entries: Iterable[Entry], max_bytes: int) -> ShardPlan:
    """Split tensors over files of at most `max_bytes` of payload, named as Hugging Face names them.

    Tensors are taken in the order given, and one that is larger than `max_bytes` gets a file of its
    own. One file is ``model.safetensors`` and has no index.

    Raises
    ------
    OutputError
        See `plan_file`.
    """
    shards: list[list[Entry]] = [[]]
    names: set[str] = set()
    filled = total = 0
    for entry in entries:
        name, shape, dtype = entry
        _check_storable(name, dtype)
        if name in names:
            raise OutputError("is there twice", tensor=name)
        names.add(name)
        nbytes = nbytes_of(shape, dtype)
        if shards[-1] and filled + nbytes > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += nbytes
        total += nbytes
    if len(shards) == 1:
        return ShardPlan((ShardFile(SINGLE_NAME, tuple(shards[0])),), None)
    files = tuple(
        ShardFile(f"model-{number:05d}-of-{len(shards):05d}.safetensors", tuple(shard))
        for number, shard in enumerate(shards, 1)
    )
    weight_map = {entry[0]: file.name for file in files for entry in file.entries}
    return ShardPlan(files, index_bytes({"total_size": total}, weight_map))


def index_bytes(metadata: Mapping[str, Any] | None, weight_map: Mapping[str, str]) -> bytes:
    """Return a shard index in the form that transformers and huggingface_hub write."""
    index = {} if metadata is None else {"metadata": dict(metadata)}
    text = json.dumps({**index, "weight_map": dict(weight_map)}, indent=2, sort_keys=True)
    return text.encode() + b"\n"


def _span(name: str, entry: object, base: int, path: Path) -> Span:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise CorruptCheckpointError(
            "its entry has not exactly the fields dtype, shape and data_offsets",
            path=path,
            tensor=name,
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not name:
        raise CorruptCheckpointError("a tensor has an empty name", path=path)
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        raise CorruptCheckpointError(f"unknown dtype {dtype!r:.40}", path=path, tensor=name)
    if not _are_sizes(shape):
        raise CorruptCheckpointError("its shape is not a list of sizes", path=path, tensor=name)
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CorruptCheckpointError("its data_offsets are no range", path=path, tensor=name)
    # The library multiplies in 64 bits and numpy refuses a product that overflows, zeros aside.
    if math.prod(size or 1 for size in shape) * ITEMSIZE[dtype] >= 1 << 63:
        raise CorruptCheckpointError("its shape is too large", path=path, tensor=name)
    start, stop = offsets
    if nbytes_of(tuple(shape), dtype) != stop - start:
        raise CorruptCheckpointError(
            f"shape {shape} of {dtype} takes {nbytes_of(tuple(shape), dtype)} bytes, and its "
            f"data_offsets span {stop - start}",
            path=path,
            tensor=name,
        )
    return Span(name, tuple(shape), dtype, base + start, base + stop)


def _check_tiling(spans: Sequence[Span], base: int, end: int, path: Path) -> None:
    """Refuse holes, overlaps, and bytes before the first or after the last tensor."""
    reached = base
    for span in spans:
        if span.start != reached:
            kind = "a hole" if span.start > reached else "an overlap"
            raise CorruptCheckpointError(f"{kind} before its payload", path=path, tensor=span.name)
        reached = span.stop
    if reached != end:
        raise CorruptCheckpointError(
            f"the tensors end at byte {reached}, and the file at {end}",
            path=path,
            hint="the file was cut short: get it again" if reached > end else None,
        )


def _check_storable(name: str, dtype: str) -> None:
    if name in {"", "__metadata__"}:
        # The library writes a tensor called __metadata__, and no reader can read the file.
        raise OutputError(f"safetensors can't hold a tensor named {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise OutputError("safetensors can't hold a name that is not UTF-8", tensor=name) from error
    if dtype not in _STORED_RANK:
        raise OutputError(f"safetensors can't hold dtype {dtype!r}", tensor=name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        key.encode()  # an escaped lone surrogate raises UnicodeEncodeError, which is a ValueError
        if isinstance(value, str):
            value.encode()
        if key in found:
            raise ValueError(f"key {key!r:.80} is there twice")
        found[key] = value
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _integer(text: str) -> int:
    # 2**64 has 20 digits; Python before 3.10.7 takes quadratic time over millions of them.
    if len(text) > 20 or text == "-0":
        raise ValueError(f"{text[:24]!r} is no size")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:24]!r} is out of range")
    return value


def _are_sizes(value: object) -> bool:
    # type() and not isinstance(): True is an int to Python and no size to anybody.
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value)


def _is_str_mapping(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
