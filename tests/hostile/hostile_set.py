"""The hostile set: files made to run code, to exhaust, to mislead, and ones that only look so.

`cases` makes the same files for the same seed. Each says what `inspect`, `compress` and `check`
must answer. ``python benchmarks/hostile.py --write FOLDER`` writes them, and ``--set`` runs all of
them through the commands.
"""

import base64
import functools
import gzip
import io
import json
import os
import random
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import test_torch_tar
from hostile import test_archive_hostile, test_hdf5_hostile, test_keras_hostile
from hostile.hostile_gadgets import (
    BAD,
    BENIGN,
    BESIDE,
    GLOBALS,
    HIDDEN,
    WHOLE,
    calls,
    zipped,
)  # fmt: skip
from hostile.test_refusals import deflate_bomb, many_tensors
from hostile.test_safetensors_hostile import MALFORMED, entry, stored
from hostile.test_torch_hostile import (
    BOMBS,
    LEGACY_LIES,
    LIES,
    deflated,
    legacy_file,
    sound,
    state,
    tensor,
    text,
    zip_file,
)  # fmt: skip
from hostile.test_torch_shards_hostile import MAPS, ONE, TWO

from ckptshrink.io.model_folder import MAX_SIDECAR

REPO = Path(__file__).resolve().parent.parent.parent
Make = Callable[[Path], Path]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Exit statuses that a file must lead to.

    Attributes
    ----------
    inspect, compress, check : frozenset of int
        Those that are right; more than one for damage that may hit nothing.
    """

    name: str
    inspect: frozenset[int]
    compress: frozenset[int]
    check: frozenset[int]


def verdict(name: str, *statuses: int | set[int]) -> Verdict:
    inspect, compress, check = (frozenset({s} if isinstance(s, int) else s) for s in statuses)
    return Verdict(name, inspect, compress, check)


REFUSED = verdict("refused", 3, 3, 1)
INERT = verdict("read without what it would run", 0, 0, 1)
DAMAGED = verdict("index read, values refused", 0, 3, 1)
NONFINITE = verdict("read, not factorized", 0, 3, 0)
NO_LAYOUT = verdict("read, and weights that fit no layout: a line each", 3, 3, 0)
NO_WEIGHTS = verdict("read, and nothing to compress", 0, 3, 0)
FINE = verdict("fine", 0, 0, 0)
NO_CHECKPOINT = verdict("harmless, and no checkpoint", 3, 3, 0)
NO_FILE = verdict("no file", 3, 3, 3)
EITHER = verdict("refused, or fine", {0, 3}, {0, 3}, {0, 1})


@dataclass(frozen=True, slots=True)
class Case:
    """One file, or one folder of them.

    Attributes
    ----------
    kind : str
        Its class.
    make : callable
        Writes it into an empty folder, and returns the path that the commands are given.
    slow : bool
        It takes a good part of a second by design.
    nothing_matches : bool
        Nothing in it can be compressed: that is an error, too, whatever else `compress` says.
    """

    name: str
    kind: str
    make: Make
    verdict: Verdict
    slow: bool = False
    nothing_matches: bool = False

    @property
    def statuses(self) -> dict[str, frozenset[int]]:
        compress = frozenset({3}) if self.nothing_matches else self.verdict.compress
        return {"inspect": self.verdict.inspect, "compress": compress, "check": self.verdict.check}


def plain(content: bytes | Callable[[], bytes], name: str = "x.pt") -> Make:
    """Return what writes one file."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content() if callable(content) else content)
        return path

    return make


# Sound files that a payload is put into, and that values are put into.

UNITS = 6
SHAPES = {
    "weight_ih_l0": (4 * UNITS, UNITS), "weight_hh_l0": (4 * UNITS, UNITS),
    "bias_ih_l0": (4 * UNITS,), "bias_hh_l0": (4 * UNITS,),
}  # fmt: skip


@functools.cache
def storages() -> list[bytes]:
    rng = np.random.default_rng(6)
    return [rng.standard_normal(shape).astype("<f4").tobytes() for shape in SHAPES.values()]


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[1:], 1)


def lstm_items(start: int = 0) -> bytes:
    """Return the opcodes of the items of an LSTM's state dict."""
    found = b""
    for i, (name, shape) in enumerate(SHAPES.items()):
        numel = int(np.prod(shape))
        found += text(name) + tensor(shape, strides(shape), numel=numel, key=str(start + i))
    return found


def lstm_file(call: bytes, *, legacy: bool, first: bool) -> bytes:
    """Return a checkpoint of torch with a value that would be called, before or behind the rest."""
    more = text("more") + call
    items = more + lstm_items() if first else lstm_items() + more
    pickled = b"\x80\x04}(" + items + b"u."
    if not legacy:
        return zip_file(pickled, **{f"_{i}": data for i, data in enumerate(storages())})
    tail = b"".join((len(d) // 4).to_bytes(8, "little") + d for d in storages())
    return legacy_file(pickled, tuple("0123"), tail)


def dangerous_globals(seed: int) -> Iterator[Case]:
    rng = random.Random(seed)
    for module, name in GLOBALS:
        forms = calls(module, name)
        form = rng.choice(list(forms))
        yield Case(
            f"{module}.{name} by {form}", "dangerous globals",
            plain(b"\x80\x02" + forms[form] + b"."), REFUSED,
        )  # fmt: skip
        form, legacy, first = rng.choice(list(forms)), rng.random() < 0.5, rng.random() < 0.5
        yield Case(
            f"{module}.{name} by {form} beside weights", "dangerous globals",
            plain(lstm_file(forms[form], legacy=legacy, first=first)), INERT,
        )  # fmt: skip


SUFFIXES = ("x.safetensors", "x.h5", "x.hdf5", "x.keras", "x.npy", "x.p", "x.json", "x.txt", "x",
            "x.tar.gz", "x.onnx", "config.json", "x.pkl.bak")  # fmt: skip


def scanner_bypasses(seed: int) -> Iterator[Case]:
    kind = "scanner bypasses"
    for name, content in WHOLE.items():
        yield Case(name, kind, plain(content, "x.pkl"), REFUSED)
    for name, call in BESIDE.items():
        for legacy in (False, True):
            content = lstm_file(call, legacy=legacy, first=legacy)
            where = "legacy" if legacy else "zip"
            outcome = REFUSED if name == "modules overridden" else INERT  # items of no container
            yield Case(f"{name}, {where}", kind, plain(content), outcome)
    for name, content in HIDDEN.items():
        yield Case(name, kind, plain(content), INERT, nothing_matches=True)
    for suffix in SUFFIXES:
        yield Case(f"a pickle called {suffix}", kind, plain(BAD, suffix), REFUSED)
    for name, lie in LIES.items():
        if name not in {"two pickles", "no pickle"} and "storage" not in name:
            content = lie(zip_file(state(tensor(), calls("os", "system")["REDUCE"]), _0=bytes(8)))
            yield Case(f"payload in a zip file: {name}", kind, plain(content), REFUSED)
    blob = b"B" + struct.pack("<L", len(BAD)) + BAD
    yield Case(
        "a pickle as bytes, that nothing loads", kind,
        plain(lstm_file(blob, legacy=False, first=False)), FINE,
    )  # fmt: skip
    yield Case("a pickle behind zeros", kind, plain(BENIGN + bytes(30) + BAD), NO_CHECKPOINT)
    yield Case("an array of integers", kind, plain(npy_of(np.arange(3)), "x.npy"), NO_CHECKPOINT)


def npy_of(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


GEOMETRY = tuple(BOMBS)[
    tuple(BOMBS).index("a shape of 2^40") : tuple(BOMBS).index("two sizes of a storage") + 1
]
SLOW = ("deep", "laughing", "tuple", "many opcodes", "a long name", "digits")


def pickle_dos(_: int) -> Iterator[Case]:
    tail = (2).to_bytes(8, "little") + bytes(8)
    for name, pickled in BOMBS.items():
        kind = "tensor geometry" if name in GEOMETRY else "pickle DoS"
        slow = name.startswith(SLOW)
        yield Case(f"{name}, zip", kind, plain(zip_file(pickled, _0=bytes(8))), REFUSED, slow)
        content = legacy_file(pickled, ("0",), tail)
        yield Case(f"{name}, legacy", kind, plain(content), REFUSED, slow)


def zip_files(_: int) -> Iterator[Case]:
    for name, lie in LIES.items():
        # inspect reads no storage, and no checksum of one
        outcome = DAMAGED if name == "wrong checksum of a storage" else REFUSED
        yield Case(name, "zip", plain(lie(sound())), outcome)
    for name, content in LEGACY_LIES.items():
        if "magic" in name:  # sound pickles, and no checkpoints
            yield Case(f"legacy: {name}", "legacy torch", plain(content), NO_CHECKPOINT)
        else:
            yield Case(f"legacy: {name}", "legacy torch", plain(content), REFUSED)
    yield Case("deflate bomb in the pickle", "zip", plain(deflate_bomb), REFUSED, slow=True)
    yield Case("deflate bomb in a storage", "zip", plain(storage_bomb), REFUSED, slow=True)
    yield Case("deflate bomb that hides its size", "zip", plain(hidden_bomb), DAMAGED, slow=True)
    yield Case("100,001 entries", "zip", plain(many_entries), REFUSED)
    yield Case("600,000 entries, and one in its end record", "zip",
               plain(lambda: many_entries(600_000, 1)), REFUSED)  # fmt: skip


def storage_bomb() -> bytes:
    n = 100 << 20
    pickled = state(tensor((n // 4,), numel=n // 4))
    return deflated({"a/data.pkl": pickled, "a/data/0": bytes(n)}, {})


def hidden_bomb() -> bytes:
    entries = {"a/data.pkl": state(tensor()), "a/data/0": bytes(100 << 20)}
    return deflated(entries, {"a/data/0": 8})


def many_entries(count: int = 100_001, said: int | None = None) -> bytes:
    """Return a zip file of very many empty entries, made by hand: zipfile takes seconds.

    Without a second number they have a header each; with it all have the same, and the end record
    gives that number.
    """
    local, central = bytearray(), bytearray()
    for i in range(count):
        name = b"a/%06d" % i
        head = struct.pack("<HHHHHLLLHH", 20, 0, 0, 0, 33, 0, 0, 0, len(name), 0)
        at = 0 if said else len(local)
        central += (
            b"PK\1\2" + struct.pack("<H", 20) + head + struct.pack("<HHHLL", 0, 0, 0, 0, at) + name
        )
        if at == len(local):
            local += b"PK\3\4" + head + name
    at, size = len(local), len(central)
    number = said or count
    end64 = struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, number, number, size, at)
    locator = struct.pack("<LQL", 0, at + size, 1)
    end = struct.pack("<HHHHLLH", 0, 0, 0xFFFF, 0xFFFF, size, at, 0)
    return bytes(local + central) + b"PK\6\6" + end64 + b"PK\6\7" + locator + b"PK\5\6" + end


def safetensors_headers(_: int) -> Iterator[Case]:
    kind = "safetensors headers"
    for name, (content, _words) in MALFORMED.items():
        yield Case(name, kind, plain(content, "x.safetensors"), REFUSED)
    yield Case("300,000 tensors", kind, plain(many_tensors, "x.safetensors"), REFUSED, slow=True)
    odd = stored(json.dumps({"\x1b[31m../../etc/passwd": json.loads(entry("F33"))}), bytes(8))
    yield Case("escapes in a name", kind, plain(odd, "x.safetensors"), REFUSED)


# Values.


def lstm_safetensors(
    dtype: str = "F32", units: int = UNITS, change: Callable[[dict[str, Any]], object] | None = None
) -> bytes:
    """Return a safetensors file of one LSTM; values of one-byte and integer types are small."""
    rng = np.random.default_rng(3)
    shapes = {name: (4 * units, *shape[1:]) for name, shape in SHAPES.items()}
    shapes = {n: s if len(s) == 1 else (s[0], units) for n, s in shapes.items()}
    values: dict[str, Any] = {n: rng.standard_normal(s).astype("<f4") for n, s in shapes.items()}
    if change is not None:
        change(values)
    header, data = {}, b""
    for name, value in values.items():
        code = dtype if value.dtype == np.dtype("<f4") else CODES[value.dtype.str]
        packed = packed_as(value, code)
        offsets = [len(data), len(data) + len(packed)]
        header[name] = {"dtype": code, "shape": list(value.shape), "data_offsets": offsets}
        data += packed
    return stored(json.dumps(header), data)


CODES = {"<i8": "I64", "|i1": "I8", "|u1": "U8", "|b1": "BOOL", "<f8": "F64", "<f2": "F16",
         "<i4": "I32"}  # fmt: skip
KINDS = {"F64": "<f8", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "|i1", "U8": "|u1",
         "BOOL": "|b1"}  # fmt: skip


def packed_as(value: Any, code: str) -> bytes:
    if code == "F32":
        return bytes(value.astype("<f4").tobytes())
    if code == "BF16":
        return bytes((value.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes())
    if code in ("F8_E4M3", "F8_E5M2"):  # patterns of small numbers, of both signs
        return bytes((np.arange(value.size) % 0x38 + (np.arange(value.size) % 2) * 0x80)
                     .astype("u1").tobytes())  # fmt: skip
    return bytes((value * 3).astype(KINDS[code]).tobytes())


def put(name: str, value: Any, at: Any = (1, 2)) -> Callable[[dict[str, Any]], object]:
    return lambda values: values[name].__setitem__(at, value)


def fill(value: float) -> Callable[[dict[str, Any]], object]:
    return lambda values: [v.fill(value) for v in values.values()]


def with_more(value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda values: values.update(more=value)


def lonely(values: dict[str, Any]) -> None:
    values["weight_hh_l0"][:, 1:] = 0


HH = "weight_hh_l0"
VALUES: dict[str, tuple[Callable[[], bytes], Verdict]] = {
    **{
        f"{word} in {name}": (
            lambda n=name, v=value: lstm_safetensors(change=put(n, v, -1)), outcome,
        )
        for word, value in (("NaN", np.nan), ("infinity", np.inf), ("-infinity", -np.inf))
        for name, outcome in ((HH, NONFINITE), ("weight_ih_l0", NONFINITE), ("bias_hh_l0", FINE))
    },
    "NaN of float16": (lambda: lstm_safetensors("F16", change=put(HH, np.nan)), NONFINITE),
    "NaN of bfloat16": (lambda: lstm_safetensors("BF16", change=put(HH, np.nan)), NONFINITE),
    "NaN of float64": (lambda: lstm_safetensors("F64", change=put(HH, np.nan)), NONFINITE),
    "all NaN": (lambda: lstm_safetensors(change=fill(np.nan)), NONFINITE),
    "the largest numbers": (
        lambda: lstm_safetensors(change=fill(float(np.finfo("f4").max))), FINE,
    ),
    "denormal numbers": (lambda: lstm_safetensors(change=fill(1e-42)), FINE),
    "one denormal number": (lambda: lstm_safetensors(change=put(HH, 1e-45)), FINE),
    "all zero": (lambda: lstm_safetensors(change=fill(0)), FINE),
    "all -0": (lambda: lstm_safetensors(change=fill(-0.0)), FINE),
    "constant": (lambda: lstm_safetensors(change=fill(0.25)), FINE),
    "rank 1": (lambda: lstm_safetensors(change=lonely), FINE),
    "one column": (lambda: lstm_safetensors(units=1), FINE),
    "two columns": (lambda: lstm_safetensors(units=2), FINE),
    "a tensor without elements beside": (
        lambda: lstm_safetensors(change=with_more(np.zeros((0, 5), "<f4"))), FINE,
    ),
    "integers beside": (lambda: lstm_safetensors(change=with_more(np.arange(9))), FINE),
    "truths beside": (lambda: lstm_safetensors(change=with_more(np.ones(3, "?"))), FINE),
    "a number beside": (lambda: lstm_safetensors(change=with_more(np.float32(1)[()])), FINE),
    **{f"weights of {code}": (lambda c=code: lstm_safetensors(c), FINE)
       for code in ("F16", "BF16", "F64")},
    **{f"weights of {code}": (lambda c=code: lstm_safetensors(c), NO_LAYOUT)
       for code in ("F8_E4M3", "F8_E5M2")},
    **{f"weights of {code}": (lambda c=code: lstm_safetensors(c), NO_WEIGHTS)
       for code in ("I64", "I32", "I8", "U8", "BOOL")},
}  # fmt: skip


def transposed() -> bytes:
    """Return a checkpoint of torch whose weights are views of one storage: turned, with gaps."""
    items = text("weight_ih_l0") + tensor((24, 6), (1, 24), numel=600, key="0")
    items += text("weight_hh_l0") + tensor((24, 6), (12, 2), offset=300, numel=600, key="0")
    items += text("bias_ih_l0") + tensor((24,), (0,), numel=600, key="0")
    items += text("bias_hh_l0") + tensor((24,), (3,), offset=7, numel=600, key="0")
    values = np.random.default_rng(2).standard_normal(600).astype("<f4")
    return zip_file(b"\x80\x02}(" + items + b"u.", _0=values.tobytes())


def values(_: int) -> Iterator[Case]:
    for name, (build, outcome) in VALUES.items():
        yield Case(name, "values", plain(build, "x.safetensors"), outcome)
    yield Case("views that are no contiguous", "values", plain(transposed), FINE)


# HDF5.

HDF5Builder = Callable[[h5py.File, Path], object]


def hdf5(build: HDF5Builder, libver: str | None = None) -> Make:
    """Return what writes an HDF5 file; what it leads to is a named pipe, that nobody must open."""

    def make(folder: Path) -> Path:
        outside = folder / "outside"
        outside.mkdir()
        os.mkfifo(outside / "secret")
        path = folder / "x.h5"
        with h5py.File(path, "w", libver=libver) as file:
            build(file, outside / "secret")
        return path

    return make


def hdf5_links(_: int) -> Iterator[Case]:
    for name, (build, _words) in test_hdf5_hostile.LEADS_OUT.items():
        yield Case(name.replace("_", " "), "HDF5 links", hdf5(build), REFUSED)
    for name, dtype in test_hdf5_hostile.TYPES.items():

        def odd(file: h5py.File, _: Path, dtype: Any = dtype) -> None:
            file.create_dataset("g/odd", (2,), dtype)

        yield Case(f"a type: {name}", "HDF5 links", hdf5(odd), REFUSED)


def attributes(file: h5py.File, _: Path) -> None:
    file["w"] = np.zeros(3, "f4")
    for i in range(3000):
        file["w"].attrs[f"a{i}"] = np.zeros(20)


def large_attribute(file: h5py.File, _: Path) -> None:
    file["w"] = np.zeros(3, "f4")
    file["w"].attrs["a"] = np.zeros(4 << 20, "f4")


def crumbs(file: h5py.File, _: Path) -> None:
    file.create_dataset("w", data=np.ones(30_000, "f4"), chunks=(1,))


NOT_TOO_MUCH: dict[str, HDF5Builder] = {
    "3,000 attributes of one dataset": attributes,
    "an attribute of 16 MiB": large_attribute,
    "30,000 chunks of a number each": crumbs,
}


def hdf5_sizes(_: int) -> Iterator[Case]:
    unpacked = ("goes_on_for_ever", "one_byte_too_long")
    for name, (build, _words) in test_hdf5_hostile.TOO_MUCH.items():
        libver = "latest" if "nested" in name else None
        outcome = DAMAGED if name.endswith(unpacked) else REFUSED
        yield Case(
            name.replace("_", " "), "HDF5 sizes", hdf5(build, libver), outcome,
            nothing_matches=True,
        )  # fmt: skip
    for name, build in NOT_TOO_MUCH.items():
        yield Case(name, "HDF5 sizes", hdf5(build, "latest"), NO_WEIGHTS)


SIGNATURES = (b"\x89HDF", b"TREE", b"SNOD", b"HEAP", b"GCOL", b"OHDR", b"OCHK", b"FRHP", b"FHDB",
              b"BTHD", b"BTLF", b"FAHD", b"FADB", b"EAHD", b"EAIB", b"FSHD")  # fmt: skip


def small_hdf5(libver: str) -> bytes:
    """Return a file with a little of everything, dense groups and many attributes among it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.h5"
        test_hdf5_hostile.small(path, libver)
        with h5py.File(path, "a", libver=libver) as file:
            group = file.create_group("many", track_order=True)
            for i in range(20):
                group[f"w{i}"] = np.float32(i)
                file["big"].attrs[f"a{i}"] = i
        return path.read_bytes()


def hdf5_corruption(seed: int) -> Iterator[Case]:
    """Yield files whose structures are damaged, each signature in turn, and messages anywhere."""
    rng = random.Random(seed)
    changes = (
        lambda n: b"\xff" * n, bytes, rng.randbytes, lambda n: struct.pack("<Q", 1 << 31)[:n],
        lambda n: struct.pack("<Q", rng.randrange(9000))[:n],
    )  # fmt: skip
    for libver in ("earliest", "latest"):
        whole = small_hdf5(libver)
        for signature in SIGNATURES:
            places = [i for i in range(len(whole)) if whole.startswith(signature, i)]
            for n in range(4 if places else 0):
                at = rng.choice(places) + len(signature) + rng.randrange(40)
                mutant = bytearray(whole)
                size = rng.choice((1, 2, 4, 8))
                mutant[at : at + size] = rng.choice(changes)(size)
                name = f"{libver}: {signature[-4:].decode('latin-1')!r} {n + 1}"
                content = bytes(mutant[: len(whole)])
                yield Case(name, "HDF5 corruption", plain(content, "x.h5"), EITHER)
        for n in range(12):
            mutant = bytearray(whole)
            for _ in range(rng.choice((1, 2, 4))):
                at = rng.randrange(min(6000, len(whole) - 8))
                size = rng.choice((1, 2, 4, 8))
                mutant[at : at + size] = rng.choice(changes)(size)
            yield Case(f"{libver}: anywhere {n + 1}", "HDF5 corruption",
                       plain(bytes(mutant), "x.h5"), EITHER)  # fmt: skip


# Truncation.

FORMATS = (
    "torch/lstm_state.zip.pt", "torch/awd_lstm_state.legacy.pt", "torch/awd_lstm.zip.pt",
    "torch/gru_state.tar.pt", "torch/tagger.script.pt", "torch/lightning.zip.pt",
    "safetensors/lstm_bfloat16.safetensors", "elmo/one_layer/lm_weights.hdf5", "elmo/elmo.hdf5",
    "keras/lm.keras", "keras/keras1_weights.h5", "allennlp/tagger.tar.gz",
)  # fmt: skip


def truncation(seed: int) -> Iterator[Case]:
    rng = random.Random(seed)
    for name in FORMATS:
        path = REPO / "fixtures" / name
        size = path.stat().st_size
        if name.endswith(".tar.pt"):  # torch's own reader does without the zeros at its end
            size = len(path.read_bytes().rstrip(b"\0"))
        for cut in sorted({0, 1, 100, size - 1, *(rng.randrange(size) for _ in range(6))}):

            def prefix(path: Path = path, cut: int = cut) -> bytes:
                return path.read_bytes()[:cut]

            case = f"{name}, {cut} of {size}"
            yield Case(case, "truncation", plain(prefix, path.name), REFUSED)


# Archives.


def archives(_: int) -> Iterator[Case]:
    for name, (content, _kind, _words) in test_archive_hostile.HOSTILE.items():
        for packed in (False, True):
            data = gzip.compress(content, 1) if packed else content
            suffix = "tar.gz" if packed else "tar"
            yield Case(f"{name}, {suffix}", "tar archives", plain(data, f"x.{suffix}"), REFUSED)
    yield Case("bomb of zeros", "tar archives", plain(tar_bomb, "x.tar.gz"), REFUSED, slow=True)
    tarred = test_archive_hostile.tarred
    inner = tarred([("a", {}, BAD)])
    for name, content in {
        "a pickle in the vocabulary": tarred([*test_archive_hostile.good(), ("v/l.txt", {}, BAD)]),
        "an archive in it": tarred([*test_archive_hostile.good(), ("x.tar", {}, inner)]),
    }.items():
        yield Case(name, "tar archives", plain(content, "x.tar"), INERT)


def tar_bomb() -> bytes:
    out = io.BytesIO()
    entry = tarfile.TarInfo("weights.th")
    entry.size = 300 << 20
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as packed:
        packed.write(entry.tobuf())
        for _ in range(300):
            packed.write(bytes(1 << 20))
    return out.getvalue()


def keras(_: int) -> Iterator[Case]:
    for name, (content, _kind, _words) in test_keras_hostile.ARCHIVES.items():
        yield Case(name, "keras", plain(content, "x.keras"), REFUSED, slow=name == "bomb")
    for name, (content, _words) in test_keras_hostile.LIES.items():
        yield Case(f"attributes: {name}", "keras", plain(content, "x.weights.h5"), REFUSED)
    for name, layer in KERAS_CODE.items():

        def archive(layer: Any = layer) -> bytes:
            return test_keras_hostile.contradicting(lambda layers: layers.append(layer))

        yield Case(name, "keras", plain(archive, "x.keras"), INERT)


BLOB = base64.b64encode(BAD).decode()
KERAS_CODE: dict[str, dict[str, Any]] = {
    "a Lambda layer": {
        "module": "keras.layers", "class_name": "Lambda",
        "config": {"name": "l", "function": {"class_name": "__lambda__",
                                             "config": {"code": BLOB}}},
    },
    "a Lambda layer in a wrapper": {
        "module": "keras.layers", "class_name": "TimeDistributed",
        "config": {"name": "t", "layer": {"module": "keras.layers", "class_name": "Lambda",
                                          "config": {"name": "l", "function": [BLOB, None, None]}}},
    },
    "a function of a module": {
        "module": "keras.layers", "class_name": "Dense", "registered_name": None,
        "config": {"name": "d", "units": 3, "activation": {
            "module": "os", "class_name": "function", "config": "system",
            "registered_name": "system"}},
    },
    "a class of a module": {
        "module": "subprocess", "class_name": "Popen", "registered_name": "Popen",
        "config": {"name": "d", "args": "touch MARK"},
    },
    "a function of keras that downloads": {
        "module": "keras.layers", "class_name": "Dense",
        "config": {"name": "d", "units": 3, "activation": {
            "module": "keras.utils", "class_name": "function", "config": "get_file",
            "registered_name": "get_file"}},
    },
    "a switch of keras": {
        "module": "keras.config", "class_name": "function",
        "config": "enable_unsafe_deserialization", "registered_name": "function",
    },
    "a pickle of torch": {
        "module": "keras.layers", "class_name": "TorchModuleWrapper",
        "config": {"name": "t", "module": BLOB},
    },
}  # fmt: skip


def torch_tar(_: int) -> Iterator[Case]:
    good = members(REPO / "fixtures" / "torch" / "gru_state.tar.pt")
    small = functools.cache(small_torch_tar)
    for name, (change, _kind, _words) in test_torch_tar.BROKEN.items():

        def broken(change: Any = change) -> bytes:
            return tar_of(change(small()))

        yield Case(name, "torch tar", plain(broken), REFUSED)
    at = good["storages"].index(b"X\x03\0\0\0cpu")
    called = calls("posix", "system")["REDUCE"]
    location = good["storages"][:at] + called + good["storages"][at + 8 :]
    for member in ("pickle", "tensors", "sys_info", "storages"):
        yield Case(f"a call as {member}", "torch tar",
                   plain(tar_of({**good, member: BAD})), REFUSED)  # fmt: skip
    yield Case("a call as the location of a storage", "torch tar",
               plain(tar_of({**good, "storages": location})), INERT)  # fmt: skip


def small_torch_tar() -> dict[str, bytes]:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        return members(test_torch_tar.saved({"w": torch.ones(2, 3)}, Path(folder)))


def members(path: Path) -> dict[str, bytes]:
    return test_torch_tar.members_of(path)


def tar_of(content: Mapping[str, bytes]) -> bytes:
    return test_archive_hostile.tarred([(name, {}, data) for name, data in content.items()])


def torchscript(_: int) -> Iterator[Case]:
    path = REPO / "fixtures" / "torch" / "tagger.script.pt"
    with zipfile.ZipFile(path) as archive:
        good = {info.filename: archive.read(info) for info in archive.infolist()}
    top = next(iter(good)).partition("/")[0]
    storage = next(name for name in good if name.startswith(f"{top}/data/"))
    code = next(name for name in good if name.endswith(".py"))
    changes: dict[str, tuple[dict[str, bytes | None], Verdict]] = {
        "a storage is missing": ({storage: None}, REFUSED),
        "a storage is cut short": ({storage: b"short"}, REFUSED),
        "constants are cut short": ({f"{top}/constants.pkl": b"\x80\x02("}, REFUSED),
        "constants are a call": ({f"{top}/constants.pkl": BAD}, INERT),
        "data is a call": ({f"{top}/data.pkl": BAD}, REFUSED),
        "no tensor": ({f"{top}/data.pkl": b"\x80\x02c__torch__\nM\n)\x81}b."}, REFUSED),
        "a program that is anything": ({code: b"import os; os._exit(1)"}, FINE),
    }
    for name, (change, outcome) in changes.items():
        entries = {n: d for n, d in {**good, **change}.items() if d is not None}
        yield Case(name, "TorchScript", plain(zipped(entries)), outcome)


# Shards and folders.


def shard_indexes(_: int) -> Iterator[Case]:
    kind = "shard indexes"
    for name, (weight_map, _kind, _words) in MAPS.items():

        def make(folder: Path, weight_map: object = weight_map) -> Path:
            for file, key in ((ONE, "a"), (TWO, "b")):
                pickled = b"\x80\x02}(" + text(key) + tensor() + b"u."
                (folder / file).write_bytes(zip_file(pickled, _0=bytes(8)))
            index = json.dumps({"metadata": {}, "weight_map": weight_map})
            (folder / "pytorch_model.bin.index.json").write_text(index)
            return folder / "pytorch_model.bin.index.json"

        yield Case(f"{name}, torch", kind, make, REFUSED)
    for name, changed in SAFETENSORS_MAPS.items():

        def written(folder: Path, changed: dict[str, str] = changed) -> Path:
            home = folder / "model"
            (home / "sub").mkdir(parents=True)
            (folder / "outside.safetensors").write_bytes(stored(f'{{"a": {entry()}}}', bytes(8)))
            (home / "out").symlink_to("../outside.safetensors")
            (home / "loop").symlink_to("loop")
            os.mkfifo(home / "pipe")
            for file, key in (("one.safetensors", "a"), ("two.safetensors", "b")):
                (home / file).write_bytes(stored(f'{{"{key}": {entry()}}}', bytes(8)))
            weight_map = {"a": "one.safetensors", "b": "two.safetensors", **changed}
            index = {"metadata": {}, "weight_map": weight_map}
            (home / "model.safetensors.index.json").write_text(json.dumps(index))
            return home / "model.safetensors.index.json"

        yield Case(f"{name}, safetensors", kind, written, REFUSED)

    def payload(folder: Path) -> Path:
        sound_ = {"a": ONE, "b": TWO}
        for key, file in sound_.items():
            call = calls("os", "system")["REDUCE"] if key == "b" else b"N"
            pickled = b"\x80\x02}(" + text(key) + tensor() + text("x") + call + b"u."
            (folder / file).write_bytes(zip_file(pickled, _0=bytes(8)))
        index = json.dumps({"metadata": {}, "weight_map": sound_})
        (folder / "pytorch_model.bin.index.json").write_text(index)
        return folder / "pytorch_model.bin.index.json"

    yield Case("a payload in the second shard", kind, payload, INERT, nothing_matches=True)


SAFETENSORS_MAPS: dict[str, dict[str, str]] = {
    "a file above": {"a": "../outside.safetensors"}, "an absolute path": {"a": "/etc/passwd"},
    "a path through above": {"a": "sub/../../outside.safetensors"}, "no name": {"a": ""},
    "a dot before": {"a": "./one.safetensors"}, "a NUL": {"a": "one.safetensors\0"},
    "a link out": {"a": "out"}, "a link to itself": {"a": "loop"}, "a named pipe": {"a": "pipe"},
    "a folder": {"a": "sub"}, "a missing shard": {"a": "gone.safetensors"},
    "the index itself": {"a": "model.safetensors.index.json"},
    "another shard": {"a": "two.safetensors"}, "one tensor more": {"c": "one.safetensors"},
}  # fmt: skip


def link_out(path: Path) -> None:
    (path.parent.parent / "secret").write_text("{}")
    path.symlink_to(path.parent.parent / "secret")


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_SIDECAR + 1)


CONFIGS: dict[str, Callable[[Path], object]] = {
    "a named pipe": lambda p: os.mkfifo(p),
    "a link to itself": lambda p: p.symlink_to(p.name),
    "a link to nothing": lambda p: p.symlink_to("gone"),
    "a link out": link_out,
    "a folder": lambda p: p.mkdir(),
    "huge": huge,
    "no JSON": lambda p: p.write_text("{"),
    "deep": lambda p: p.write_text("[" * 100_000),
    "a name twice": lambda p: p.write_text('{"model_type": "a", "model_type": "b"}'),
    "zeros": lambda p: p.write_bytes(bytes(9)),
}


def model_folders(_: int) -> Iterator[Case]:
    for name, make_config in CONFIGS.items():

        def make(folder: Path, make_config: Callable[[Path], object] = make_config) -> Path:
            home = folder / "model"
            home.mkdir()
            (home / "model.safetensors").write_bytes(lstm_safetensors())
            make_config(home / "config.json")
            return home

        yield Case(f"config.json is {name}", "model folders", make, FINE)


def no_files(_: int) -> Iterator[Case]:
    def pipe(folder: Path) -> Path:
        os.mkfifo(folder / "x.pt")
        return folder / "x.pt"

    def loop(folder: Path) -> Path:
        (folder / "x.pt").symlink_to("x.pt")
        return folder / "x.pt"

    yield Case("a named pipe", "no files", pipe, NO_FILE)
    yield Case("a link to itself", "no files", loop, NO_FILE)
    yield Case("a device", "no files", lambda _: Path("/dev/zero"), NO_FILE)
    yield Case("missing", "no files", lambda folder: folder / "x.pt", NO_FILE)


CLASSES: tuple[Callable[[int], Iterator[Case]], ...] = (
    dangerous_globals, scanner_bypasses, pickle_dos, zip_files, safetensors_headers, values,
    hdf5_links, hdf5_sizes, hdf5_corruption, truncation, archives, keras, torch_tar, torchscript,
    shard_indexes, model_folders, no_files,
)  # fmt: skip


def cases(seed: int = 1) -> list[Case]:
    """Return the whole set; the same for the same seed."""
    return [case for of_class in CLASSES for case in of_class(seed)]
