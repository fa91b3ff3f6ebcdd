"""The program failed and killed at every call; ``benchmarks/crash.py`` does it in full."""

import errno
import os
import resource
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from cli_helpers import Shrink
from faults import Killed, faults, numbered, tree, visible

Job = tuple[list[str], str]


FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


@pytest.fixture(params=["plan", "restore", "compress", "dense", "packed", "archive"])
def job(request: pytest.FixtureRequest, lstm: Path, artefact: Path) -> Job:
    """Return a command that writes, without ``-o`` and what comes after."""
    size = ["--target", "all", "--rank", "3"]

    def dense(source: str) -> list[str]:
        return ["compress", str(FIXTURES / source), *size, "--format", "dense"]

    args = {
        "plan": ["plan", str(lstm), *size],
        "restore": ["restore", str(artefact)],
        "compress": ["compress", str(lstm), *size],
        "dense": ["compress", str(lstm), *size, "--format", "dense"],
        "packed": dense("elmo/packed/elmo_packed.hdf5"),  # the HDF5 process writes it
        "archive": dense("allennlp/tagger.tar.gz"),  # its weights go by way of a nameless file
    }
    return args[request.param], f"made.{request.param}"


@pytest.mark.parametrize("code", [None, errno.ENOSPC], ids=["kill", "ENOSPC"])
def test_failed_or_killed_at_every_call(
    code: int | None, job: Job, tmp_path: Path, shrink: Shrink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # hundreds of them take seconds
    args, target = job
    if code is not None and target == "made.packed":
        pytest.skip("a process for each run takes long: benchmarks/crash.py does it")
    inputs = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    place = tmp_path / "place"
    place.mkdir()
    args = [*args, "-o", str(place / target), "--overwrite", "-q"]
    assert shrink(*args).status == 0
    new = tree(place)
    (old_name,) = [n for n in new if n.endswith("manifest.json")] or list(new)
    old = {**new, old_name: b"old"}
    for number in numbered():
        (place / old_name).write_bytes(b"old")
        with faults(monkeypatch, number, code) as found:
            try:
                done = shrink(*args)
            except Killed:
                done = None
        if not found.fired:
            break
        assert visible(place) in (old, new)
        if code is not None:
            assert done is not None
            # a fault in cleaning up is none of the user's
            there = done.status == 0 or "is there and whole" in done.err
            assert visible(place) == (new if there else old), done.err
            assert done.status in {0, 4}
            assert done.status == 0 or len(done.err.splitlines()) == 1
        if tree(place) != new:
            assert shrink(*args).status == 0
        assert tree(place) == new
    assert number > 12
    assert {path: path.read_bytes() for path in inputs} == inputs


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    ("call", "fault"), [("fsync", "error=EIO"), ("rename,renameat,renameat2", "signal=KILL")]
)
def test_faults_of_the_kernel(
    call: str, fault: str, lstm: Path, tmp_path: Path, command: list[str]
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    target = place / "plan.json"
    job = ["plan", str(lstm), "--target", "Wh", "--rank", "4", "-o", str(target), "--overwrite"]
    plain = subprocess.run([*command, *job], capture_output=True, text=True, timeout=100)
    assert plain.returncode == 0, plain.stderr
    new = tree(place)
    for number in numbered():
        target.write_bytes(b"old")
        rules = ["-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={number}"]
        strace = ["strace", "-f", "-o", str(tmp_path / "trace"), *rules]
        done = subprocess.run(
            [*strace, *command, *job], capture_output=True, text=True, timeout=100
        )
        if "ptrace" in done.stderr:
            pytest.skip("ptrace is not allowed here")
        trace = (tmp_path / "trace").read_text()
        killed = "killed by SIGKILL" in trace
        if not killed and "(INJECTED)" not in trace:
            break
        assert visible(place) in ({"plan.json": b"old"}, new)
        if not killed:
            assert done.returncode == 4, done.stderr
            assert len(done.stderr.splitlines()) == 1
            assert visible(place) == tree(place)
    assert number > 1
    assert subprocess.run([*command, *job, "-q"], capture_output=True).returncode == 0
    assert tree(place) == new


def test_two_runs_at_once_leave_one_whole(lstm: Path, tmp_path: Path, command: list[str]) -> None:
    place = tmp_path / "place"
    place.mkdir()
    job = ["plan", str(lstm), "--target", "Wh", "--rank", "4", "-o", str(place / "p"), "-q"]
    runs = [
        subprocess.Popen([*command, *job], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    ended = sorted((run.communicate()[1].count(b"\n"), run.returncode) for run in runs)
    # those that see it before they begin say so, with a hint
    assert [status for _, status in ended].count(0) == 1
    assert {status for _, status in ended} == {0, 4}
    assert [path.name for path in place.iterdir()] == ["p"]


def test_a_file_that_may_not_grow_is_one_line(lstm: Path, tmp_path: Path, program: Shrink) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    place = tmp_path / "place"
    place.mkdir()
    job = ["plan", lstm, "--target", "Wh", "--rank", 4, "-o", place / "p"]
    done = program(*job, preexec_fn=limited)
    assert done.status == 4
    assert done.err == (
        f"ckptshrink: {place / 'p'}: can't be written: File too large; nothing was left behind\n"
    )
    assert list(place.iterdir()) == []


def test_what_is_staged_in_several_steps_is_told_by_the_name_of_the_target(
    tmp_path: Path, program: Shrink
) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    size = ["--target", "all", "--rank", 2, "--format", "dense", "-q"]
    done = program(
        "compress", FIXTURES / "keras/lm.keras", *size, "-o", tmp_path / "d", preexec_fn=limited
    )
    assert done.status == 4
    assert done.err == f"ckptshrink: {tmp_path / 'd'}: can't be written: File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_temporary_files_is_one_line(tmp_path: Path, program: Shrink) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    packed, folder = tmp_path / "packed.keras", tmp_path / "temporary"
    folder.mkdir()
    with (
        zipfile.ZipFile(FIXTURES / "keras/lm.keras") as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made,
    ):
        for name in source.namelist():
            made.writestr(name, source.read(name))
    for path in (packed, FIXTURES / "allennlp/tagger.tar.gz"):
        done = program("inspect", path, preexec_fn=limited, env={"TMPDIR": str(folder)})
        assert done.status == 3
        first, hint = done.err.splitlines()
        assert first == f"ckptshrink: {path}: can't be unpacked into {folder}: File too large"
        assert hint.startswith("hint: the variable TMPDIR")
        assert list(folder.iterdir()) == []
