"""The commit protocol: whole or as it was, whatever happens in between."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ckptshrink.errors import OutputError
from ckptshrink.io import renames
from ckptshrink.io.staging import Staging, check_target


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("aside", [True, False])
def test_folder_appears_whole_with_true_records(tmp_path: Path, aside: bool) -> None:
    data = os.urandom(20 << 20)
    with Staging(tmp_path / "out", aside=aside) as staging:
        file = staging.create("sub/a.bin")
        for start in range(0, len(data), 3_000_001):
            file.write(data[start : start + 3_000_001])
        staging.create("b.txt").write(b"b")
        records = staging.finish()
        assert not (tmp_path / "out").exists()
        staging.commit()
    assert _tree(tmp_path / "out") == {"sub/a.bin": data, "b.txt": b"b"}
    assert [(r.path, r.nbytes, r.sha256) for r in records] == [
        ("sub/a.bin", len(data), hashlib.sha256(data).hexdigest()),
        ("b.txt", 1, hashlib.sha256(b"b").hexdigest()),
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_is_not_committed_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Staging(tmp_path / "out") as staging:
        staging.create("a").write(b"x" * 100)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("aside", [True, False])
def test_buffer_may_be_reused_after_write(tmp_path: Path, aside: bool) -> None:
    buffer = bytearray(b"a" * 10)
    with Staging(tmp_path / "f", single=True, aside=aside) as staging:
        file = staging.create("f")
        file.write(buffer)
        buffer[:] = b"b" * 10
        file.write(memoryview(buffer))
        staging.commit()
    assert (tmp_path / "f").read_bytes() == b"a" * 10 + b"b" * 10


def test_mode_comes_from_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with Staging(tmp_path / "f", single=True) as staging:
            staging.create("f").write(b"x")
            staging.commit()
    finally:
        os.umask(before)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640


def test_overwrite_replaces_an_artefact_and_a_file(tmp_path: Path) -> None:
    for text in (b"one", b"two"):
        with Staging(tmp_path / "out", overwrite=True) as staging:
            staging.create("manifest.json").write(text)
            staging.commit()
        with Staging(tmp_path / "file", single=True, overwrite=True) as staging:
            staging.create("file").write(text)
            staging.commit()
    assert _tree(tmp_path) == {"out/manifest.json": b"two", "file": b"two"}


def test_overwrite_without_the_exchange_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renames, "_rename", lambda one, other, flag: False)
    test_overwrite_replaces_an_artefact_and_a_file(tmp_path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_refused_targets(tmp_path: Path, overwrite: bool) -> None:
    source = tmp_path / "in.pt"
    source.write_bytes(b"x")
    (tmp_path / "hard.pt").hardlink_to(source)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    cases = {
        source: "is the input, holds",
        tmp_path / "hard.pt": "the input under another name",
        tmp_path: "holds it",
        tmp_path / "link": "symbolic link",
        tmp_path / "none" / "out": "does not exist",
        tmp_path / "mine": "without manifest.json" if overwrite else "exists already",
    }
    for target, text in cases.items():
        with pytest.raises(OutputError, match=text):
            check_target(target, overwrite=overwrite, inputs=[source])
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_too_little_space_is_seen_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"needs 1,000,000,000,000,000 bytes"):
        Staging(tmp_path / "out", needed=10**15)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", ""])
def test_no_file_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="outside"), Staging(tmp_path / "out") as staging:
        staging.create(name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("aside", [True, False])
def test_a_failing_disk_leaves_the_old_artefact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, aside: bool
) -> None:
    old = tmp_path / "out"
    old.mkdir()
    (old / "manifest.json").write_text("old")

    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with (
        pytest.raises(OutputError, match=os.strerror(code)),
        Staging(old, overwrite=True, aside=aside) as staging,
    ):
        file = staging.create("big")
        monkeypatch.setattr(os, call, fail)
        for _ in range(10):
            file.write(b"x" * (9 << 20))
        staging.commit()
    monkeypatch.undo()
    assert _tree(tmp_path) == {"out/manifest.json": b"old"}


@pytest.mark.parametrize("aside", [True, False])
def test_bytes_that_read_back_otherwise_are_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aside: bool
) -> None:
    real = os.pread

    def flipped(descriptor: int, n: int, offset: int) -> bytes:
        data = bytearray(real(descriptor, n, offset))
        data[len(data) // 2] ^= 4
        return bytes(data)

    monkeypatch.setattr(os, "pread", flipped)
    with (
        pytest.raises(OutputError, match="read back"),
        Staging(tmp_path / "out", aside=aside) as staging,
    ):
        staging.create("a").write(b"x" * 1000)
        staging.commit()
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


_KILLED = """
import os, signal, sys
from pathlib import Path
from ckptshrink.io import renames, staging
target, point = Path(sys.argv[1]), int(sys.argv[2])
count = 0
def counted(name):
    real = getattr(os, name)
    def call(*args, **kwargs):
        global count
        count += 1
        if count == point:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
for name in ("write", "fsync", "open", "mkdir", "rename", "replace", "unlink", "rmdir", "link"):
    setattr(os, name, counted(name))
real = renames._rename
def rename(*args):
    global count
    count += 1
    if count == point:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
renames._rename = rename
with staging.Staging(target, overwrite=True) as stage:
    stage.create("manifest.json").write(b"new")
    stage.create("model").write(b"n" * 100)
    stage.commit()
"""


def test_killed_at_any_step_the_target_is_whole_and_orphans_are_swept(tmp_path: Path) -> None:
    old = {"out/manifest.json": b"old", "out/model": b"o" * 100}
    new = {"out/manifest.json": b"new", "out/model": b"n" * 100}
    target = tmp_path / "out"
    killed = 0
    for point in range(1, 60):
        with Staging(target, overwrite=True) as staging:
            staging.create("manifest.json").write(b"old")
            staging.create("model").write(b"o" * 100)
            staging.commit()
        assert _tree(tmp_path) == old, "an orphan of the last run was left"
        run = subprocess.run(
            [sys.executable, "-c", _KILLED, str(target), str(point)], capture_output=True
        )
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL, run.stderr.decode()
        killed += 1
        visible = {k: v for k, v in _tree(tmp_path).items() if not k.startswith(".")}
        assert visible in (old, new)
    assert killed > 10
    assert run.returncode == 0


def test_a_living_run_is_not_swept(tmp_path: Path) -> None:
    with Staging(tmp_path / "out") as first:
        first.create("a").write(b"first")
        with Staging(tmp_path / "out") as second:
            second.create("a").write(b"second")
            second.commit()
        with pytest.raises(OutputError):
            first.commit()
    assert _tree(tmp_path) == {"out/a": b"second"}
