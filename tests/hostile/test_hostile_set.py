"""Every file of the hostile set through the commands, in this process, under an audit hook.

The same files through real processes, with their time and memory: ``benchmarks/hostile.py --set``.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile.hostile_gadgets import BAD
from hostile.hostile_set import (
    CLASSES,
    NO_LAYOUT,
    Case,
    cases,
    dangerous_globals,
    lstm_safetensors,
    many_entries,
    truncation,
)

from ckptshrink.errors import UnsafeCheckpointError
from ckptshrink.io.detect import open_checkpoint
from ckptshrink_cli.main import run

SEED = 1
SET = cases(SEED)
LEFT_OUT = ("laughing", "deep", "tuple", "many opcodes", "deflate bomb that")
"""Each takes half a second by design: one container and one command here, the rest outside."""


class Watch:
    """Audit events while a file is looked at, apart from the opening of that file."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.events: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None or event.startswith(("builtins.id", "array.__new__")):
            return
        if event.startswith(("socket.__new__", "socket.sendmsg")):  # to the process of HDF5
            return
        if event in {"open", "os.listdir", "os.scandir"}:
            path = os.fspath(args[0]) if not isinstance(args[0], int) else ""
            path = os.fsdecode(path)
            # an archive is unpacked into a file without a name
            if path.startswith((str(self.folder), "/dev/zero")) or path == "/tmp":
                return
        self.events.append(f"{event} {args!r}"[:300])


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    "x".encode("cp437")  # of names in zip files
    sound = tmp_path_factory.mktemp("sound") / "x.safetensors"
    sound.write_bytes(lstm_safetensors())
    for command in ("inspect", "check"):  # what is imported to read any checkpoint is ours
        assert run([command, str(sound)]) == 0
    found = Watch()
    yield found
    found.folder = None


def commands(case: Case, number: int) -> list[str]:
    if case.slow and case.name.startswith(LEFT_OUT):
        return ["inspect"] if case.name.endswith("zip") else ["check"]
    # the reader is the same one: compress over one in five, and where values decide
    compress = number % 5 == 0 or case.kind == "values"
    if case.kind == "HDF5 corruption" and not compress:
        return ["inspect"] if number % 2 else ["check"]  # a fork each
    return ["inspect", *(["compress"] if compress else []), "check"]


def arguments(command: str, path: Path, out: Path) -> list[str]:
    if command == "compress":
        return ["compress", str(path), "--target", "all", "--rank", "2", "-o", str(out), "-q"]
    return [command, str(path)]


@pytest.mark.parametrize("kind", dict.fromkeys(case.kind for case in SET))
def test_all_of_it(
    kind: str, tmp_path: Path, watch: Watch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong: list[str] = []
    of_kind = [case for case in SET if case.kind == kind]
    out = tmp_path / "out"
    for warm_up in (True, False):  # what is imported on the way to an error is ours
        for number, case in enumerate(of_kind[:3] if warm_up else of_kind):
            folder = tmp_path / "case"
            folder.mkdir()
            path = case.make(folder)
            before = sorted(folder.rglob("*"))
            for command in commands(case, number):
                capsys.readouterr()
                watch.events.clear()
                watched = command != "compress" and not warm_up
                watch.folder = folder if watched else None
                status = run(arguments(command, path, out))
                watch.folder = None
                said = capsys.readouterr().err
                where = f"{case.name}: {command}"
                if status not in case.statuses[command]:
                    wrong.append(f"{where}: exit status {status}: {said[:200]}")
                lines = said.splitlines()
                n_errors = sum(line.startswith("ckptshrink: ") for line in lines)
                each = case.verdict is NO_LAYOUT and command == "inspect"  # a line a tensor
                if (n_errors != (status == 3) and not (each and n_errors)) or "Traceback" in said:
                    wrong.append(f"{where}: more or less than a line: {said[:300]}")
                if any(ord(c) < 32 or ord(c) == 127 for line in lines for c in line):
                    wrong.append(f"{where}: a control character: {said[:300]!r}")
                if watch.events:
                    wrong.append(f"{where}: {watch.events[:3]}")
                if status != 0 and out.exists():
                    wrong.append(f"{where}: wrote")
                if sorted(folder.rglob("*")) != before:
                    wrong.append(f"{where}: left something beside the file")
                shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(folder)
    assert not wrong, "\n".join(wrong[:20])
    assert sorted(tmp_path.iterdir()) == []


def test_compress_refuses_before_torch_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(BAD)
    code = (
        "import sys; from ckptshrink_cli.main import run; "
        f"print(run({arguments('compress', path, tmp_path / 'out')!r}), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "False"]
    assert sorted(tmp_path.iterdir()) == [path]


def test_entries_are_counted_before_any_reader_goes_through_them(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(many_entries(120_000, 1))  # zipfile would make a record of each
    with pytest.raises(UnsafeCheckpointError, match="has 120,000 zip entries"):
        open_checkpoint(path)
    path.write_bytes(b"PK\3\4" + path.read_bytes())  # and it reads past what comes before
    with pytest.raises(UnsafeCheckpointError, match="has 120,000 zip entries"):
        open_checkpoint(path)


def test_the_watch_would_notice(watch: Watch, tmp_path: Path) -> None:
    watch.folder = tmp_path
    watch.events.clear()
    os.system("true")
    (tmp_path / "x").write_text("")
    with Path(__file__).open():
        pass
    watch.folder = None
    assert [event.partition(" ")[0] for event in watch.events] == ["os.system", "open"]


def test_the_set_is_what_it_says(tmp_path: Path) -> None:
    counts = Counter(case.kind for case in SET)
    assert len(counts) >= len(CLASSES)
    assert len(SET) > 1000
    assert len({(case.kind, case.name) for case in SET}) == len(SET)
    # the least that the classes must have, whoever edits them
    least = {
        "dangerous globals": 200, "scanner bypasses": 150, "pickle DoS": 20, "zip": 25,
        "tensor geometry": 12, "safetensors headers": 37, "values": 35, "HDF5 links": 15,
        "HDF5 sizes": 10, "HDF5 corruption": 100, "truncation": 100, "tar archives": 60,
        "keras": 20, "torch tar": 12, "TorchScript": 6, "shard indexes": 20, "model folders": 10,
    }  # fmt: skip
    assert {kind: n for kind, n in least.items() if counts[kind] < n} == {}


def test_the_same_seed_makes_the_same_files(tmp_path: Path) -> None:
    def made(seed: int) -> list[bytes]:
        found = []
        for case in (*dangerous_globals(seed), *truncation(seed)):
            folder = tmp_path / "x"
            folder.mkdir()
            found.append(case.name.encode() + case.make(folder).read_bytes())
            shutil.rmtree(folder)
        return found

    assert made(1) == made(1)
    assert made(1) != made(2)
