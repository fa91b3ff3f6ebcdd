"""A zoo of many small checkpoints: sound, doubled, broken and hostile ones, and their fates.

    python benchmarks/zoo_maker.py FOLDER --n 1000 --seed 1

Every family that is read is in it, with other weights in every copy where they lie in the file as
they are; in nested folders, under names that break scripts. ``zoo.toml`` says what is done with
them, and ``expected.json`` which are to be done and which to fail. The same seed makes the same
bytes.
"""

import argparse
import gzip
import io
import json
import os
import random
import shutil
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hostile import FORMS, archive, gadget, in_container, text

from ckptshrink.io.detect import open_checkpoint

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
sys.path.insert(0, str(FIXTURES))

import safetensors_models  # noqa: E402 - a folder of scripts, and no package

SINGLE = (
    "allennlp/*", "flm/*", "keras/*", "safetensors/*.safetensors", "torch/*.pt", "elmo/*.hdf5",
)  # fmt: skip
"""Fixtures that are one file, whatever it is called."""

TOGETHER = ("elmo/one_layer", "elmo/packed", "elmo/tokens", "safetensors/sharded")
"""Fixtures of several files, which must lie in one folder under their own names."""

HUGGING_FACE = ("transformers/*",)
"""Fixtures that are folders, and named as folders."""

SUFFIXES = ("tar.gz", "th", "safetensors", "pt", "hdf5", "keras", "h5")

FLOATS = {"F32": "<f4", "F64": "<f8", "F16": "<f2"}

RECIPES = {
    "plain": "",
    "halved": 'target = ["all:ratio=0.5"]\n',
    "nmf": 'method = "semi-nmf"\nrank = 3\niterations = 5\nseed = 7\n',
    "pruned": 'method = "prune"\nratio = 0.4\n',
    "exact": "exact = true\nrank = 2\n",
    "budget": "budget = 0.9\n",
    "copied": 'nonfinite = "copy"\n',
}
"""What is done with the models of a folder, where it is not the defaults."""

STEMS = (
    "model", "best", "pytorch_model", "lm weights", "ünïcødé", "日本語", "it's", 'say "hi"', "[x]",
    "-rf", "--help", "a[0-9]*?", "$(touch MARK)", "100%s", "semi;colon", "tab\there", "back\\slash",
    "new\nline", "no\udcfftext", "#hash", "dot.dot", "~home", "emoji-🦙", "{braces}",
    "con", "x" * 120,
)  # fmt: skip
FOLDERS = ("a", "b b", "año", "2024-11", "[old]", "-x", "deep/er/still", "it's")

CALLS = (("os", "system"), ("builtins", "eval"), ("subprocess", "Popen"), ("posix", "system"))


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the zoo.

    Attributes
    ----------
    name : str
        The job's.
    kind : str
        sound, doubled, broken or hostile.
    what : str
        Of what it is made, or how it is broken.
    fate : str
        The status that its record must have.
    """

    name: str
    kind: str
    what: str
    fate: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A fixture whose weights can be changed.

    Attributes
    ----------
    members : mapping of str to bytes
        Of a zip file its entries; else the one file.
    places : list of (str, int, str, int)
        Member, offset, dtype and bytes of each tensor that lies there as it is.
    """

    suffix: str
    members: dict[str, bytes]
    places: list[tuple[str, int, str, int]] = field(default_factory=list)

    @property
    def is_zip(self) -> bool:
        """Whether it has members of their own."""
        return "" not in self.members

    def changed(self, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
        """Return the file with other weights."""
        new = {name: bytearray(data) for name, data in self.members.items()}
        for member, at, dtype, nbytes in self.places:
            values = np.frombuffer(self.members[member], FLOATS[dtype], nbytes // _size(dtype), at)
            new[member][at : at + nbytes] = change(values).astype(FLOATS[dtype]).tobytes()
        if self.is_zip:
            return archive({name: bytes(data) for name, data in new.items()})
        return bytes(new[""])


def _size(dtype: str) -> int:
    return np.dtype(FLOATS[dtype]).itemsize


def kept(path: Path) -> Kept:
    """Read a fixture and find its weights in it."""
    data = path.read_bytes()
    suffix = next((s for s in SUFFIXES if path.name.endswith("." + s)), path.suffix[1:])
    members = {"": data}
    if zipfile.is_zipfile(path) and data[:2] == b"PK":
        with zipfile.ZipFile(path) as packed:
            members = {info.filename: packed.read(info) for info in packed.infolist()}
    found = Kept(suffix, members)
    with closing(open_checkpoint(path)) as reader:
        for name, ref in reader.checkpoint.tensors.items():
            if ref.dtype not in FLOATS or ref.nbytes < 256:
                continue
            payload = bytes(reader.read(name))
            for member, where in members.items():
                at = where.find(payload)
                while at >= 0:
                    found.places.append((member, at, ref.dtype, ref.nbytes))
                    at = where.find(payload, at + 1)
    return found


class Maker:
    """Writes a zoo.

    Parameters
    ----------
    folder : Path
        New, or empty.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.entries: list[Entry] = []
        self.rng = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        paths = sorted(path for pattern in SINGLE for path in FIXTURES.glob(pattern))
        self.kept = {
            f"{path.parent.name}/{path.name}": kept(path)
            for path in paths
            if path.suffix not in {".json"}
        }
        self._sound: list[tuple[Path, str, str]] = []

    def make(self, n: int) -> None:
        """Write n models, ``zoo.toml`` and ``expected.json``."""
        shares = {"broken": 0.12, "hostile": 0.08, "doubled": 0.08}
        counts = {kind: round(n * share) for kind, share in shares.items()}
        counts = {"sound": n - sum(counts.values()), **counts}
        makers = {
            "sound": self._sounds, "broken": self._broken, "hostile": self._hostile,
            "doubled": self._doubled,
        }  # fmt: skip
        for kind, count in counts.items():
            made = makers[kind]()
            for _ in range(count):
                next(made)
        self._write()

    def path(self, suffix: str, recipe: str | None = None) -> Path:
        """Return a new path under the folder of a recipe, and make its folder."""
        rng = self.rng
        recipe = recipe or rng.choice(list(RECIPES))
        while True:
            parts = [rng.choice(FOLDERS) for _ in range(rng.choice((0, 1, 1, 2)))]
            stem = rng.choice(STEMS) if rng.random() < 0.3 else rng.choice(STEMS[:3])
            mark = "" if rng.random() < 0.2 else f"-{rng.randrange(10_000)}"
            path = self.folder.joinpath(recipe, *parts, f"{stem}{mark}.{suffix}")
            if not os.path.lexists(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                return path

    def add(self, path: Path, kind: str, what: str, fate: str) -> None:
        """Note what is expected of a model."""
        self.entries.append(Entry(path.relative_to(self.folder).as_posix(), kind, what, fate))

    def noisy(self, values: np.ndarray) -> np.ndarray:
        """Return weights that are a little different, zeros as they are."""
        return values * (1 + 0.05 * self.numbers.standard_normal(values.shape))

    def _sounds(self) -> Iterator[None]:
        """Write sound models: every fixture in turn, and new ones of other shapes."""
        together = [FIXTURES / name for name in TOGETHER]
        folders = sorted(path for pattern in HUGGING_FACE for path in FIXTURES.glob(pattern))
        number = 0
        while True:
            for what, fixture in self.kept.items():
                path = self.path(fixture.suffix)
                path.write_bytes(fixture.changed(self.noisy))
                self._add_sound(path, what)
                yield
            for hidden in (16, 32, 64, 32):
                path = self.path("safetensors")
                label = f"zoo {self.rng.random()}"
                safetensors_models.save(path, safetensors_models.language_model(label, hidden))
                self._add_sound(path, f"an LSTM of {hidden}")
                yield
            for source in together:
                number += 1
                recipe = self.rng.choice(list(RECIPES))
                target = self.folder / recipe / f"several {number}" / source.name
                shutil.copytree(source, target)
                yield from self._added_together(target, source.name)
            for source in folders:
                number += 1
                target = self.folder / "hugging face" / f"{source.name} {number}"
                shutil.copytree(source, target)
                self.add(target, "sound", source.name, "done")
                yield

    def _add_sound(self, path: Path, what: str) -> None:
        self._sound.append((path, what, "done"))
        self.add(path, "sound", what, "done")

    def _added_together(self, folder: Path, what: str) -> Iterator[None]:
        index = list(folder.glob("*.index.json"))
        for path in index or sorted(folder.glob("*.hdf5")):
            self.add(path, "sound", what, "done")
            yield

    def _doubled(self) -> Iterator[None]:
        """Write the same bytes under another name, as a link, and the same name elsewhere."""
        while True:
            source, what, fate = self.rng.choice(self._sound)
            suffix = next(s for s in SUFFIXES if source.name.endswith("." + s))
            path = self.path(suffix)
            way = self.rng.randrange(4)
            if way == 0:
                path.symlink_to(os.path.relpath(source, path.parent))
            elif way == 1:
                os.link(source, path)
            elif way == 2:
                path = path.with_name(source.name)
                if os.path.lexists(path):
                    continue
                shutil.copyfile(source, path)
            else:
                shutil.copyfile(source, path)
            self.add(path, "doubled", what, fate)
            yield

    def _broken(self) -> Iterator[None]:
        """Write files that are no models, or not any more."""
        rng = self.rng
        while True:
            for how in (self._truncated, self._flipped, self._nonfinite):
                what, fixture = rng.choice(list(self.kept.items()))
                made = how(fixture)
                while made is None:
                    what, fixture = rng.choice(list(self.kept.items()))
                    made = how(fixture)
                path = self.path(fixture.suffix)
                path.write_bytes(made)
                copied = how == self._nonfinite and path.is_relative_to(self.folder / "copied")
                fate = "done" if copied else "failed"
                self.add(path, "broken", f"{how.__name__[1:]} {what}", fate)
                yield
            for what, data in _no_models(rng):
                path = self.path(rng.choice(SUFFIXES))
                path.write_bytes(data)
                self.add(path, "broken", what, "failed")
                yield
            path = self.path("safetensors")
            safetensors_models.save(path, {"bias": self.numbers.random(8).astype("<f4")})
            self.add(path, "broken", "nothing to compress", "failed")
            yield
            path = self.path("pt")
            path.symlink_to("nowhere.pt")  # no glob finds it, so it is no model
            folder = self.path("pt")
            folder.mkdir()  # nor this

    def _truncated(self, fixture: Kept) -> bytes | None:
        data = fixture.changed(self.noisy)
        return data[: self.rng.randrange(1, int(len(data) * 0.7))]

    def _flipped(self, fixture: Kept) -> bytes | None:
        """Flip a bit where a checksum or a header shows it."""
        data = bytearray(fixture.changed(self.noisy))
        if fixture.is_zip and fixture.suffix == "pt":
            with zipfile.ZipFile(io.BytesIO(data)) as packed:
                largest = max(packed.infolist(), key=lambda info: info.file_size)
            local = largest.header_offset  # whose padding, unlike its content, nothing sums up
            start = local + 30 + sum(struct.unpack("<HH", data[local + 26 : local + 30]))
            data[start + self.rng.randrange(largest.file_size)] ^= 1 << self.rng.randrange(8)
            return bytes(data)
        if fixture.suffix == "safetensors":
            data[8] ^= 1
            return bytes(data)
        if fixture.suffix == "tar.gz":
            data[len(data) // 2] ^= 1 << self.rng.randrange(8)
            return bytes(data)
        return None

    def _nonfinite(self, fixture: Kept) -> bytes | None:
        if fixture.suffix not in {"safetensors", "hdf5"} or not fixture.places:
            return None

        def spoiled(values: np.ndarray) -> np.ndarray:
            new = values.copy()
            new[self.rng.randrange(len(new))] = self.rng.choice((np.nan, np.inf, -np.inf))
            return new

        return fixture.changed(spoiled)

    def _hostile(self) -> Iterator[None]:
        """Write files that would run code, or fill the memory or the disk, or lead elsewhere."""
        rng = self.rng
        while True:
            for form in FORMS:
                module, name = rng.choice(CALLS)
                data = in_container(gadget(module, name, form, rng), rng.randrange(3))
                path = self.path("pt")
                path.write_bytes(data)
                self.add(path, "hostile", f"{form} of {module}.{name}", "failed")
                yield
            what, fixture = rng.choice([(w, f) for w, f in self.kept.items() if f.suffix == "pt"])
            if fixture.is_zip:  # a sound model that calls something as well: nothing is called
                path = self.path("pt")
                path.write_bytes(_poisoned(fixture, *rng.choice(CALLS)))
                self.add(path, "hostile", f"poisoned {what}", "done")
                yield
            for what, suffix, data in _lies():
                path = self.path(suffix)
                path.write_bytes(data)
                self.add(path, "hostile", what, "failed")
                yield

    def _write(self) -> None:
        suffixes = [f'"{{recipe}}/**/*.{suffix}"' for suffix in SUFFIXES]
        tables = ['[defaults]\ntarget = "all"\nrank = 4\n']
        for recipe, keys in RECIPES.items():
            there = {e.name.rsplit(".", 1)[-1] for e in self.entries if e.name.startswith(recipe)}
            wanted = [s for s in suffixes if s.rstrip('"').rsplit(".", 1)[-1] in there]
            if wanted:
                paths = ", ".join(wanted).replace("{recipe}", recipe)
                tables.append(f"[[model]]\npath = [{paths}]\n{keys}")
        if (self.folder / "hugging face").is_dir():
            tables.append('[[model]]\npath = "hugging face/*/"\nrank = 3\n')
        (self.folder / "zoo.toml").write_text("\n".join(tables))
        fates = {entry.name: entry for entry in sorted(self.entries, key=lambda e: e.name)}
        rows = {n: {"kind": e.kind, "what": e.what, "fate": e.fate} for n, e in fates.items()}
        (self.folder / "expected.json").write_text(json.dumps(rows, indent=1) + "\n")


def _no_models(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yield what lies about in folders of models."""
    yield "empty", b""
    yield "text", b"epoch 1 loss 4.2\n" * 40
    yield "image", b"\x89PNG\r\n\x1a\n" + rng.randbytes(2000)
    yield "noise", rng.randbytes(5000)
    yield "packed text", gzip.compress(b"nothing in here", mtime=0)
    yield "pickle of numbers", b"\x80\x02}(" + text("epoch") + b"K\x01u."
    yield "zip of a text", archive({"readme.txt": b"weights are elsewhere"})
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize 1234\n"
    yield "pointer of git-lfs", pointer % (b"0" * 64)


def _poisoned(fixture: Kept, module: str, name: str) -> bytes:
    """Return a zip file of torch whose pickle calls something first, and forgets the result."""
    call = f"c{module}\n{name}\n".encode() + text("touch MARK") + b"\x85R0"
    members = {
        member: data[:2] + call + data[2:] if member.endswith("data.pkl") else data
        for member, data in fixture.members.items()
    }
    return archive(members)


def _safetensors(header: bytes, payload: bytes = b"", length: int | None = None) -> bytes:
    size = len(header) if length is None else length
    return struct.pack("<Q", size) + header + payload


def _header(**tensors: tuple[str, list[int], list[int]]) -> bytes:
    return json.dumps(
        {n: {"dtype": d, "shape": s, "data_offsets": o} for n, (d, s, o) in tensors.items()}
    ).encode()


def _lies() -> Iterator[tuple[str, str, bytes]]:
    """Yield headers that lie and archives that swell, with their suffixes."""
    weight = "rnn.weight_hh_l0"
    huge = _header(**{weight: ("F32", [1 << 31, 1 << 31], [0, 16])})
    yield "header of 2^63 bytes", "safetensors", _safetensors(b"{}", length=1 << 63)
    yield "header of 90 MB", "safetensors", _safetensors(b"{}" + b" " * 64, length=90_000_000)
    yield "shape of 2^62", "safetensors", _safetensors(huge, bytes(16))
    overlap = _header(a=("F32", [4], [0, 16]), b=("F32", [4], [8, 24]))
    yield "overlapping tensors", "safetensors", _safetensors(overlap, bytes(24))
    beyond = _header(**{weight: ("F32", [16, 4], [0, 256])})
    yield "tensor beyond the end", "safetensors", _safetensors(beyond, bytes(100))
    nested = b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    yield "nested header", "safetensors", _safetensors(nested)
    state = (
        b"\x80\x02}(" + text(weight) + b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage")
        + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
        + b"J\x00\x00\x00\x01tQK\x00J\x00\x10\x00\x00J\x00\x10\x00\x00\x86J\x00\x10\x00\x00"
        b"K\x01\x86\x89}tRu."
    )  # fmt: skip
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, data in (("data.pkl", state), ("version", b"3\n"), ("data/0", bytes(64 << 20))):
            bomb.writestr(zipfile.ZipInfo(f"a/{name}"), data, zipfile.ZIP_DEFLATED)
    yield "zip bomb", "pt", packed.getvalue()
    short = {"a/data.pkl": state, "a/version": b"3\n", "a/data/0": bytes(64)}
    yield "storage that is too short", "pt", archive(short)
    doubling = b"\x80\x02" + b"K\x01" + b"2\x86" * 4000 + b"."
    yield "doubled tuples", "pt", in_container(doubling, 1)
    yield "deep pickle", "pt", in_container(b"\x80\x02" + b"]" * 30_000 + b"a" * 29_999 + b".", 1)
    led = io.BytesIO()
    with tarfile.open(fileobj=led, mode="w") as tar:
        for name in ("../../MARK", "weights.th"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"MARK"))
    yield "tar that leads elsewhere", "tar.gz", gzip.compress(led.getvalue(), mtime=0)
    swollen = gzip.compress(bytes(32 << 20), mtime=0)
    yield "gzip bomb", "tar.gz", swollen
    yield "HDF5 of which only the head is there", "hdf5", b"\x89HDF\r\n\x1a\n" + bytes(504)


def make_zoo(folder: Path, n: int, seed: int) -> None:
    """Make a zoo in a folder, new or empty."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        sys.exit(f"{folder} is not empty")
    Maker(folder, seed).make(n)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    make_zoo(given.folder, given.n, given.seed)
    expected = json.loads((given.folder / "expected.json").read_text())
    failed = sum(row["fate"] == "failed" for row in expected.values())
    print(f"{len(expected)} models, of which {failed} are to fail")


if __name__ == "__main__":
    main()
