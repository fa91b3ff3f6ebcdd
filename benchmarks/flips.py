"""Flip one bit anywhere in an artefact, and see whether `verify` finds it. It must, every time.

Run: ``python benchmarks/flips.py [--n 10000] [--seed 1]``

Half of the flips are spread over the bytes of an artefact, half over its files, so that small ones
get theirs too; then a bit of every byte of headers, index and manifest is flipped; then come
changes of other kinds: cut, longer, swapped, renamed, added, removed, written differently.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from ckptshrink.errors import ManifestMismatchError
from ckptshrink.io.staging import MANIFEST
from ckptshrink.verification import verify
from ckptshrink_cli.main import run

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"

_SIZE = ("--target", "all", "--ratio", "0.5")

ARTEFACTS = {
    "hdf5": ("elmo/one_layer/lm_weights.hdf5", *_SIZE),
    "hdf5 per gate": ("elmo/one_layer/lm_weights.hdf5", *_SIZE, "--grouping", "per-gate"),
    "torch zip": ("torch/lstm_state.zip.pt", *_SIZE),
    "torch zip pruned": ("torch/lstm_state.zip.pt", *_SIZE, "--method", "prune"),
    "torch legacy": ("torch/awd_lstm_state.legacy.pt", *_SIZE, "--method", "semi-nmf"),
    "safetensors": ("safetensors/lstm.safetensors", *_SIZE, "--dtype", "float16"),
    "safetensors, shards": (
        "safetensors/sharded/model.safetensors.index.json", *_SIZE, "--max-shard-size", "4kB",
    ),
    "packed hdf5": ("elmo/packed/elmo_packed.hdf5", *_SIZE),
    "keras": ("keras/lm.keras", *_SIZE),
    "tar.gz": ("allennlp/tagger.tar.gz", *_SIZE),
    "torch tar": ("torch/awd_lstm_bare.tar.pt", *_SIZE),
    "TorchScript": ("torch/tagger.script.pt", *_SIZE),
    "folder of a model": ("transformers/t5", *_SIZE),
}  # fmt: skip


def make(folder: Path) -> dict[str, Path]:
    """Write an artefact of every kind, and check that each is right as it is."""
    made = {}
    for number, (name, (source, *options)) in enumerate(ARTEFACTS.items()):
        made[name] = folder / f"a{number}"
        with Path(os.devnull).open("w") as null, contextlib.redirect_stdout(null):
            args = ["compress", str(FIXTURES / source), *options, "-o", str(made[name]), "-q"]
            status = run(args)
        if status != 0 or not verify(made[name]).passed:
            sys.exit(f"{name}: can't be made")
    return made


def is_found(artefact: Path) -> bool:
    """Return whether `verify` says that something is wrong. Whatever else it does is an error."""
    try:
        return not verify(artefact).passed
    except ManifestMismatchError:
        return True


def files_of(artefact: Path) -> list[Path]:
    """Return the files of an artefact."""
    return sorted(path for path in artefact.rglob("*") if path.is_file())


def flip(path: Path, byte: int, bit: int) -> None:
    """Flip one bit of a file; a second time puts it back."""
    with path.open("r+b") as file:
        file.seek(byte)
        (value,) = file.read(1)
        file.seek(byte)
        file.write(bytes([value ^ (1 << bit)]))


def random_places(artefact: Path, rng: random.Random) -> Iterator[tuple[Path, int, int]]:
    """Yield bits for ever: by turns one of all bytes, and one of a file that is drawn first."""
    files = files_of(artefact)
    sizes = [path.stat().st_size for path in files]
    while True:
        (path,) = rng.choices(files, sizes)
        yield path, rng.randrange(path.stat().st_size), rng.randrange(8)
        path = rng.choice(files)
        yield path, rng.randrange(path.stat().st_size), rng.randrange(8)


def header_places(artefact: Path, rng: random.Random) -> Iterator[tuple[Path, int, int]]:
    """Yield a bit of every byte of what says what the other bytes mean."""
    for path in files_of(artefact):
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            stop = 8 + int.from_bytes(data[:8], "little")
        else:
            stop = len(data) if path.suffix == ".json" else 0
        for byte in range(stop):
            yield path, byte, rng.randrange(8)


def renamed(path: Path) -> None:
    """Rename a tensor in the header of a safetensors file, to a name as long."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    names = [name for name in json.loads(data[8 : 8 + length]) if name != "__metadata__"]
    name = max(names, key=len)
    path.write_bytes(data.replace(f'"{name}"'.encode(), f'"x{name[1:]}"'.encode(), 1))


def _rewritten(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(artefact: Path) -> None:
        path = artefact / MANIFEST
        data = path.read_bytes()
        path.write_bytes(change(data))
        if path.read_bytes() == data:
            raise ValueError("nothing was changed")

    return apply


def _reordered(data: bytes) -> bytes:
    value = json.loads(data)
    return json.dumps(dict(reversed(value.items())), indent=1, ensure_ascii=False).encode() + b"\n"


def _unsealed(data: bytes) -> bytes:
    return json.dumps({**json.loads(data), "manifest_sha256": "0" * 64}, indent=1).encode() + b"\n"


def _with(**changed: object) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({**json.loads(data), **changed}, indent=1).encode() + b"\n"


def _number(data: bytes, other: bytes) -> bytes:
    return re.sub(rb'(?<="rel_error": )[0-9.e-]+', other, data, count=1)


MANIFEST_CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "manifest: a blank more": lambda data: data.replace(b": ", b":  ", 1),
    "manifest: no last newline": lambda data: data.rstrip(b"\n"),
    "manifest: a newline more": lambda data: data + b"\n",
    "manifest: lines end as on Windows": lambda data: data.replace(b"\n", b"\r\n"),
    "manifest: a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "manifest: indented by two": lambda data: json.dumps(json.loads(data), indent=2).encode(),
    "manifest: keys in another order": _reordered,
    "manifest: another seal": _unsealed,
    "manifest: no seal": lambda data: _with(manifest_sha256="")(data),
    "manifest: another seed": _with(seed=12345),
    "manifest: a field more": _with(more=1),
    "manifest: no files": _with(files=[]),
    "manifest: a number that is none": lambda data: data.replace(b'"seed": 0', b'"seed": NaN'),
    "manifest: an error that is none": lambda data: _number(data, b"NaN"),
    "manifest: an endless error": lambda data: _number(data, b"1e999"),
    "manifest: a number said otherwise": lambda data: _number(data, b"0.10"),
    "manifest: a letter said otherwise": lambda data: data.replace(b'"svd"', b'"\\u0073vd"', 1),
    "manifest: a key twice": lambda data: data.replace(b'"seed": 0', b'"seed": 1, "seed": 0'),
    "manifest: empty": lambda data: b"",
    "manifest: deep": lambda data: b"[" * 100_000,
}


def changes(artefact: Path) -> dict[str, Callable[[Path], None]]:
    """Return changes to make to a copy of an artefact, by what they are."""
    found: dict[str, Callable[[Path], None]] = {
        name: _rewritten(change) for name, change in MANIFEST_CHANGES.items()
    }
    names = [path.relative_to(artefact).as_posix() for path in files_of(artefact)]
    for name in names:

        def cut(copy: Path, name: str = name) -> None:
            data = (copy / name).read_bytes()
            (copy / name).write_bytes(data[: len(data) // 2])

        def shorter(copy: Path, name: str = name) -> None:
            (copy / name).write_bytes((copy / name).read_bytes()[:-1])

        def longer(copy: Path, name: str = name) -> None:
            (copy / name).write_bytes((copy / name).read_bytes() + b"\0")

        def linked(copy: Path, name: str = name) -> None:
            (copy / name).rename(copy.parent / "elsewhere")
            (copy / name).symlink_to(copy.parent / "elsewhere")

        def folder(copy: Path, name: str = name) -> None:
            (copy / name).unlink()
            (copy / name).mkdir()

        found |= {
            f"{name}: cut": cut,
            f"{name}: a byte less": shorter,
            f"{name}: a byte more": longer,
            f"{name}: removed": lambda copy, name=name: (copy / name).unlink(),
            f"{name}: renamed": lambda copy, name=name: (copy / name).rename(copy / f"{name}x"),
            f"{name}: a link to its copy": linked,
            f"{name}: a folder": folder,
        }
        if name.endswith(".safetensors"):
            found[f"{name}: a tensor renamed"] = lambda copy, name=name: renamed(copy / name)
    for one, other in itertools.pairwise(names):

        def swapped(copy: Path, one: str = one, other: str = other) -> None:
            (copy / one).rename(copy / "x")
            (copy / other).rename(copy / one)
            (copy / "x").rename(copy / other)

        found[f"{one} and {other} swapped"] = swapped
    found["a file more"] = lambda copy: (copy / "notes.txt").write_text("") and None
    found["a hidden file more"] = lambda copy: (copy / ".x").write_text("x") and None
    found["a folder more"] = lambda copy: (copy / "empty").mkdir()
    found["a link more"] = lambda copy: (copy / "link").symlink_to("README.md")
    return found


def _skipped(change: Callable[[Path], None], copy: Path) -> bool:
    """Make a change; return whether there was nothing of that kind to change."""
    try:
        change(copy)
    except ValueError:
        return True
    return False


def tamper(artefact: Path, scratch: Path) -> Iterator[tuple[str, bool]]:
    """Make every change to a copy of an artefact; yield what it was and whether it was found."""
    for what, change in changes(artefact).items():
        copy = scratch / "copy"
        shutil.copytree(artefact, copy)
        if not _skipped(change, copy):
            yield what, is_found(copy)
        shutil.rmtree(scratch)
        scratch.mkdir()


def main() -> None:
    """Flip, tamper, and print how much of it was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000, help="random flips, over all artefacts")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    missed = 0
    print("| artefact | random flips | header bytes | other changes | missed |")
    print("|---|---:|---:|---:|---:|")
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="flips-") as made:
        folder = Path(made)
        artefacts = make(folder)
        (folder / "scratch").mkdir()
        for number, (name, artefact) in enumerate(artefacts.items()):
            counts: Counter[str] = Counter()
            share = len(range(number, options.n, len(artefacts)))
            kinds = {"random": random_places(artefact, rng), "header": header_places(artefact, rng)}
            for kind, places in kinds.items():
                for path, byte, bit in places:
                    if kind == "random" and counts[kind] == share:
                        break
                    counts[kind] += 1
                    flip(path, byte, bit)
                    if not is_found(artefact):
                        counts["missed"] += 1
                        print(f"MISSED {name}: {path.name}, byte {byte}, bit {bit}")
                    flip(path, byte, bit)
            for what, found in tamper(artefact, folder / "scratch"):
                counts["other"] += 1
                if not found:
                    counts["missed"] += 1
                    print(f"MISSED {name}: {what}")
            if not verify(artefact).passed:
                sys.exit(f"{name}: was not put back")
            row = [counts[kind] for kind in ("random", "header", "other", "missed")]
            print(f"| {name} | {' | '.join(f'{n:,}' for n in row)} |", flush=True)
            total.update(counts)
    missed = total["missed"]
    done = total["random"] + total["header"] + total["other"]
    print(f"\n{done - missed:,} of {done:,} changes were found")
    sys.exit(missed != 0)


if __name__ == "__main__":
    main()
