"""``clean``: what killed runs left goes, what they set aside comes back; nothing else changes."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cli_helpers import Shrink
from faults import half_done, made, tree

from ckptshrink.io.part_folder import LOCK
from ckptshrink.io.staging import Staging


def write_folder(parent: Path, text: bytes) -> None:
    with Staging(parent / "out", overwrite=True) as staging:
        staging.create("model").write(text * 9)
        staging.create("manifest.json").write(text)
        staging.commit()


def orphan(parent: Path, name: str = "out", data: bytes = b"x" * 100) -> Path:
    """Leave what a kill while writing leaves."""
    part = made(parent / name)
    (part.new / name / "model").write_bytes(data)
    part.release()
    return part.path


def test_an_orphan_goes_and_what_is_beside_it_stays(tmp_path: Path, shrink: Shrink) -> None:
    (tmp_path / "model.pt").write_bytes(b"mine")
    path = orphan(tmp_path)
    done = shrink("clean", tmp_path, "--dry-run")
    assert (done.status, done.err) == (0, "would remove 1 part folder, 100 bytes\n")
    assert path.exists()
    done = shrink("clean", tmp_path)
    assert (done.status, done.err) == (0, "removed 1 part folder, 100 bytes\n")
    assert done.rows == [
        {"path": str(path), "fate": "removed", "nbytes": "100", "restored": "", "reason": ""}
    ]
    assert tree(tmp_path) == {"model.pt": b"mine"}
    assert shrink("clean", tmp_path).err == "removed 0 part folders, 0 bytes\n"


def test_an_overwrite_cut_short_is_put_right(
    tmp_path: Path, shrink: Shrink, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = half_done(tmp_path, monkeypatch, write_folder)
    before = tree(tmp_path)
    done = shrink("clean", tmp_path, "--dry-run", "--json")
    document = json.loads(done.out)
    assert document["dry_run"] is True
    assert document["found"] == [
        {
            "path": str(part), "fate": "put back", "nbytes": 30,
            "restored": [str(tmp_path / "out")], "reason": "",
        }
    ]  # fmt: skip
    assert tree(tmp_path) == before
    done = shrink("clean", tmp_path)
    assert done.status == 0
    assert f"put back {tmp_path / 'out'}" in done.err.splitlines()
    assert tree(tmp_path) == {"out/manifest.json": b"old", "out/model": b"old" * 9}


@pytest.mark.parametrize("command", ["plan", "compress", "restore"])
def test_a_run_that_is_refused_sweeps_too(
    command: str, tmp_path: Path, lstm: Path, artefact: Path, shrink: Shrink
) -> None:
    """What is killed after its rename leaves a target that is whole, and an orphan beside it."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "out").mkdir()
    (place / "out" / "model").write_bytes(b"whole")
    left = orphan(place)
    size = [] if command == "restore" else ["--target", "all", "--rank", 2]
    source = artefact if command == "restore" else lstm
    done = shrink(command, source, *size, "-o", place / "out")
    assert (done.status, len(done.err.splitlines()) <= 2) == (4, True), done.err
    assert not left.exists()
    assert tree(place) == {"out/model": b"whole"}


@pytest.mark.parametrize("command", ["compress", "restore"])
def test_a_dry_run_sweeps_nothing(
    command: str, tmp_path: Path, lstm: Path, artefact: Path, shrink: Shrink
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    left = orphan(place)
    size = [] if command == "restore" else ["--target", "all", "--rank", 2]
    source = artefact if command == "restore" else lstm
    assert shrink(command, source, *size, "-o", place / "out", "--dry-run").status == 0
    assert left.exists()


def test_an_overwrite_cut_short_is_done_again(
    tmp_path: Path, lstm: Path, shrink: Shrink, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    half_done(place, monkeypatch, write_folder)
    args = ("compress", lstm, "--target", "all", "--rank", 2, "-o", place / "out")
    done = shrink(*args)
    assert done.status == 4
    assert "out: exists already" in done.err
    assert tree(place) == {"out/manifest.json": b"old", "out/model": b"old" * 9}
    half_done(place, monkeypatch, write_folder)
    assert shrink(*args, "--overwrite").status == 0
    assert [path.name for path in place.iterdir()] == ["out"]
    assert shrink("verify", place / "out").status == 0


def test_two_that_claim_one_name_are_left_to_the_user(
    tmp_path: Path, shrink: Shrink, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_done(tmp_path, monkeypatch, write_folder)
    (tmp_path / "out").mkdir()
    before = tree(tmp_path)
    done = shrink("clean", tmp_path)
    assert done.status == 4
    assert "another out has appeared: keep the one you want" in done.err
    assert done.rows[0]["fate"] == "failed"
    assert tree(tmp_path) == before


def test_a_living_run_keeps_its_folder(tmp_path: Path, shrink: Shrink) -> None:
    with Staging(tmp_path / "out") as staging:
        staging.create("model").write(b"x")
        done = shrink("clean", tmp_path)
        assert done.status == 0
        assert [(row["fate"], row["reason"]) for row in done.rows] == [
            ("left", "a run is at work in it")
        ]
        staging.commit()
    assert tree(tmp_path) == {"out/model": b"x"}


def test_what_is_not_ours_is_left(tmp_path: Path, shrink: Shrink) -> None:
    foreign = tmp_path / ".out.part-0123456789ab"
    foreign.mkdir()
    (foreign / "notes").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / LOCK).write_text("")
    (tmp_path / ".out.part-0123456789ac").symlink_to("elsewhere")
    done = shrink("clean", tmp_path)
    assert done.status == 0
    assert [(row["path"], row["fate"]) for row in done.rows] == [(str(foreign), "left")]
    assert (foreign / "notes").read_text() == "mine"
    assert (tmp_path / "elsewhere" / LOCK).exists()


def test_below_only_where_asked_and_behind_no_link(tmp_path: Path, shrink: Shrink) -> None:
    zoo, other = tmp_path / "zoo", tmp_path / "other"
    (zoo / "a").mkdir(parents=True)
    other.mkdir()
    (zoo / "link").symlink_to(other)
    below, behind = orphan(zoo / "a"), orphan(other)
    shrink("clean", zoo)
    assert below.exists()
    assert shrink("clean", zoo, "-r").status == 0
    assert not below.exists()
    assert behind.exists()


def test_without_a_folder_it_is_this_one(
    tmp_path: Path, shrink: Shrink, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = orphan(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert [row["path"] for row in shrink("clean").rows] == [path.name]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["none", "file"])
def test_no_such_folder_is_an_input_error(tmp_path: Path, shrink: Shrink, name: str) -> None:
    (tmp_path / "file").write_text("x")
    done = shrink("clean", tmp_path / name)
    assert done.status == 3
    assert done.err.startswith(f"ckptshrink: {tmp_path / name}: can't be searched: ")


def test_the_next_run_to_a_target_sweeps_its_orphans_and_no_others(
    tmp_path: Path, lstm: Path, shrink: Shrink
) -> None:
    mine, others = orphan(tmp_path), orphan(tmp_path, "other")
    assert (
        shrink("compress", lstm, "--target", "Wh", "--rank", 4, "-o", tmp_path / "out").status == 0
    )
    assert not mine.exists()
    assert others.exists()


def test_a_killed_process_leaves_an_orphan_that_is_swept(
    tmp_path: Path, command: list[str], shrink: Shrink
) -> None:
    script = (
        "import sys, time; from pathlib import Path; from ckptshrink.io.staging import Staging\n"
        "with Staging(Path(sys.argv[1])) as s:\n"
        "    s.create('model').write(b'x' * 1000); print(flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [command[0], "-c", script, str(tmp_path / "out")], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    assert [row["fate"] for row in shrink("clean", tmp_path).rows] == ["left"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 10
    while tree(tmp_path) and time.monotonic() < end:
        assert shrink("clean", tmp_path).status == 0
    assert list(tmp_path.iterdir()) == []
