"""Hostile files by the hundred thousand: gadget pickles, and mutants of sound checkpoints.

    python benchmarks/hostile.py --gadgets 100000 --mutants 1000000 --seed 1
    python benchmarks/hostile.py --write FOLDER     the hostile set of tests/hostile, as files
    python benchmarks/hostile.py --set --jobs 2     all of it through the commands
    python benchmarks/hostile.py --gadgets 0 --mutants 0 --prefixes 20000

Each is read by the library in a process with an audit hook. An event other than the opening of the
very file counts, as does any error but ours, and a file that takes over a second of processor time.
The same seed makes the same files. Exit status 1 if anything counted.
"""

import argparse
import gzip
import io
import json
import os
import pickle
import pkgutil
import random
import resource
import struct
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ckptshrink.errors import CheckpointError
from ckptshrink.io.check import check_file
from ckptshrink.io.detect import open_checkpoint
from ckptshrink.io.torch_zip_writer import ZipWriter

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
KERAS_FILES = ("keras1_weights.h5", "cudnn_weights.h5", "lm.weights.h5", "lm_tf.h5")
TO_CUT = (
    "torch/lstm_state.zip.pt", "torch/awd_lstm_state.legacy.pt", "torch/tagger.script.pt",
    "safetensors/lstm_bfloat16.safetensors", "elmo/elmo.hdf5", "keras/lm.keras",
    "keras/keras1_weights.h5", "allennlp/tagger.tar.gz",
)  # fmt: skip
FORMS = (
    "REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "STACK_GLOBAL", "memo confusion",
    "type confusion", "stacked", "truncated after payload", "BUILD", "dropped",
)  # fmt: skip
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000"
    b"X\x03\0\0\0cpuK\x02tQK\x00K\x02\x85K\x01\x85\x89}tR"
)
PAYLOAD = bytes(8)


def callables() -> list[tuple[str, str]]:
    """Return every importable callable of the standard library, numpy and torch, by its names.

    Modules are imported here, before any hook listens: nothing that is read does that.
    """
    import torch

    skipped = ("idlelib", "test", "this", "antigravity", "turtledemo", "lib2to3", "__main__")
    names = [n for n in sorted(sys.stdlib_module_names) if not n.startswith(skipped)]
    found: set[tuple[str, str]] = set()
    warnings.simplefilter("ignore")
    for package in (np, torch):
        names += [
            info.name
            for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
            if "__main__" not in info.name and "distutils" not in info.name
        ]
    for name in [*names, "numpy", "torch"]:
        try:
            module = __import__(name, fromlist=["x"])
        except BaseException:
            continue
        members = vars(module).items()
        found |= {(name, key) for key, value in list(members) if callable(value)}
    return sorted(found)


def text(value: str) -> bytes:
    """Return the opcode that pushes a text."""
    data = value.encode()
    return b"X" + struct.pack("<L", len(data)) + data


def gadget(module: str, name: str, form: str, rng: random.Random) -> bytes:
    """Return a pickle that would call a callable in one of the `FORMS`."""
    token = f"c{module}\n{name}\n".encode()
    arg = text(rng.choice(["touch MARK", "/etc/passwd", "1+1", "http://127.0.0.1/"]))
    args = arg + b"\x85"
    where = rng.randrange(3)
    match form:
        case "REDUCE" | "stacked" | "truncated after payload":
            call = token + args + b"R"
        case "INST":
            call = b"(" + arg + f"i{module}\n{name}\n".encode()
        case "OBJ":
            call = b"(" + token + arg + b"o"
        case "NEWOBJ":
            call = token + args + b"\x81"
        case "NEWOBJ_EX":
            call = token + args + b"}\x92"
        case "STACK_GLOBAL":
            call = text(module) + text(name) + b"\x93" + args + b"R"
        case "memo confusion":  # the name is a harmless one until it is stored over
            call = b"ccollections\nOrderedDict\nq\x010" + token + b"q\x010h\x01" + args + b"R"
        case "type confusion":
            call = text(module) + rng.choice([b"K\x01", b"N", b"]", token]) + b"\x93" + args + b"R"
        case "BUILD":
            call = token + b")R}" + text("__setstate__") + token + b"sb"
        case _:
            call = token + args + b"R0N"
    if form == "truncated after payload":
        return b"\x80\x02" + call
    if form == "stacked":
        return pickle.dumps({"a": 1}, 2) + b"\x80\x02" + call + b"."
    if where == 0:
        return b"\x80\x02" + call + b"."
    if where == 1:
        return b"\x80\x02}(" + text("w") + TENSOR + text("x") + call + b"u."
    return b"\x80\x02}(" + call + TENSOR + b"u."


def archive(entries: dict[str, bytes]) -> bytes:
    """Return a zip file as torch writes them."""
    out = io.BytesIO()
    writer = ZipWriter(out)
    for name, data in entries.items():
        writer.add(name.encode(), len(data), [data])
    writer.close()
    return out.getvalue()


def in_container(pickled: bytes, kind: int) -> bytes:
    """Return a pickle by itself, in torch's zip container, or in the legacy one."""
    if kind == 0:
        return pickled
    if kind == 1:
        return archive({"a/data.pkl": pickled, "a/version": b"3\n", "a/data/0": PAYLOAD})
    heads = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    tail = (2).to_bytes(8, "little") + PAYLOAD
    return b"".join([*(pickle.dumps(v, 2) for v in heads), pickled, pickle.dumps(["0"], 2), tail])


def gadgets(count: int, seed: int) -> Iterator[bytes]:
    """Yield files, no two alike: every callable in every form first, then at random."""
    rng = random.Random(seed)
    names = callables()
    pairs = [(module, name, form) for module, name in names for form in FORMS]
    rng.shuffle(pairs)
    for i in range(count):
        module, name, form = pairs[i % len(pairs)]
        yield in_container(gadget(module, name, form, rng), (i + i // len(pairs)) % 3)


def samples() -> list[tuple[str, bytes]]:
    """Return small sound files of every format."""
    import h5py

    state = b"\x80\x02}(" + text("w") + TENSOR + text("rnn.weight_hh_l0") + TENSOR + b"u."
    plain = in_container(state, 1)
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(plain)) as source, zipfile.ZipFile(packed, "w", 8) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    header = json.dumps(
        {
            "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "v": {"dtype": "F16", "shape": [2, 2], "data_offsets": [8, 16]},
        }
    ).encode()
    safetensors = struct.pack("<Q", len(header)) + header + bytes(16)
    hdf5 = io.BytesIO()
    with h5py.File(hdf5, "w") as file:
        file["g/w"] = np.arange(40, dtype="f4").reshape(5, 8)
        file.create_dataset("p", data=np.arange(400.0), chunks=(100,), compression=1)
        file.attrs["text"] = "text"
    return [
        ("zip", plain), ("legacy", in_container(state, 2)), ("pickle", state),
        ("deflated", packed.getvalue()), ("safetensors", safetensors), ("hdf5", hdf5.getvalue()),
    ]  # fmt: skip


SHARD = "one.safetensors"


def families() -> dict[str, dict[str, bytes]]:
    """Return the members of sound files of containers that are put together of several.

    Mutants of them are put together again, so that no checksum shields what is inside.
    """
    found: dict[str, dict[str, bytes]] = {}
    for name in ("torch/tagger.script.pt", "keras/lm.keras"):
        with zipfile.ZipFile(FIXTURES / name) as source:
            found[name] = {info.filename: source.read(info) for info in source.infolist()}
    for name in ("torch/gru_state.tar.pt", "allennlp/tagger.tar.gz"):
        with tarfile.open(FIXTURES / name) as source:
            files = [member for member in source.getmembers() if member.isfile()]
            found[name] = {m.name: source.extractfile(m).read() for m in files}  # type: ignore[union-attr]
    return found


def put_together(name: str, members: dict[str, bytes]) -> bytes:
    """Return the file of these members, in the container that the name's suffix says."""
    if name.endswith((".pt", ".keras")) and not name.endswith(".tar.pt"):
        return archive(members)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as target:
        for member, content in members.items():
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            target.addfile(entry, io.BytesIO(content))
    tar = out.getvalue()
    return gzip.compress(tar, 1) if name.endswith(".gz") else tar


def family_mutants(seed: int) -> Iterator[bytes]:
    """Yield mutants of members in a sound container, and of containers, without end."""
    rng = random.Random(seed)
    found = families()
    while True:
        for name, members in found.items():
            if rng.random() < 0.2:
                yield mutated(put_together(name, members), rng)
                continue
            which = rng.choice(list(members))
            data = members[which]
            # values are most of a file, and structure lies at its beginning
            start = min(len(data), rng.choice((100, 2000, len(data))))
            changed = mutated(data[:start], rng) + data[start:]
            yield put_together(name, {**members, which: changed})


def keras_mutants(seed: int) -> Iterator[bytes]:
    """Yield mutants of Keras's HDF5 files, of the text in them as often as of the structures."""
    rng = random.Random(seed)
    files = [(FIXTURES / "keras" / name).read_bytes() for name in KERAS_FILES]
    while True:
        for data in files:
            at = rng.choice((0, rng.randrange(len(data))))
            window = data[at : at + 4096]
            yield data[:at] + mutated(window, rng)[: len(window)] + data[at + 4096 :]


def index_mutants(seed: int) -> Iterator[bytes]:
    """Yield mutants of a shard index whose one shard lies beside it."""
    rng = random.Random(seed)
    index = {"metadata": {"total_size": 16}, "weight_map": {"w": SHARD, "v": SHARD}}
    sound = json.dumps(index).encode()
    names = ["../" + SHARD, "/etc/passwd", SHARD + "\0", "", ".", "no." + SHARD, "x/../" + SHARD]
    while True:
        changed = dict(index)
        if rng.random() < 0.5:
            changed["weight_map"] = {"w": SHARD, "v": rng.choice(names)}
            yield json.dumps(changed).encode()
        else:
            yield mutated(sound, rng)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return data with a few bytes changed, moved, doubled or cut off."""
    new = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 12))):
        at = rng.randrange(len(new) or 1)
        match rng.randrange(6):
            case 0:
                new[at : at + 1] = bytes([rng.randrange(256)])
            case 1 if new:
                new[at] ^= 1 << rng.randrange(8)
            case 2:
                new[at : at + 8] = rng.choice([b"\xff" * 8, bytes(8), rng.randbytes(8)])
            case 3:
                other = rng.randrange(len(new) or 1)
                new[at : at + 16] = new[other : other + rng.randrange(32)]
            case 4:
                new[at:at] = new[at : at + rng.randrange(40)]
            case _ if rng.random() < 0.1:
                del new[at:]
    return bytes(new)


def mutants(count: int, seed: int) -> Iterator[bytes]:
    """Yield mutants; one in fifty is of HDF5, which takes a fork each, one in forty of archives."""
    rng = random.Random(seed)
    sound = dict(samples())
    state = sound["pickle"]
    of_keras, of_families, of_indexes = (
        keras_mutants(seed), family_mutants(seed), index_mutants(seed)
    )  # fmt: skip
    for i in range(count):
        if i % 100 == 0:
            yield mutated(sound["hdf5"], rng)
        elif i % 100 == 50:
            yield next(of_keras)
        elif i % 40 == 7:
            yield next(of_families)
        elif i % 20 == 3:
            yield next(of_indexes)
        elif i % 5 == 1:  # the checksum shields a pickle from plain changes: here it fits
            yield in_container(mutated(state, rng), 1 + i % 2)
        else:
            yield mutated(sound[("zip", "legacy", "deflated", "safetensors")[i % 4]], rng)


def prefixes(count: int, seed: int) -> Iterator[bytes]:
    """Yield files that are cut short, as many of each format: every length of the smallest ones."""
    rng = random.Random(seed)
    whole = [data for name, data in samples() if name not in ("pickle", "hdf5")]
    whole += [(FIXTURES / name).read_bytes() for name in TO_CUT]
    # what may be missing at the end of a tar archive are zeros, which torch's own reader allows
    whole.append((FIXTURES / "torch" / "gru_state.tar.pt").read_bytes().rstrip(b"\0"))
    each = -(-count // len(whole))
    for data in whole[::-1]:
        cuts = range(len(data)) if len(data) <= each else rng.sample(range(len(data)), each)
        for cut in cuts:
            yield data[:cut]


class Hook:
    """Audit events other than the opening of the file that is looked at, and quiet ones."""

    # An address that the reader asks for; handing an HDF5 file to the process that reads it.
    quiet = ("builtins.id", "socket.__new__", "socket.sendmsg", "array.__new__")

    def __init__(self) -> None:
        self.listening = False
        self.folder: Path | None = None
        self.events: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Note an event."""
        if not self.listening or event.startswith(self.quiet):
            return
        # What else is where an index says that a shard is: never outside its folder.
        if event in ("os.scandir", "os.listdir") and self._is_here(args[0]):
            return
        # a shard beside its index; an archive is unpacked into a file without a name
        if event == "open" and (self._is_here(args[0]) or args[0] == tempfile.gettempdir()):
            return
        self.events.append(f"{event} {args!r}"[:300])

    def _is_here(self, path: object) -> bool:
        if self.folder is None or not isinstance(path, (str, os.PathLike)):
            return False
        return Path(os.path.normpath(path)).is_relative_to(self.folder)


def read_all(path: Path) -> None:
    """Open a checkpoint and read every tensor."""
    with closing(open_checkpoint(path)) as reader:
        for name in reader.checkpoint.tensors:
            for _ in reader.chunks(name):
                pass


def both(path: Path) -> None:
    """Read a file, and check it: the one refuses what the other looks into."""
    try:
        read_all(path)
    finally:
        check_file(path)


def run(
    files: Iterator[bytes], hook: Hook, folder: Path, act: Callable[[Path], object]
) -> dict[str, Any]:
    """Read every file, and return what came of it."""
    path = folder / "hostile.bin"
    hook.folder = folder
    result: dict[str, Any] = {"files": 0, "read": 0, "refused": 0, "slowest": 0.0, "wrong": []}
    for data in files:
        path.write_bytes(data)
        hook.events.clear()
        start = time.process_time()
        hook.listening = True
        try:
            act(path)
            outcome = "read"
        except CheckpointError as error:
            outcome = "refused"
            if "\n" in str(error):
                result["wrong"].append(f"{result['files']}: more than a line: {error}")
        except BaseException as error:
            outcome = "wrong"
            result["wrong"].append(f"{result['files']}: {type(error).__name__}: {error}")
        hook.listening = False
        took = time.process_time() - start
        result["slowest"] = max(result["slowest"], took)
        if hook.events or took > 1:
            result["wrong"].append(f"{result['files']}: {took:.2f} s, {hook.events[:3]}")
        if result["wrong"] and len(result["wrong"]) <= 20:
            (folder / f"wrong-{result['files']}").write_bytes(data)
        result["files"] += 1
        if result["files"] % 50_000 == 0:
            print(f"  {result['files']:,} files, {len(result['wrong'])} wrong", file=sys.stderr)
        if outcome != "wrong":
            result[outcome] += 1
    return result


def warm_up(folder: Path) -> None:
    """Read a sound file of every format, so that what is ours is imported: the codecs too."""
    shard = dict(samples())["safetensors"]
    (folder / SHARD).write_bytes(shard)
    index = {"metadata": {}, "weight_map": {"w": SHARD, "v": SHARD}}
    more = [("index", json.dumps(index).encode())]
    more += [(name.replace("/", "-"), put_together(name, m)) for name, m in families().items()]
    more += [(name, (FIXTURES / "keras" / name).read_bytes()) for name in KERAS_FILES]
    for name, data in [*samples(), *more]:
        path = folder / name
        path.write_bytes(data)
        if name != "pickle":
            read_all(path)
        check_file(path)
        for cut in range(0, len(data), max(1, len(data) // 40)):
            path.write_bytes(data[:cut])
            for act in (read_all, check_file):
                with suppress(CheckpointError):
                    act(path)
    for codec in ("unicode_escape", "raw_unicode_escape", "latin-1", "utf-8"):
        "x".encode(codec).decode(codec)


def main() -> int:
    """Run it, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gadgets", type=int, default=2000)
    parser.add_argument("--mutants", type=int, default=5000)
    parser.add_argument("--prefixes", type=int, default=0, help="files that are cut short")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="run check on mutants too")
    parser.add_argument("--folder", type=Path, help="where the one file at a time is written")
    parser.add_argument("--write", type=Path, help="write the hostile set into this folder")
    parser.add_argument("--set", action="store_true", help="run the hostile set by the commands")
    parser.add_argument("--every", type=int, default=1, help="of the set, only each n-th file")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once, for --set")
    parser.add_argument("--commands", default="inspect,compress,check", help="those of --set")
    given = parser.parse_args()
    if given.write or given.set:
        import hostile_commands

        if given.write:
            count = hostile_commands.write_set(given.write, given.seed)
            print(f"{count:,} files (seed {given.seed}) in {given.write}")
        if not given.set:
            return 0
        commands = given.commands.split(",")
        return hostile_commands.run_set(given.seed, given.jobs, given.every, commands)
    read = both if given.check else read_all
    acts = {"gadgets": both, "mutants": read, "prefixes": read}
    hook = Hook()
    status = 0
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        warm_up(folder)
        sources = {
            "gadgets": gadgets(given.gadgets, given.seed),
            "mutants": mutants(given.mutants, given.seed),
            "prefixes": prefixes(given.prefixes, given.seed),
        }
        for kind, files in sources.items():
            start = time.perf_counter()
            first = [file for file in [next(files, None)] if file is not None]
            # only now, since that has imported what gadgets are made of
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            result = run((f for part in (first, files) for f in part), hook, folder, acts[kind])
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(
                f"{kind}: {result['files']:,} files (seed {given.seed}), {result['read']:,} read, "
                f"{result['refused']:,} refused, {len(result['wrong'])} wrong, slowest "
                f"{result['slowest']:.3f} s, {grown >> 10} MB more at most, "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )
            for line in result["wrong"][:20]:
                print(f"  {line}")
            status |= bool(result["wrong"])
            if kind == "prefixes" and result["read"]:
                print(f"  {result['read']:,} read that were cut short")
                status = 1
        leftover = sorted(p.name for p in Path.cwd().glob("MARK"))
        status |= bool(leftover)
    return status


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
