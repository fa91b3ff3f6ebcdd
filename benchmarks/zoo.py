"""A zoo of a thousand models, with workers killed, disks filled and machines lost on the way.

    python benchmarks/zoo.py --n 1000 --every 2 --seed 1
    python benchmarks/zoo.py --part kills --mode worker,batch --n 200

Parts, each of which prints a table:

kills       something happens every so many seconds (a worker killed, asked to end or stopped; all
            of them, the process that they are forked from, or the batch itself killed) until the
            zoo is done; then it is compared with an undisturbed run, byte by byte
second      a run over what is done: its seconds, and that nothing is written or touched
throughput  large models with one worker and with two, in turns; needs an idle machine
memory      the most memory of the batch itself, over zoos of different sizes
dask        a part of the zoo on a Dask scheduler with two workers, one of them killed; needs the
            extra ``cluster``
failures    a full disk, a read-only one, inputs that vanish, two batches on one output; the first
            two need root
footprint   the memory that `ckptshrink compress` takes, beside what was estimated

Exit status 1 if anything was lost, wrong or left over.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from full_size import make_awd, make_elmo
from zoo_maker import make_zoo, safetensors_models
from zoo_runs import (
    KILLERS,
    SLOW,
    Batch,
    artefacts,
    disturbed,
    leavings,
    memory_of,
    records,
    state,
    table,
)

from ckptshrink.errors import CkptshrinkError
from ckptshrink.verification import verify

PARTS = ("kills", "second", "throughput", "memory", "dask", "failures", "footprint")

SOME_FAILED = 6
SLOWEST = 5.0
"""Seconds that a run over what is done may take."""


@dataclass
class Lab:
    """A folder for everything, the options, and what was found wrong.

    Attributes
    ----------
    folder : Path
    given : argparse.Namespace
    wrong : list of str
    """

    folder: Path
    given: argparse.Namespace
    wrong: list[str] = field(default_factory=list)
    _zoos: dict[int, "Zoo"] = field(default_factory=dict)

    def batch(self, name: str, zoo: Path, out: Path, *more: str, workers: int = 2) -> Batch:
        """Return a batch that is yet to be started."""
        scratch = self.folder / f"run {name}"
        shutil.rmtree(scratch, ignore_errors=True)
        jobs = () if "--executor" in more else ("-j", str(workers))
        args = (str(zoo), "-o", str(out), *jobs, "-q", *more)
        command = self.given.command.split() if self.given.command else Batch.command
        return Batch(args, scratch, command)

    def zoo(self, n: int) -> "Zoo":
        """Return a zoo of this size with an undisturbed run, both made once."""
        if n not in self._zoos:
            self._zoos[n] = Zoo(self, n)
        return self._zoos[n]

    def blame(self, what: str, lines: Sequence[str]) -> int:
        """Note what is wrong, and return how much of it there is."""
        for line in lines[:20]:
            print(f"WRONG {what}: {line}", flush=True)
        self.wrong += [f"{what}: {line}" for line in lines]
        return len(lines)


class Zoo:
    """A zoo, and what an undisturbed run makes of it.

    Attributes
    ----------
    file, out : Path
    batch : Batch
        The undisturbed run.
    """

    def __init__(self, lab: Lab, n: int) -> None:
        self.n, self.folder = n, lab.folder / f"zoo {n}"
        self.file, self.out = self.folder / "zoo.toml", lab.folder / f"out {n}"
        make_zoo(self.folder, n, lab.given.seed)
        self.expected = json.loads((self.folder / "expected.json").read_text())
        self.batch = lab.batch(f"undisturbed {n}", self.file, self.out)
        status = self.batch.run()
        self.artefacts, self.records = artefacts(self.out), records(self.out)
        self.table = table(self.out)
        found = [*self.unexpected(self.records), *_status_line(status)]
        lab.blame(f"undisturbed run of {n}", found)
        done = sum(row["fate"] == "done" for row in self.expected.values())
        print(
            f"{n} models, {done} to be done and {n - done} to fail; undisturbed "
            f"{self.batch.seconds:.0f} s",
            flush=True,
        )

    def unexpected(self, found: dict[str, dict[str, Any]]) -> Iterator[str]:
        """Yield the models of which there is no record, or another than they were made for."""
        for name in sorted(self.expected.keys() | found.keys()):
            record, fate = found.get(name), self.expected.get(name, {}).get("fate")
            if record is None:
                yield f"lost: no record of {name!r}"
            elif record["status"] != fate:
                yield f"{name!r} is {record['status']}, and not {fate}: {record['failed']}"

    def differences(self, out: Path) -> Iterator[str]:
        """Yield what an output has otherwise than that of the undisturbed run."""
        yield from self.unexpected(found := records(out))
        for name, record in found.items():
            if record != self.records.get(name):
                yield f"{name!r}: another record: {record} for {self.records.get(name)}"
        made = artefacts(out)
        for name in sorted(made.keys() | self.artefacts.keys()):
            if made.get(name) != self.artefacts.get(name):
                there = "other bytes" if name in made and name in self.artefacts else "one has it"
                yield f"{name!r}: {there}"
        for name, row in self.expected.items():
            if row["fate"] == "done" and not _verifies(out / f"{name}.shrunk"):
                yield f"{name!r} does not verify"
        if table(out) != self.table:
            yield "zoo.csv is another one"


def _verifies(artefact: Path) -> bool:
    try:
        return verify(artefact).passed
    except CkptshrinkError:
        return False


def _status_line(status: int | None, wanted: int = SOME_FAILED) -> list[str]:
    return [] if status == wanted else [f"exit status {status}, and not {wanted}"]


def _after(lab: Lab, what: str, zoo: Zoo, batch: Batch, out: Path) -> tuple[int, int, int]:
    """Return how much was lost, wrong and left over after a run, and say what."""
    found = list(zoo.differences(out))
    lost = [line for line in found if line.startswith("lost")]
    wrong = [line for line in found if not line.startswith("lost")] + _status_line(batch.status)
    left = leavings(out, batch.scratch, killed=batch.starts > 1) + batch.left()
    if lost or wrong or left:
        (lab.folder.parent / f"said by {what}".replace("/", " ")).write_text(batch.said)
    return lab.blame(what, lost), lab.blame(what, wrong), lab.blame(what, left)


def row(*cells: Any) -> None:
    """Print a row of a table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def head(*cells: str) -> None:
    """Print the head of a table, of which all columns but the first are numbers."""
    print()
    row(*cells)
    print("|---|" + "---:|" * (len(cells) - 1))


def mb(nbytes: float) -> str:
    """Return bytes as megabytes."""
    return f"{nbytes / 1e6:,.0f} MB"


def kills(lab: Lab) -> None:
    """Disturb a run in each of the ways."""
    zoo = lab.zoo(lab.given.n)
    head("what happened", "models", "every", "times", "seconds", "status", "lost", "wrong", "left")
    for mode in lab.given.mode.split(","):
        every = max(lab.given.every, 6.0) if mode in SLOW else lab.given.every
        out = lab.folder / "out of kills"
        shutil.rmtree(out, ignore_errors=True)
        batch = lab.batch(f"kills {mode}", zoo.file, out)
        rng = random.Random(f"{lab.given.seed} {mode}")
        times = disturbed(batch, KILLERS[mode], every, rng)
        found = _after(lab, mode, zoo, batch, out)
        what = (KILLERS[mode].__doc__ or mode).splitlines()[0].rstrip(".").lower()
        row(what, zoo.n, f"{every:g} s", times, f"{batch.seconds:.0f}", batch.status, *found)


def second(lab: Lab) -> None:
    """Run over what is done."""
    zoo = lab.zoo(lab.given.n)
    head("a run over what is done", "models", "seconds", "written or touched")
    for number in range(3):
        before = state(zoo.out)
        batch = lab.batch("second", zoo.file, zoo.out)
        status = batch.run()
        after = state(zoo.out)
        touched = sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
        wrong = [f"touched: {path}" for path in touched] + _status_line(status)
        wrong += leavings(zoo.out, batch.scratch)
        if batch.seconds > SLOWEST:
            wrong.append(f"took {batch.seconds:.1f} s")
        lab.blame("second run", wrong)
        row(f"run {number + 2}", zoo.n, f"{batch.seconds:.2f}", len(touched))


LARGE = {
    "elmo": (make_elmo, "elmo-{}.hdf5", 'target = "Wh"\nrank = 400'),
    "awd": (make_awd, "awd-{}.pt", 'target = "Wi,Wh"\nrank = 100'),
}
"""Models of the papers' sizes: how they are made, their names, what is done with them."""


def throughput(lab: Lab) -> None:
    """Run large models with one worker and with two, in turns."""
    zoo = lab.folder / "large"
    zoo.mkdir(exist_ok=True)
    make, name, target = LARGE[lab.given.large]
    for number in range(lab.given.models):
        make(zoo / name.format(number), lab.given.seed + number)
    size = (zoo / name.format(0)).stat().st_size
    (zoo / "zoo.toml").write_text(
        f'[defaults]\n{target}\n\n[[model]]\npath = "{name.format("*")}"\n'
    )
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    print(f"\n{lab.given.models} of {mb(size)} ({target.replace(chr(10), ', ')}), {cores} cores, "
          f"load before {load:.1f}")  # fmt: skip
    head("round", "1 worker", "2 workers", "ratio", "without their start")
    ratios: list[tuple[float, float]] = []
    made = {}
    for number in range(lab.given.rounds):
        seconds, steady = {}, {}
        for workers in (1, 2) if number % 2 == 0 else (2, 1):
            out = lab.folder / f"out of {workers}"
            shutil.rmtree(out, ignore_errors=True)
            batch = lab.batch(
                f"large {workers}", zoo / "zoo.toml", out, "--events", "events.ndjson",
                workers=workers,
            )  # fmt: skip
            lab.blame("throughput", _status_line(batch.run(), 0))
            seconds[workers] = batch.seconds
            steady[workers] = _steady(batch.scratch / "events.ndjson", workers)
            made[workers] = artefacts(out)
        ratios.append((seconds[1] / seconds[2], steady[1] / steady[2]))
        row(number + 1, *(f"{seconds[w]:.1f} s" for w in (1, 2)), *(f"{r:.2f}" for r in ratios[-1]))
    row("median", "", "", *(f"{statistics.median(each):.2f}" for each in zip(*ratios, strict=True)))
    if made[1] != made[2]:
        lab.blame("throughput", ["two workers make other bytes than one"])


def _steady(events: Path, workers: int) -> float:
    """Return the seconds a model takes once every worker is at work, until one has no more."""
    ends = [
        datetime.fromisoformat(event["time"]).timestamp()
        for event in map(json.loads, events.read_text().splitlines())
        if event["event"] == "done"
    ]
    return (ends[-workers] - ends[workers - 1]) / (len(ends) - 2 * workers + 1)


def memory(lab: Lab) -> None:
    """Measure the batch itself over zoos of different sizes."""
    head("models", "batch itself, first run", "second run", "seconds")
    for n in map(int, lab.given.sizes.split(",")):
        zoo = lab.zoo(n)
        again = lab.batch("memory", zoo.file, zoo.out)
        again.run()
        row(n, mb(zoo.batch.peak), mb(again.peak), f"{zoo.batch.seconds:.0f}")


class Cluster:
    """A Dask scheduler and its workers, started by hand as a person would.

    Parameters
    ----------
    folder : Path
        New.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.file = folder, folder / "dask-scheduler-file.json"
        self._started: list[subprocess.Popen[bytes]] = []
        self._start("scheduler", "--port", "0")
        while not self.file.is_file():
            time.sleep(0.1)

    def add(self) -> None:
        """Start a worker."""
        self._start("worker", "--nthreads", "1", "--local-directory", str(self.folder))

    def kill(self, number: int) -> None:
        """Kill a worker, and its nanny, which would start another one."""
        os.killpg(self._started[1 + number].pid, signal.SIGKILL)

    def kill_inner(self, number: int) -> None:
        """Kill the process that a nanny watches."""
        nanny = self._started[1 + number].pid
        for pid in Path(f"/proc/{nanny}/task/{nanny}/children").read_text().split():
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGKILL)

    def end(self) -> None:
        """End it all."""
        for process in reversed(self._started):
            process.terminate()
        for process in self._started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _start(self, *args: str) -> None:
        command = [sys.executable, "-m", "dask", *args, "--scheduler-file", str(self.file)]
        with (self.folder / "log").open("ab") as log:
            self._started.append(
                subprocess.Popen(
                    [*command, "--no-dashboard"], stdout=log, stderr=log, cwd=self.folder,
                    start_new_session=True,
                )
            )  # fmt: skip


CLUSTERS = (
    "undisturbed", "one of two workers killed", "the process of a worker killed",
    "both workers killed, then a new one",
)  # fmt: skip


def dask(lab: Lab) -> None:
    """Run a part of the zoo on a Dask cluster of two workers, of which one is lost on the way."""
    zoo = lab.zoo(min(lab.given.n, 200))
    head("on a Dask cluster", "models", "seconds", "status", "lost", "wrong", "left")
    for number, what in enumerate(CLUSTERS):
        cluster = Cluster(lab.folder / f"cluster {number}")
        out = lab.folder / f"out of cluster {number}"
        try:
            for _ in range(2):
                cluster.add()
            batch = lab.batch(f"dask {number}", zoo.file, out, "--executor", str(cluster.file))
            batch.start()
            while number and batch.status is None and len(records(out)) < zoo.n // 4:
                time.sleep(0.1)
            if number == 1:
                cluster.kill(0)
            elif number == 2:
                cluster.kill_inner(0)
            elif number == 3:
                cluster.kill(0)
                cluster.kill(1)
                batch.wait(2)
                cluster.add()
            batch.wait()
            found = _after(lab, f"dask, {what}", zoo, batch, out)
            row(what, zoo.n, f"{batch.seconds:.0f}", batch.status, *found)
        finally:
            cluster.end()


@contextmanager
def disk(folder: Path, nbytes: int) -> Iterator[bool]:
    """Put a small disk at a folder; yield whether that is allowed here."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    """Change a disk while it is in use."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def failures(lab: Lab) -> None:
    """Take the disk, the inputs and the output away."""
    zoo = lab.zoo(min(lab.given.n, 100))
    head("what failed", "status", "done at first", "lost", "wrong", "left", "seconds")
    for part in (_full, _room_again, _read_only, _vanished, _two_at_once, _not_ours):
        part(lab, zoo)


def _said_so(lab: Lab, what: str, batch: Batch, wanted: Sequence[int]) -> None:
    """Blame a run that ended otherwise, or with a traceback."""
    if batch.status not in wanted:
        lab.blame(what, [f"exit status {batch.status}: {batch.said[-2000:]}"])
    if "Traceback" in batch.said:
        lab.blame(what, [f"a traceback: {batch.said[-3000:]}"])


def _needed(zoo: Zoo) -> int:
    return sum((zoo.out / name).stat().st_size for name in zoo.artefacts)


def _full(lab: Lab, zoo: Zoo) -> None:
    """Run on a disk that holds a part, then on one that holds all."""
    out = lab.folder / "full"
    with disk(out, _needed(zoo) // 2) as allowed:
        if not allowed:
            row("full disk: not allowed here", *[""] * 6)
            return
        batch = lab.batch("full", zoo.file, out, "--retries", "1")
        batch.run()
        _said_so(lab, "full disk", batch, (4, SOME_FAILED))
        first = sum(record["status"] == "done" for record in records(out).values())
        lab.blame("full disk", leavings(out, batch.scratch))
        remount(out, "size=2g")
        again = lab.batch("full again", zoo.file, out)
        again.run()
        found = _after(lab, "room again", zoo, again, out)
        row("full disk, then room and a second run", batch.status, first, *found,
            f"{batch.seconds:.0f} + {again.seconds:.0f}")  # fmt: skip


def _room_again(lab: Lab, zoo: Zoo) -> None:
    """Make room while the batch is at its retries."""
    out = lab.folder / "soon full"
    with disk(out, _needed(zoo) // 2) as allowed:
        if not allowed:
            return
        batch = lab.batch("soon full", zoo.file, out, "--retries", "6")
        batch.start()
        while batch.status is None and os.statvfs(out).f_bavail > 64:
            time.sleep(0.1)
        batch.wait(4)
        first = sum(record["status"] == "done" for record in records(out).values())
        remount(out, "size=2g")
        batch.wait()
        found = _after(lab, "room in the middle", zoo, batch, out)
        row("full disk, room in the same run", batch.status, first, *found, f"{batch.seconds:.0f}")


def _read_only(lab: Lab, zoo: Zoo) -> None:
    """Run on a disk that can't be written, from the start and from the middle on."""
    out = lab.folder / "read-only"
    with disk(out, 2 << 30) as allowed:
        if not allowed:
            return
        remount(out, "ro")
        batch = lab.batch("read-only", zoo.file, out)
        batch.run()
        _said_so(lab, "read-only output", batch, (4,))
        row("read-only output", batch.status, 0, 0, 0, len(leavings(out, batch.scratch)),
            f"{batch.seconds:.0f}")  # fmt: skip
        remount(out, "rw")
        batch = lab.batch("then read-only", zoo.file, out, "--retries", "1")
        batch.start()
        while batch.status is None and len(records(out)) < zoo.n // 3:
            time.sleep(0.1)
        made = False
        for _ in range(200):  # refused while a file is open for writing
            command = ["mount", "-o", "remount,ro", str(out)]
            if made := subprocess.run(command, capture_output=True).returncode == 0:
                break
        batch.wait()
        _said_so(lab, "output read-only from the middle on", batch, (4, SOME_FAILED))
        first = sum(record["status"] == "done" for record in records(out).values())
        if made:
            remount(out, "rw")
        again = lab.batch("writable again", zoo.file, out)
        again.run()
        found = _after(lab, "writable again", zoo, again, out)
        row("read-only from the middle on, then a second run", batch.status, first, *found,
            f"{batch.seconds:.0f} + {again.seconds:.0f}")  # fmt: skip


def _vanished(lab: Lab, zoo: Zoo) -> None:
    """Take inputs away after they were found, and bring them back."""
    out, away = lab.folder / "vanished", lab.folder / "away"
    shutil.rmtree(out, ignore_errors=True)
    away.mkdir(exist_ok=True)
    files = _files(zoo)
    taken = [n for n, e in sorted(zoo.expected.items()) if e["kind"] == "sound" and n in files][-4:]
    batch = lab.batch("vanished", zoo.file, out)
    batch.start()
    while batch.status is None and not records(out):
        time.sleep(0.02)
    for number, name in enumerate(taken):
        (zoo.folder / name).rename(away / str(number))
    batch.wait()
    _said_so(lab, "vanished input", batch, (SOME_FAILED,))
    found = records(out)
    gone = [name for name in taken if (found.get(name) or {}).get("status") == "failed"]
    lab.blame("vanished input", [f"no failure of {n!r}" for n in taken if n not in gone])
    for number, name in enumerate(taken):
        (away / str(number)).rename(zoo.folder / name)
    again = lab.batch("found again", zoo.file, out)
    again.run()
    after = _after(lab, "input is back", zoo, again, out)
    row(f"{len(taken)} inputs vanished, then back and a second run", batch.status,
        sum(r["status"] == "done" for r in found.values()), *after,
        f"{batch.seconds:.0f} + {again.seconds:.0f}")  # fmt: skip


def _files(zoo: Zoo) -> set[str]:
    """Return the models that are one plain file under one name."""
    return {
        name
        for name, entry in zoo.expected.items()
        if "several" not in name
        and (path := zoo.folder / name).is_file()
        and path.stat().st_nlink == 1
        and not any(p.is_symlink() and p.resolve() == path for p in _links(zoo))
    }


def _links(zoo: Zoo) -> list[Path]:
    return [zoo.folder / n for n in zoo.expected if (zoo.folder / n).is_symlink()]


def _two_at_once(lab: Lab, zoo: Zoo) -> None:
    """Start two batches on one output at once; and two shards, which may."""
    out = lab.folder / "two"
    shutil.rmtree(out, ignore_errors=True)
    batches = [lab.batch(f"two {number}", zoo.file, out) for number in (1, 2)]
    for batch in batches:
        batch.start()
    statuses = sorted(str(batch.wait()) for batch in batches)
    for batch in batches:
        _said_so(lab, "two at once", batch, (4, SOME_FAILED))
    last = max(batches, key=lambda batch: batch.seconds)
    found = _after(lab, "two at once", zoo, last, out)
    row("two batches on one output", " and ".join(statuses), "", *found, f"{last.seconds:.0f}")
    shutil.rmtree(out, ignore_errors=True)
    shards = [
        lab.batch(f"shard {number}", zoo.file, out, "--shard", f"{number}/2") for number in (1, 2)
    ]
    for batch in shards:
        batch.start()
    statuses = [str(batch.wait()) for batch in shards]
    for batch in shards:
        _said_so(lab, "two shards", batch, (0, SOME_FAILED))
    whole = lab.batch("whole", zoo.file, out)
    whole.run()
    for extra in out.glob("*-of-2.*"):  # what the shards sum up, which no other run has
        extra.unlink()
    found = _after(lab, "two shards", zoo, whole, out)
    row("two shards on one output, then all", " and ".join(statuses), "", *found,
        f"{max(b.seconds for b in shards):.0f} + {whole.seconds:.0f}")  # fmt: skip


def _not_ours(lab: Lab, zoo: Zoo) -> None:
    """Take a file, and a place that can't be made, for the output."""
    file = lab.folder / "a file"
    file.write_text("mine")
    for what, out in (("a file as output", file), ("output below a file", file / "x")):
        batch = lab.batch("not ours", zoo.file, out)
        batch.run()
        _said_so(lab, what, batch, (4,))
        left = lab.blame(what, [] if file.read_text() == "mine" else ["it was overwritten"])
        row(what, batch.status, 0, 0, 0, left, f"{batch.seconds:.0f}")


SHAPES = ((4600, 1150), (16384, 512), (32000, 1024), (4096, 4096))
METHODS: dict[str, dict[str, Any]] = {
    "svd": {"rank": 100},
    "svd, exact": {"rank": 100, "exact": True},
    "svd, energy": {"energy": 0.5},
    "semi-nmf": {"rank": 100, "method": "semi-nmf"},
    "prune": {"ratio": 0.25, "method": "prune"},
    "prune, energy": {"energy": 0.5, "method": "prune"},
}
LONG = {((4096, 4096), "svd, exact")}
"""What takes many minutes."""


def footprint(lab: Lab) -> None:
    """Measure what a compression and its check take, and what was foreseen."""
    from ckptshrink.zoo.footprint import footprint_of
    from ckptshrink.zoo.jobs import jobs_of
    from ckptshrink.zoo.settings import read_zoo

    folder = lab.folder / "shapes"
    folder.mkdir()
    head("matrix", "method", "compress", "verify", "estimated", "of the larger")
    rng = np.random.default_rng(lab.given.seed)
    for shape in SHAPES:
        path = folder / f"{shape[0]}x{shape[1]}.safetensors"
        values = rng.standard_normal(shape, np.float32)
        safetensors_models.save(path, {"weight": values})
        for name, keys in METHODS.items():
            if (shape, name) in LONG:
                continue
            text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
            zoo = folder / "zoo.toml"
            zoo.write_text(f'[[model]]\npath = "{path.name}"\ntarget = "weight"\n{text}')
            (job,) = jobs_of(read_zoo(zoo), folder, str(folder / "out"))
            estimated = footprint_of(job.work, path).peak
            options = [
                part
                for key, value in keys.items()
                for part in ([f"--{key}"] if value is True else [f"--{key}", str(value)])
            ]
            out = str(folder / "out")
            made = _peak("compress", str(path), "--target", "weight", *options, "-o", out,
                         "--overwrite", "-q")  # fmt: skip
            checked = _peak("verify", out, "--source", str(path), "-q")
            measured = max(made, checked)
            row(path.stem, name, mb(made), mb(checked), mb(estimated),
                f"{estimated / measured:.2f}")  # fmt: skip
            if estimated < measured:
                lab.blame("footprint", [f"{path.stem}, {name}: more than was estimated"])


def _peak(*args: str) -> int:
    process = subprocess.Popen(
        [sys.executable, "-m", "ckptshrink_cli", *args], stdout=subprocess.DEVNULL
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory_of(process.pid))
        time.sleep(0.005)
    if process.returncode != 0:
        sys.exit(f"{args}: status {process.returncode}")
    return peak


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", default=",".join(PARTS))
    parser.add_argument("--mode", default=",".join(KILLERS), help="of the part kills")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two kills")
    parser.add_argument("--sizes", default="100,1000,4000", help="of the part memory")
    parser.add_argument("--large", default="elmo", choices=LARGE, help="of the part throughput")
    parser.add_argument("--models", type=int, default=12, help="how many of these")
    parser.add_argument("--rounds", type=int, default=5, help="of the part throughput")
    parser.add_argument("--folder", type=Path, help="where everything is made")
    parser.add_argument("--command", default="", help="how the batch is called, if otherwise")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="zoo-", dir=given.folder) as made:
        lab = Lab(Path(made).resolve(), given)
        for part in given.part.split(","):
            PART_OF[part](lab)
    print(f"\nwrong: {len(lab.wrong)}")
    sys.exit(bool(lab.wrong))


PART_OF = {
    "kills": kills, "second": second, "throughput": throughput, "memory": memory, "dask": dask,
    "failures": failures, "footprint": footprint,
}  # fmt: skip


if __name__ == "__main__":
    main()
