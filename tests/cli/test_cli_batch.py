"""``ckptshrink batch`` as a user runs it: what it says, what it leaves, how it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from cli_helpers import Shrink
from zoo_helpers import ALL, Zoo, lstm, snapshot

from ckptshrink.verification import verify


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    for number, name in enumerate(["a", "deep/b", "c"]):
        lstm(tmp_path / "zoo" / f"{name}.safetensors", number)
    (tmp_path / "zoo.toml").write_text(ALL)
    monkeypatch.chdir(tmp_path)
    return Zoo(tmp_path)


@pytest.fixture
def broken(zoo: Zoo) -> Path:
    path = zoo.folder / "zoo" / "broken.safetensors"
    path.write_bytes(b"no")
    return path


def test_a_zoo_from_the_command_line(zoo: Zoo, broken: Path, program: Shrink) -> None:
    done = program("batch", "zoo.toml", "-j", 2, "--events", "events.ndjson", cwd=zoo.folder)
    assert done.status == 6
    header, *rows = (line.split("\t") for line in done.out.splitlines())
    assert [row[header.index("name")] for row in rows] == [
        "zoo/a.safetensors", "zoo/broken.safetensors", "zoo/c.safetensors",
        "zoo/deep/b.safetensors",
    ]  # fmt: skip
    assert [row[header.index("status")] for row in rows] == ["done", "failed", "done", "done"]
    assert "3 of 4 models done, 1 failed" in done.err
    assert "failed: zoo/broken.safetensors: compress: " in done.err
    out = zoo.folder / "zoo.shrunk"
    assert {path.name for path in out.iterdir()} == {
        "zoo", "reports", "zoo.json", "zoo.csv", "index.html",
    }  # fmt: skip
    assert verify(out / "zoo" / "a.safetensors.shrunk").passed
    lines = (zoo.folder / "events.ndjson").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert (events[0]["event"], events[0]["n_models"]) == ("begun", 4)
    assert events[-1]["event"] == "ended"
    assert sum(event["event"] == "started" for event in events) == 4
    statuses = sorted(event["status"] for event in events if event["event"] == "done")
    assert statuses == ["done", "done", "done", "failed"]

    before = snapshot(out)
    again = program("batch", "zoo.toml", cwd=zoo.folder)
    assert (again.status, again.out) == (6, done.out)
    assert "4 of them before" in again.err
    assert snapshot(out) == before

    shutil.copy(zoo.folder / "zoo" / "a.safetensors", broken)
    assert program("batch", "zoo.toml", cwd=zoo.folder).status == 0


def test_json_is_the_summary(zoo: Zoo, program: Shrink) -> None:
    done = program("batch", zoo.folder / "zoo.toml", "-o", zoo.folder / "out", "--json", "-q")
    assert (done.status, done.err) == (0, "")
    assert done.out == (zoo.folder / "out" / "zoo.json").read_text()


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    zoo: Zoo, broken: Path, shrink: Shrink
) -> None:
    done = shrink("batch", "zoo.toml", "--dry-run", "--json")
    assert done.status == 0
    document = json.loads(done.out)
    assert document["totals"]["n_to_do"] == 4
    assert document["totals"]["nbytes_needed"] > 0
    rows = {row["name"]: row for row in document["models"]}
    assert rows["zoo/a.safetensors"]["would"] == "everything"
    assert rows["zoo/a.safetensors"]["nbytes_peak"] > 0
    assert (
        "too short" in rows["zoo/broken.safetensors"]["error"]
        or rows["zoo/broken.safetensors"]["error"]
    )
    assert not (zoo.folder / "zoo.shrunk").exists()


def test_the_configuration_is_printed_with_what_it_comes_to(zoo: Zoo, shrink: Shrink) -> None:
    done = shrink("batch", "zoo.toml", "--print-config")
    (model,) = json.loads(done.out)["models"]
    assert model["recipe"] == {"target": ["Wh"], "rank": 3}
    assert len(model["checkpoints"]) == 3


def test_the_schema_is_printed(shrink: Shrink) -> None:
    assert json.loads(shrink("batch", "--schema").out)["title"] == "Zoo"


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        ([], 2, "give a ZOO"),
        (["none.toml"], 3, "can't be read: No such file"),
        (["wrong.toml"], 3, "unknown key 'rnak'; did you mean 'rank'?"),
        (["empty.toml"], 3, "'no/*.pt' matches nothing"),
        (["zoo.toml", "--only", "zoo/x"], 3, "no model is called 'zoo/x'"),
        (["zoo.toml", "--shard", "3/2"], 2, "is no shard"),
        (["zoo.toml", "--executor", "slurm"], 2, "no executor 'slurm'"),
        (["zoo.toml", "--executor", "dask://h:1", "-j", "2"], 2, "--jobs is of this machine"),
        (["zoo.toml", "--tls-cert", "x"], 2, "--tls-cert goes with --executor"),
        (["zoo.toml", "--executor", "gone.json"], 3, "there is no such scheduler file"),
        (["zoo.toml", "-o", "-"], 2, "- is no place to write to"),
        (["zoo.toml", "--events", "-"], 2, "- is no place to write to"),
        (["zoo.toml", "--failed", "--force"], 2, "--failed does again"),
        (["zoo.toml", "-o", "/proc/x"], 4, ""),
        (["zoo.toml", "-o", "file"], 4, ""),
        (["zoo.toml", "--events", "no/folder/e"], 4, "can't be written"),
    ],
)
def test_what_can_not_be_is_said_before_any_work(
    zoo: Zoo, shrink: Shrink, args: list[str], status: int, said: str
) -> None:
    (zoo.folder / "wrong.toml").write_text('[defaults]\nrnak = 3\n[[model]]\npath = "x"\n')
    (zoo.folder / "empty.toml").write_text(ALL + '[[model]]\npath = "no/*.pt"\n')
    (zoo.folder / "file").touch()
    done = shrink("batch", *args)
    assert (done.status, done.out) == (status, "")
    assert said in done.err
    assert "Traceback" not in done.err
    assert len([x for x in done.err.splitlines() if not x.startswith(("hint:", "  "))]) == 1


def test_shards_together_do_everything(zoo: Zoo, shrink: Shrink) -> None:
    names: list[str] = []
    for number in (1, 2, 3):
        done = shrink("batch", "zoo.toml", "--shard", f"{number}/3", "--json", "-q")
        assert done.status == 0
        names += [row["name"] for row in json.loads(done.out)["models"]]
        assert (zoo.folder / "zoo.shrunk" / f"zoo-{number}-of-3.json").is_file()
    assert len(names) == len(set(names)) == 3
    whole = shrink("batch", "zoo.toml", "--json")
    assert "3 of them before" in whole.err
    assert json.loads(whole.out)["totals"]["n_done"] == 3


def test_a_batch_keeps_others_out_of_its_output(zoo: Zoo, shrink: Shrink) -> None:
    import fcntl

    out = zoo.folder / "zoo.shrunk"
    out.mkdir()
    lock = os.open(out, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    done = shrink("batch", "zoo.toml")
    os.close(lock)
    assert (done.status, list(out.iterdir())) == (4, [])
    assert "another run is at work in it" in done.err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_that_is_stopped_goes_on_where_it_was(
    zoo: Zoo, program: Shrink, command: list[str], number: int, status: int
) -> None:
    for seed in range(20):
        lstm(zoo.folder / "zoo" / f"{seed}.safetensors", seed, hidden=256)
    events = zoo.folder / "events"
    args = [*command, "batch", "zoo.toml", "-j", "1", "--events", str(events)]
    started = subprocess.Popen(
        args, cwd=zoo.folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if events.exists() and '"done"' in events.read_text():
            break
        time.sleep(0.01)
    started.send_signal(number)
    _, err = started.communicate(timeout=60)
    assert started.returncode == status, err
    assert "Traceback" not in err
    found = [path for path in (zoo.folder / "zoo.shrunk").rglob("*") if "part" in path.name]
    assert not found
    done = program("batch", "zoo.toml", "-q", cwd=zoo.folder)
    assert done.status == 0, done.err
    shown = program("batch", "zoo.toml", cwd=zoo.folder)
    assert "23 of 23 models done" in shown.err


@pytest.mark.skipif(sys.platform != "linux", reason="finds workers in /proc")
def test_workers_that_are_killed_lose_nothing(
    zoo: Zoo, program: Shrink, command: list[str]
) -> None:
    for seed in range(12):
        lstm(zoo.folder / "zoo" / f"{seed}.safetensors", seed, hidden=256)
    started = subprocess.Popen(
        [*command, "batch", "zoo.toml", "-j", "2", "--json", "-q"],
        cwd=zoo.folder, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    killed = 0
    while started.poll() is None:
        time.sleep(0.005)  # the first as soon as it is there: all is done in a second
        for pid in _workers(started.pid)[-1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
            time.sleep(0.5)
    out, _ = started.communicate()
    assert started.returncode == 0
    assert killed
    document = json.loads(out)
    assert document["totals"]["n_done"] == 15
    for row in document["models"]:
        place = zoo.folder / "zoo.shrunk" / row["artefact"]
        assert verify(place, source=Path(row["source"])).passed
    program("batch", "zoo.toml", "-o", "calm", "-q", cwd=zoo.folder)
    calm = list((zoo.folder / "calm").rglob("model.safetensors"))
    assert len(calm) == 15
    for path in calm:
        other = zoo.folder / "zoo.shrunk" / path.relative_to(zoo.folder / "calm")
        assert other.read_bytes() == path.read_bytes()


def _workers(pid: int) -> list[int]:
    """Return the processes that are forked from the one that a batch forks them from."""
    return [worker for server in _children(pid) for worker in _children(server)]


def _children(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []
