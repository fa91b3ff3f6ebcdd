"""Batches as processes of their own, that can be watched, killed and compared."""

import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MARK = "CKPTSHRINK_ZOO_BENCHMARK"
"""Variable of the environment by which all processes of a batch are found, orphans too."""

SUMMARIES = ("zoo.json", "zoo.csv", "index.html")
VARYING = ("seconds", "attempts")
"""What differs from run to run, and may."""


@dataclass
class Batch:
    """One command, its processes, and the most memory that the first of them took.

    Attributes
    ----------
    args : sequence of str
        Behind ``ckptshrink batch``.
    scratch : Path
        Where it runs, with its temporary files and what it says.
    command : sequence of str
        How ``ckptshrink batch`` is called.
    """

    args: Sequence[str]
    scratch: Path
    command: Sequence[str] = (sys.executable, "-m", "ckptshrink_cli", "batch")
    peak: int = 0
    seconds: float = 0.0
    starts: int = 0
    _process: "subprocess.Popen[bytes] | None" = None
    _began: float = 0.0
    _mark: str = field(default_factory=lambda: os.urandom(8).hex())

    def start(self) -> None:
        """Start it, the first time or again."""
        temporary = self.scratch / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {MARK: self._mark, "TMPDIR": str(temporary)}
        with (self.scratch / "out").open("ab") as out, (self.scratch / "err").open("ab") as err:
            self._process = subprocess.Popen(
                [*self.command, *self.args], cwd=self.scratch, env=environment, stdout=out,
                stderr=err, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self.starts += 1
        self._began = self._began or time.monotonic()

    @property
    def pid(self) -> int:
        """Return the number of the batch itself."""
        assert self._process is not None
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Return the exit status; None while it runs."""
        assert self._process is not None
        self.peak = max(self.peak, memory_of(self.pid))
        status = self._process.poll()
        if status is not None:
            self.seconds = time.monotonic() - self._began
        return status

    def wait(self, seconds: float = 3600.0, step: float = 0.02) -> int | None:
        """Wait for its end, or as long as this; return its status."""
        until = time.monotonic() + seconds
        while (status := self.status) is None and time.monotonic() < until:
            time.sleep(step)
        return status

    def run(self) -> int | None:
        """Start it and wait for its end."""
        self.start()
        return self.wait()

    @property
    def said(self) -> str:
        """Return what it wrote, standard error last."""
        parts = [(self.scratch / name).read_text(errors="replace") for name in ("out", "err")]
        return "".join(parts)

    def processes(self) -> dict[int, tuple[int, str]]:
        """Return every process that the batch has started: its parent and its command line."""
        return {
            pid: found
            for pid in _numbers()
            if _marked(pid, self._mark) and (found := _seen(pid)) is not None
        }

    def workers(self) -> list[int]:
        """Return the worker processes: children of a fork server of the batch."""
        found = self.processes()
        servers = {pid for pid, (parent, line) in found.items() if self._is_server(parent, line)}
        return [pid for pid, (parent, _) in found.items() if parent in servers]

    def server(self) -> int | None:
        """Return the process that workers are forked from."""
        found = self.processes().items()
        return next((pid for pid, (up, line) in found if self._is_server(up, line)), None)

    def helpers(self) -> list[int]:
        """Return everything but the batch itself."""
        return [pid for pid in self.processes() if pid != self.pid]

    def left(self, patience: float = 15.0) -> list[str]:
        """Return the command lines of processes that are still there some time after the end."""
        until = time.monotonic() + patience
        while (found := self.processes()) and time.monotonic() < until:
            time.sleep(0.1)
        return [line for _, line in found.values()]

    def end(self) -> None:
        """Kill whatever is left of it."""
        for pid in self.processes():
            send(pid, signal.SIGKILL)

    def _is_server(self, parent: int, line: str) -> bool:
        return parent == self.pid and "multiprocessing.forkserver" in line


def memory_of(pid: int) -> int:
    """Return the most bytes that a process had in memory, as far as is known now."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; return whether the process was there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _numbers() -> Iterator[int]:
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            yield int(path.name)


def _marked(pid: int, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _seen(pid: int) -> tuple[int, str] | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return None
    return None if stat[0] == "Z" else (int(stat[1]), line.decode(errors="replace"))


def _one(found: Sequence[int], rng: random.Random, number: signal.Signals) -> int:
    return int(bool(found) and send(rng.choice(found), number))


def kill_worker(batch: Batch, rng: random.Random) -> int:
    """Kill a worker."""
    return _one(batch.workers(), rng, signal.SIGKILL)


def ask_worker(batch: Batch, rng: random.Random) -> int:
    """Ask a worker to end, as a tidy administrator does."""
    return _one(batch.workers(), rng, signal.SIGTERM)


def crash_worker(batch: Batch, rng: random.Random) -> int:
    """Let a worker end as one that touched memory which is not its own."""
    return _one(batch.workers(), rng, signal.SIGSEGV)


def kill_all(batch: Batch, rng: random.Random) -> int:
    """Kill all workers at once."""
    return sum(send(pid, signal.SIGKILL) for pid in batch.workers())


def kill_server(batch: Batch, rng: random.Random) -> int:
    """Kill the process that workers are forked from."""
    server = batch.server()
    return 0 if server is None else int(send(server, signal.SIGKILL))


def kill_any(batch: Batch, rng: random.Random) -> int:
    """Kill any process but the batch itself: readers of HDF5 and Python's own helpers too."""
    return _one(batch.helpers(), rng, signal.SIGKILL)


def stop_worker(batch: Batch, rng: random.Random) -> int:
    """Let a worker stand still for a while, as a machine does that swaps."""
    found = batch.workers()
    if not found or not send(pid := rng.choice(found), signal.SIGSTOP):
        return 0
    batch.wait(1.5)
    send(pid, signal.SIGCONT)
    return 1


def kill_batch(batch: Batch, rng: random.Random) -> int:
    """Kill the batch itself, and start it again."""
    if not send(batch.pid, signal.SIGKILL):
        return 0
    batch.wait()
    batch.start()
    return 1


def ask_batch(batch: Batch, rng: random.Random) -> int:
    """Ask the batch to end, and start it again."""
    if not send(batch.pid, signal.SIGTERM):
        return 0
    if batch.wait() not in {143, -15}:  # it was done before it heard
        return 0
    batch.start()
    return 1


Killer = Callable[[Batch, random.Random], int]

KILLERS: dict[str, Killer] = {
    "worker": kill_worker, "workers": kill_all, "term": ask_worker, "crash": crash_worker,
    "server": kill_server, "any": kill_any, "stop": stop_worker, "batch": kill_batch,
    "batch-term": ask_batch,
}  # fmt: skip

SLOW = ("batch", "batch-term", "server")
"""What costs a start of Python and of torch each time: at a shorter interval nothing gets done."""


def disturbed(batch: Batch, killer: Killer, every: float, rng: random.Random) -> int:
    """Run a batch to its end while something happens to it; return how often it did."""
    batch.start()
    count = 0
    while batch.wait(every * rng.uniform(0.5, 1.5)) is None:
        count += killer(batch, rng)
    return count


def artefacts(out: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of every artefact, by its path."""
    found = {}
    for path in files(out):
        name = path.relative_to(out).as_posix()
        if not name.startswith("reports/") and name not in SUMMARIES:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def records(out: Path) -> dict[str, dict[str, Any]]:
    """Return every record by the name of its job, without what differs from run to run."""
    found = {}
    for path in files(out / "reports"):
        if path.name == "job.json" and ".part-" not in str(path.parent):
            record = json.loads(path.read_text().replace(str(out), "OUT"))
            name = path.parent.relative_to(out / "reports").as_posix()
            found[name] = {k: v for k, v in record.items() if k not in VARYING}
    return found


def table(out: Path) -> list[dict[str, str]]:
    """Return the rows of ``zoo.csv``, without what differs from run to run."""
    if not (out / "zoo.csv").is_file():
        return []
    with (out / "zoo.csv").open(newline="") as file:
        rows = list(csv.DictReader(line.replace(str(out), "OUT") for line in file))
    return [{k: v for k, v in row.items() if k not in VARYING} for row in rows]


def files(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder."""
    for head, _, names in os.walk(folder):
        yield from (Path(head, name) for name in names)


def state(folder: Path) -> dict[str, tuple[int, int, int, int]]:
    """Return what changes of a tree when anything in it is written, touched or replaced."""
    found = {}
    for head, folders, names in os.walk(folder):
        for name in [".", *folders, *names]:
            stat = Path(head, name).lstat()
            found[f"{head}/{name}"] = (
                stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns,
            )  # fmt: skip
    return found


def leavings(out: Path, scratch: Path, *, killed: bool = False) -> list[str]:
    """Return what is left that nobody asked for: part folders, locks, temporary files, marks.

    A batch that is killed before its first worker is there leaves the folder of its fork server's
    socket, which is Python's own: nobody is left who could remove it.
    """
    found = []
    for head, folders, names in os.walk(out):
        found += [
            f"{head}/{name}"
            for name in [*folders, *names]
            if ".part-" in name or name.endswith(".lock")
        ]
    temporary = scratch / "tmp"
    found += [
        str(path)
        for path in (temporary.iterdir() if temporary.is_dir() else ())
        if not (killed and path.name.startswith("pymp-"))
    ]
    known = {"tmp", "out", "err", "events.ndjson"}
    return found + [str(path) for path in scratch.iterdir() if path.name not in known]
