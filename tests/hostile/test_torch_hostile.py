"""Hostile and broken torch files: refused with one of our errors, quickly, and nothing is run."""

import io
import json
import pickle
import random
import resource
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckptshrink.errors import (
    CheckpointError,
    CorruptCheckpointError,
    UnknownFormatError,
    UnsafeCheckpointError,
)
from ckptshrink.io.torch_file import open_torch
from ckptshrink.io.torch_zip import ZipIndex
from ckptshrink.io.torch_zip_writer import ZipWriter

SOURCE = Path(__file__).resolve().parent.parent.parent


class Pipe(io.BytesIO):
    """An output in memory."""


def archive(entries: dict[str, bytes]) -> bytes:
    out = Pipe()
    writer = ZipWriter(out)
    for name, data in entries.items():
        writer.add(name.encode(), len(data), [data])
    writer.close()
    return out.getvalue()


def zip_file(pickled: bytes, **storages: bytes) -> bytes:
    entries = {"a/data.pkl": pickled, "a/version": b"3\n"}
    return archive(entries | {f"a/data/{key[1:]}": data for key, data in storages.items()})


def legacy_file(pickled: bytes, keys: tuple[str, ...] = (), tail: bytes = b"") -> bytes:
    heads = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    parts = [pickle.dumps(v, 2) for v in heads]
    return b"".join([*parts, pickled, pickle.dumps(list(keys), 2), tail])


def text(value: str) -> bytes:
    return b"X" + struct.pack("<L", len(value)) + value.encode()


def integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tensor(
    shape: tuple[int, ...] = (2,),
    strides: tuple[int, ...] = (1,),
    offset: int = 0,
    numel: int = 2,
    key: str = "0",
) -> bytes:
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    numbers = (b"(" + b"".join(map(integer, ns)) + b"t" for ns in (shape, strides))
    body = storage + integer(numel) + b"tQ" + integer(offset) + b"".join(numbers)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + body + b"\x89}tR"


def state(*values: bytes) -> bytes:
    items = b"".join(text(f"w{i}") + value for i, value in enumerate(values))
    return b"\x80\x02}(" + items + b"u."


def read_all(path: Path) -> int:
    """Open a file and read every tensor in both ways; return the number of tensors."""
    reader = open_torch(path)
    try:
        for name, ref in reader.checkpoint.tensors.items():
            assert reader.read(name).nbytes == ref.nbytes
            assert sum(len(chunk) for chunk in reader.chunks(name)) == ref.nbytes
        return len(reader.checkpoint.tensors)
    finally:
        reader.close()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Return small files: a state dict and a whole module, in both containers, and a packed one."""
    folder = tmp_path_factory.mktemp("samples")
    torch.manual_seed(5)
    lstm = torch.nn.LSTM(2, 3)
    values = [lstm.state_dict(), {"net": lstm, "cache": torch.zeros(6)[1:5:2]}]
    found = []
    for value in values:
        for new in (True, False):
            path = folder / "sample.pt"
            torch.save(value, path, _use_new_zipfile_serialization=new)
            found.append(path.read_bytes())
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(found[0])) as source, zipfile.ZipFile(packed, "w", 8) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    return [*found, packed.getvalue()]


def test_the_helpers_make_readable_files(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    values = np.arange(2, dtype="<f4")
    path.write_bytes(zip_file(state(tensor()), _0=values.tobytes()))
    assert read_all(path) == 1
    tail = (2).to_bytes(8, "little") + values.tobytes()
    path.write_bytes(legacy_file(state(tensor()), ("0",), tail))
    assert open_torch(path).read("w0").tobytes() == values.tobytes()


def test_every_prefix_is_refused(samples: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    for data in samples:
        for cut in range(0, len(data), max(1, len(data) // 60)):
            path.write_bytes(data[:cut])
            with pytest.raises(CheckpointError):
                read_all(path)


def test_700_mutants_are_read_or_refused(samples: list[bytes], tmp_path: Path) -> None:
    rng = random.Random(20190801)
    path = tmp_path / "mutant.pt"
    outcomes = {"read": 0, "refused": 0}
    for n in range(700):
        data = bytearray(samples[n % len(samples)])
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    data[at] ^= 1 << rng.randrange(8)
                case 2:
                    data[at : at + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
                case _:
                    other = rng.randrange(len(data))
                    data[at : at + 16] = data[other : other + 16]
        path.write_bytes(data)
        try:
            read_all(path)
            outcomes["read"] += 1
        except CheckpointError as error:
            outcomes["refused"] += 1
            assert "\n" not in str(error)
    assert min(outcomes.values()) > 35, outcomes


def test_mutated_pickles_inside_a_sound_zip(samples: list[bytes], tmp_path: Path) -> None:
    """The checksum shields the pickle from plain flips: here it fits the mutant."""
    rng = random.Random(7)
    path = tmp_path / "mutant.pt"
    with zipfile.ZipFile(io.BytesIO(samples[2])) as source:
        entries = {i.filename: source.read(i) for i in source.infolist()}
    refused = 0
    for _ in range(500):
        data = bytearray(entries["sample/data.pkl"])
        for _ in range(rng.choice((1, 2, 5))):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        path.write_bytes(archive(entries | {"sample/data.pkl": bytes(data)}))
        try:
            read_all(path)
        except CheckpointError:
            refused += 1
    assert refused > 150


# Pickles that would run code. Each is placed where a tensor, a key or the whole object should be.

CALLABLES = [
    ("os", "system"), ("posix", "system"), ("nt", "system"), ("subprocess", "Popen"),
    ("builtins", "eval"), ("builtins", "exec"), ("__builtin__", "execfile"), ("builtins", "open"),
    ("builtins", "__import__"), ("builtins", "getattr"), ("builtins", "compile"),
    ("importlib", "import_module"), ("runpy", "run_path"), ("pty", "spawn"), ("webbrowser", "open"),
    ("shutil", "rmtree"), ("ctypes", "CDLL"), ("code", "interact"), ("timeit", "main"),
    ("torch", "load"), ("torch.hub", "load"), ("torch.storage", "_load_from_bytes"),
    ("numpy", "load"), ("numpy.testing._private.utils", "runstring"), ("functools", "partial"),
    ("operator", "attrgetter"), ("types", "FunctionType"), ("pickle", "loads"),
    ("codecs", "open"), ("torch._utils", "_rebuild_parameter"), ("torch", "FloatStorage"),
    ("collections", "OrderedDict"), ("no.such.module", "x"), ("ckptshrink.cli", "main"),
]  # fmt: skip


def gadgets() -> list[bytes]:
    found = []
    args = text("touch MARK; exit 1") + b"\x85"
    for module, name in CALLABLES:
        token = f"c{module}\n{name}\n".encode()
        stacked = text(module) + text(name) + b"\x93"
        calls = [
            token + args + b"R",
            stacked + args + b"R",
            token + args + b"\x81",
            token + args + b"}\x92",
            b"(" + token + text("touch MARK") + b"o",
            b"(" + text("touch MARK") + f"i{module}\n{name}\n".encode(),
            token + b")R}" + text("__setstate__") + token + b"sb",
        ]
        found += calls
    return found


PROBE = """
import json, sys
from pathlib import Path
from ckptshrink.errors import CheckpointError
from ckptshrink.io.torch_file import open_torch
paths = [Path(p) for p in json.loads(sys.stdin.read())]
allowed = {str(p) for p in paths}
events = []
def hook(event, args):
    quiet = event == "builtins.id"  # an address asked for, by the reader itself
    if quiet or event == "open" and str(args[0]) in allowed:
        return
    events.append(f"{event} {args!r}"[:300])
sys.addaudithook(hook)
outcomes = [0, 0]
for path in paths:
    try:
        reader = open_torch(path)
        for name in reader.checkpoint.tensors:
            reader.read(name)
        reader.close()
        outcomes[0] += 1
    except CheckpointError:
        outcomes[1] += 1
seen, events[:] = list(events), []
print(json.dumps([seen, outcomes]))
"""


def probe(code: str, given: Any, cwd: Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(given), capture_output=True, text=True, cwd=cwd, check=True,
        env={"PYTHONPATH": str(SOURCE), "PATH": ""}, timeout=120,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_gadgets_cause_no_event(tmp_path: Path) -> None:
    paths = []
    payload = bytes(8)
    tail = (2).to_bytes(8, "little") + payload
    places: list[Callable[[bytes], bytes]] = [
        lambda g: b"\x80\x02" + g + b".",
        lambda g: state(tensor(), g),
        lambda g: b"\x80\x02}(" + g + tensor() + b"u.",
        lambda g: state(tensor(), b"ctorch._utils\n_rebuild_parameter\n(" + g + b"\x88}tR"),
        lambda g: state(tensor(), tensor().replace(b"ctorch\nFloatStorage\n", g)),
    ]
    for i, gadget in enumerate(gadgets()):
        pickled = places[i % len(places)](gadget)
        legacy = i % 2
        data = legacy_file(pickled, ("0",), tail) if legacy else zip_file(pickled, _0=payload)
        path = tmp_path / f"{i}.pt"
        path.write_bytes(data)
        paths.append(str(path))
    assert len(paths) >= 200
    before = set(tmp_path.iterdir())
    events, (n_read, n_refused) = probe(PROBE, paths, tmp_path)
    assert events == []
    assert n_read + n_refused == len(paths)
    assert min(n_read, n_refused) > 20  # some hide beside tensors, some in their place
    assert set(tmp_path.iterdir()) == before


def test_the_probe_would_notice(tmp_path: Path) -> None:
    """A hook that reports nothing proves nothing: pickle itself must set it off."""
    path = tmp_path / "gadget.pkl"
    path.write_bytes(b"cos\nsystem\n" + text("exit 0") + b"\x85R.")
    loading = PROBE.replace(
        "reader = open_torch(path)", "import pickle; pickle.loads(b'cwave\\nx\\n.')"
    )
    events, _ = probe(loading.replace("CheckpointError:", "Exception:", 1), [str(path)], tmp_path)
    assert any(event.startswith("import ('wave'") for event in events)


# Files that would take time or memory.

WRAP = b"ctorch._utils\n_rebuild_parameter\n("


def laughs(depth: int, kind: bytes) -> bytes:
    """Return a pickle in which each level refers to the one below ten times."""
    steps = b"".join(
        kind + b"(" + b"".join(text(str(j)) + b"j" + struct.pack("<L", i) for j in range(10)) + b"u"
        + b"r" + struct.pack("<L", i + 1)
        for i in range(depth)
    )  # fmt: skip
    return b"\x80\x02" + tensor() + b"r\0\0\0\0" + steps + b"."


def modules(depth: int) -> bytes:
    """Return modules in which each has the one below as ten submodules."""
    steps = b"".join(
        b"cm\nN\n)\x81r" + struct.pack("<L", 2 * i + 2)
        + b"}(" + text("_parameters") + b"}" + text("_buffers") + b"}" + text("_modules") + b"}("
        + b"".join(text(str(j)) + b"j" + struct.pack("<L", 2 * i) for j in range(10)) + b"uub"
        for i in range(depth)
    )  # fmt: skip
    first = b"cm\nN\n)\x81}(" + text("_parameters") + b"}" + text("w") + tensor() + b"s"
    return b"\x80\x02" + first + text("_modules") + b"}ubr\0\0\0\0" + steps + b"."


SELF = b"\x80\x02}r\0\0\0\0(" + text("w") + tensor() + text("me") + b"j\0\0\0\0u."
MYSELF = (
    b"\x80\x02cm\nN\n)\x81r\0\0\0\0}(" + text("_parameters") + b"}" + text("w") + tensor() + b"s"
    + text("_modules") + b"}" + text("me") + b"j\0\0\0\0sub."
)  # fmt: skip

BOMBS: dict[str, bytes] = {
    "tuple of itself twice": b"\x80\x02N" + b"2\x86" * 200_000 + b".",
    "laughing dicts": laughs(30, b"}"),
    "laughing ordered dicts": laughs(30, b"ccollections\nOrderedDict\n)R"),
    "laughing modules": modules(30),
    "deep lists": b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b".",
    "deep tuples": b"\x80\x02" + tensor() + b"\x85" * 150_000 + b".",
    "deep dicts": b"\x80\x02" + (b"}" + text("a")) * 20_000 + tensor() + b"s" * 20_000 + b".",
    "deep objects": b"\x80\x02" + b"cm\nN\n" * 50_000 + tensor() + b"\x85\x81" * 50_000 + b".",
    "deep parameters": b"\x80\x02" + WRAP * 9999 + tensor() + b"\x88}tR" * 9999 + b".",
    "deep marks": b"\x80\x02" + b"(" * 1_000_000,
    "many opcodes": b"\x80\x02" + b"N0" * 3_000_000 + b"N.",
    "a long of 2 GiB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a string of 2^60": b"\x80\x04\x8d" + (2**60).to_bytes(8, "little") + b".",
    "bytes of 2^63": b"\x80\x04\x8e" + (2**63).to_bytes(8, "little") + b".",
    "a bytearray of 2^64": b"\x80\x05\x96" + b"\xff" * 8 + b".",
    "a frame of 2^62": b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b"N.",
    "memo index 2^32": b"\x80\x02Nr\xff\xff\xff\xff.",
    "digits": b"\x80\x02L" + b"9" * 3_000_000 + b"L\n.",
    "extension code": b"\x80\x02\x82\x01.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "a shape of 2^40": state(tensor((1 << 39, 2))),
    "a shape of 2^200": state(tensor((1 << 200,))),
    "a stride of 2^60": state(tensor((2,), (1 << 60,))),
    "a negative offset": state(tensor(offset=-1)),
    "a negative size": state(tensor((-2,))),
    "a negative stride": state(tensor((2,), (-1,))),
    "an offset at the end": state(tensor(offset=1)),
    "a 4 TiB view": state(tensor((1 << 20, 1 << 20), (0, 0))),
    "a hundred dimensions": state(tensor((1,) * 100, (1,) * 100)),
    "too few strides": state(tensor((2, 1))),
    "a claim of 2^40 elements": state(tensor(numel=1 << 40)),
    "a missing storage": state(tensor(key="9")),
    "two sizes of a storage": state(tensor(), tensor(numel=1, shape=(1,))),
    "a long name": state(tensor())[:4] + text("n" * 50) * 20_000,
    "a module in itself": MYSELF,
}  # fmt: skip

WATCHED = """
import json, resource, sys, time
from pathlib import Path
from ckptshrink.errors import CheckpointError
from ckptshrink.io.torch_file import open_torch
path = Path(json.loads(sys.stdin.read()))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
try:
    reader = open_torch(path)
    for name in reader.checkpoint.tensors:
        reader.read(name)
    outcome = "read"
except CheckpointError as error:
    outcome = type(error).__name__
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([outcome, time.process_time() - start, grown >> 10]))
"""


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("legacy", [False, True])
def test_bombs_are_refused(name: str, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    tail = (2).to_bytes(8, "little") + bytes(8)
    pickled = BOMBS[name]
    path.write_bytes(
        legacy_file(pickled, ("0",), tail) if legacy else zip_file(pickled, _0=bytes(8))
    )
    start = time.process_time()
    with pytest.raises(CheckpointError):
        read_all(path)
    assert time.process_time() - start < 5  # a second on an idle core; the suite shares its own


@pytest.mark.parametrize("name", ["many opcodes", "deep lists", "laughing dicts", "a 4 TiB view"])
def test_bombs_take_little_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    path.write_bytes(zip_file(BOMBS[name], _0=bytes(8)))
    outcome, seconds, mebibytes = probe(WATCHED, str(path), tmp_path)
    assert outcome in {"UnsafeCheckpointError", "CorruptCheckpointError"}
    assert mebibytes < 256
    assert seconds < 4


def test_a_key_that_takes_years_to_hash_is_not_hashed(tmp_path: Path) -> None:
    path = tmp_path / "key.pt"
    key = b"K\x01" + b"2\x86" * 5000
    path.write_bytes(zip_file(b"\x80\x02}" + key + tensor() + b"s.", _0=bytes(8)))
    assert list(open_torch(path).checkpoint.tensors) == ["0"]


def test_a_dict_that_contains_itself_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "loop.pt"
    path.write_bytes(zip_file(SELF, _0=bytes(8)))
    reader = open_torch(path)
    assert list(reader.checkpoint.tensors) == ["w"]
    assert reader.checkpoint.notes == (
        "me: ignored object of class an object that contains itself",
    )


# Zip files that lie.


def sound() -> bytes:
    return zip_file(state(tensor()), _0=bytes(8))


def field(data: bytes, signature: bytes, nth: int, offset: int, value: bytes) -> bytes:
    """Return a file with bytes overwritten behind the n-th occurrence of a signature."""
    at = -1
    for _ in range(nth + 1):
        at = data.index(signature, at + 1)
    return data[: at + offset] + value + data[at + offset + len(value) :]


LOCAL, CENTRAL, END, END64 = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06"
LIES: dict[str, Callable[[bytes], bytes]] = {
    "encrypted": lambda d: field(d, CENTRAL, 2, 8, b"\x09\x08"),
    "encrypted by its local header": lambda d: field(d, LOCAL, 2, 6, b"\x09\x08"),
    "strong encryption": lambda d: field(d, CENTRAL, 0, 8, b"\x48\x08"),
    "patched data": lambda d: field(d, CENTRAL, 0, 8, b"\x28\x08"),
    "masked header": lambda d: field(d, CENTRAL, 0, 8, b"\x08\x28"),
    "unknown method": lambda d: field(d, CENTRAL, 2, 10, b"\x0c\x00"),
    "another method locally": lambda d: field(d, LOCAL, 2, 8, b"\x08\x00"),
    "another name locally": lambda d: field(d, LOCAL, 2, 30, b"b"),
    "two sizes": lambda d: field(d, CENTRAL, 2, 24, b"\x09\0\0\0"),
    "packed beyond the end": lambda d: field(d, CENTRAL, 2, 20, b"\xf0\xff\0\0\xf0\xff\0\0"),
    "overlapping": lambda d: field(d, CENTRAL, 0, 20, b"\xff\1\0\0\xff\1\0\0"),
    "offset beyond the end": lambda d: field(d, CENTRAL, 1, 42, b"\xff\xff\0\0"),
    "same bytes twice": lambda d: field(d, CENTRAL, 1, 42, b"\0\0\0\0"),
    "wrong checksum of the pickle": lambda d: field(d, CENTRAL, 0, 16, b"\1\2\3\4"),
    "wrong checksum of a storage": lambda d: field(d, CENTRAL, 2, 16, b"\1\2\3\4"),
    "parent folder": lambda d: d.replace(b"a/version", b"a/../../x"),
    "absolute": lambda d: d.replace(b"a/version", b"/etc/pass"),
    "NUL in a name": lambda d: d.replace(b"a/version", b"a/ver\0ion"),
    "duplicate": lambda d: archive_with_duplicate(),
    "prefix": lambda d: b"PK\x03\x04junk" + d,
    "shifted prefix": lambda d: LOCAL + bytes(60) + d,
    "suffix": lambda d: d + b"junk",
    "several disks": lambda d: field(d, END, 0, 4, b"\1\0"),
    "count": lambda d: field(d, END64, 0, 32, b"\2" + bytes(7)),
    "disagreeing ends": lambda d: field(d, END, 0, 10, b"\2\0"),
    "directory elsewhere": lambda d: field(
        field(d, END, 0, 16, b"\1\0\0\0"), END64, 0, 48, b"\1" + bytes(7)
    ),
    "zip64 record elsewhere": lambda d: field(d, b"PK\x06\x07", 0, 8, b"\1" + bytes(7)),
    "broken directory": lambda d: field(d, CENTRAL, 1, 0, b"PK\1\3"),
    "long name": lambda d: field(d, CENTRAL, 2, 28, b"\xff\xff"),
    "two pickles": lambda d: archive({"a/data.pkl": b"N.", "b/data.pkl": b"N."}),
    "no pickle": lambda d: archive({"a/data/0": b""}),
    "nested folder": lambda d: archive({"x/a/data.pkl": state(tensor()), "x/a/data/0": bytes(8)}),
    "storage too short": lambda d: zip_file(state(tensor()), _0=bytes(4)),
    "storage too long": lambda d: zip_file(state(tensor()), _0=bytes(12)),
    "storage missing": lambda d: zip_file(state(tensor())),
    "empty zip": lambda d: archive({}),
}  # fmt: skip


def archive_with_duplicate() -> bytes:
    out = Pipe()
    writer = ZipWriter(out)
    for name, data in (("data.pkl", state(tensor())), ("data/0", bytes(8)), ("data/0", b"\1" * 8)):
        writer.add(f"a/{name}".encode(), len(data), [data])
    writer.close()
    return out.getvalue()


@pytest.mark.parametrize("lie", LIES)
def test_zip_files_that_lie(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "lie.pt"
    path.write_bytes(sound())
    assert read_all(path) == 1
    path.write_bytes(LIES[lie](sound()))
    with pytest.raises((CorruptCheckpointError, UnsafeCheckpointError, UnknownFormatError)):
        read_all(path)


def deflated(entries: dict[str, bytes], claims: dict[str, int]) -> bytes:
    """Return a zip file of deflated entries, some of which claim another unpacked size."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        for name, data in entries.items():
            target.writestr(name, data)
    data = out.getvalue()
    for i, name in enumerate(entries):
        if name in claims:
            size = struct.pack("<L", claims[name])
            data = field(field(data, LOCAL, i, 22, size), CENTRAL, i, 24, size)
    return data


def test_deflate_bombs(tmp_path: Path) -> None:
    n = 100 << 20
    path = tmp_path / "bomb.pt"
    pickled = state(tensor((n // 4,), numel=n // 4))
    path.write_bytes(deflated({"a/data.pkl": pickled, "a/data/0": bytes(n)}, {}))
    assert path.stat().st_size < 200_000
    with pytest.raises(UnsafeCheckpointError, match="inflates"):
        open_torch(path)
    # One that hides its size yields no byte more than it claims, and is found out by that.
    entries = {"a/data.pkl": state(tensor()), "a/data/0": bytes(n)}
    path.write_bytes(deflated(entries, {"a/data/0": 8}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptCheckpointError, match="beyond its size"):
        read_all(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    path.write_bytes(
        deflated({"a/data.pkl": state(tensor()), "a/data/0": bytes(8)}, {"a/data/0": 9})
    )
    with pytest.raises(CorruptCheckpointError):
        read_all(path)


def test_a_comment_with_an_end_record_in_it(tmp_path: Path) -> None:
    """Which of two end records counts is settled by which one ends with the file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as target:
        for name, data in (("a/data.pkl", state(tensor())), ("a/data/0", bytes(8))):
            target.writestr(name, data)
        target.comment = b"see PK\x05\x06 and more" + bytes(30)
    path = tmp_path / "comment.pt"
    path.write_bytes(out.getvalue())
    assert read_all(path) == 1


def test_the_index_keeps_stored_order_and_checksums(tmp_path: Path) -> None:
    from ckptshrink.io.files import SourceFile

    path = tmp_path / "a.pt"
    path.write_bytes(sound())
    entries = ZipIndex(SourceFile(path)).entries
    assert list(entries) == ["a/data.pkl", "a/version", "a/data/0"]
    assert entries["a/data/0"].crc == zlib.crc32(bytes(8))


# Legacy files that lie.

COUNT = (2).to_bytes(8, "little")
HUGE = (1 << 40).to_bytes(8, "little")
LEGACY_LIES = {
    "wrong magic": pickle.dumps(3, 2) + b"N.",
    "magic further on": pickle.dumps([0x1950A86A20F9469CFC6C], 2),
    "wrong version": pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1002, 2),
    "no system record": b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, 3)),
    "keys that are no list": legacy_file(state(tensor())).replace(b"]", b"N") + COUNT + bytes(8),
    "a key twice": legacy_file(state(tensor()), ("0", "0"), (COUNT + bytes(8)) * 2),
    "a key of nothing": legacy_file(state(tensor()), ("0", "1"), (COUNT + bytes(8)) * 2),
    "a key missing": legacy_file(state(tensor()), (), COUNT + bytes(8)),
    "another count": legacy_file(state(tensor()), ("0",), (3).to_bytes(8, "little") + bytes(12)),
    "a negative count": legacy_file(state(tensor()), ("0",), b"\xff" * 8 + bytes(8)),
    "a huge count": legacy_file(state(tensor(numel=1 << 40)), ("0",), HUGE),
    "no bytes": legacy_file(state(tensor()), ("0",), COUNT),
    "a reference to nothing": legacy_file(b"\x80\x02K\x05Q."),
    "a reference by text": legacy_file(b"Pstorage\n."),
    "a reference of another kind": legacy_file(b"\x80\x02(" + text("file") + b"NNNNtQ."),
}  # fmt: skip


@pytest.mark.parametrize("lie", LEGACY_LIES)
def test_legacy_files_that_lie(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "lie.pt"
    path.write_bytes(LEGACY_LIES[lie])
    with pytest.raises((CorruptCheckpointError, UnknownFormatError)):
        read_all(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.pt", Path("/dev/zero")):
        with pytest.raises(CheckpointError):
            open_torch(path)
