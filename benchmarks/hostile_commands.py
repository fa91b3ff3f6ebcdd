"""The hostile set through the commands as a user runs them: a process each, its time and memory."""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
# without this folder, whose hostile.py would stand before the folder of that name in tests
sys.path[:] = [
    str(REPO / "tests"), str(REPO / "tests" / "unit"), str(REPO),
    *(place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent),
]  # fmt: skip

MOST_SECONDS = 1.0
MOST_MEBIBYTES = 256

# VmHWM, and not ru_maxrss, which begins with that of the process that started this one. The
# children are the process of HDF5 and its forks, whose peaks are added to the command's own.
PROBE = """
import json, resource, sys
from pathlib import Path
from ckptshrink_cli.main import run
status = run(sys.argv[1:])
process = sys.modules.get("ckptshrink.io.hdf5_process")
if process is not None:
    process.stop()
usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
seconds = sum(u.ru_utime + u.ru_stime for u in usage)
print(json.dumps([status, seconds, (peak + usage[1].ru_maxrss) / 1024]), file=sys.stderr)
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of a command: what it said and took."""

    status: int | None
    said: list[str]
    wall: float
    seconds: float
    mebibytes: float


def ran(arguments: Sequence[str], cwd: Path) -> Ran:
    """Run a command in a process of its own."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        capture_output=True, encoding="utf-8", errors="replace", cwd=cwd, timeout=120, check=False,
    )  # fmt: skip
    wall = time.perf_counter() - start
    *said, last = done.stderr.splitlines() or [""]
    try:
        status, seconds, mebibytes = json.loads(last)
    except ValueError:  # it died
        return Ran(None, [*said, last], wall, 0.0, 0.0)
    return Ran(status, said, wall, seconds, mebibytes)


def arguments_of(command: str, path: Path, out: Path) -> list[str]:
    """Return the command line over a file."""
    if command == "compress":
        return ["compress", str(path), "--target", "all", "--rank", "2", "-o", str(out), "-q"]
    return [command, str(path)]


def baseline(command: str, folder: Path) -> Ran:
    """Return what the command takes over a sound file: the median of five runs."""
    from hostile.hostile_set import lstm_safetensors

    path = folder / "sound.safetensors"
    path.write_bytes(lstm_safetensors())
    runs = [ran(arguments_of(command, path, folder / f"{command}{i}"), folder) for i in range(5)]
    median = statistics.median
    return Ran(0, [], median(r.wall for r in runs), median(r.seconds for r in runs),
               median(r.mebibytes for r in runs))  # fmt: skip


def run_case(case: Any, commands: Sequence[str]) -> list[dict[str, Any]]:
    """Run the commands over one case, and return a row of each.

    The limits hold for all that a refusal takes, the start of Python and the reader's own processes
    among it. A file that is read may take what reading it takes.
    """
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "case"
        folder.mkdir()
        path = case.make(folder)
        before = sorted(folder.rglob("*"))
        out = Path(name) / "out"
        for command in commands:
            tries = [ran(arguments_of(command, path, out), Path(name))]
            refused = tries[0].status in (1, 3)
            # Whatever else the machine does adds to the time, and never takes from it.
            while refused and tries[-1].seconds > MOST_SECONDS and len(tries) < 3:
                tries.append(ran(arguments_of(command, path, out), Path(name)))
            found = min(tries, key=lambda one: one.seconds)
            n_lines = sum(line.startswith("ckptshrink: ") for line in found.said)
            a_line_each = case.verdict.name.endswith("a line each")  # by inspect
            wrong = []
            if any(one.status not in case.statuses[command] for one in tries):
                wrong.append(f"exit status {found.status}")
            if found.status == 3 and n_lines != 1 and not (a_line_each and n_lines > 0):
                wrong.append("not one line")
            if any(line.startswith("Traceback") for line in found.said):
                wrong.append("a traceback")
            if sorted(folder.rglob("*")) != before:
                wrong.append("left something beside the file")
            if found.status and out.exists():
                wrong.append("wrote")
            # what compress says of values it has read them for, with the arithmetic imported
            reads = command == "compress" and (0 in case.statuses["inspect"] or a_line_each)
            if refused and not reads and found.seconds > MOST_SECONDS:
                wrong.append(f"{found.seconds:.2f} s")
            if refused and not reads and found.mebibytes > MOST_MEBIBYTES:
                wrong.append(f"{found.mebibytes:.0f} MiB")
            rows.append(
                {"kind": case.kind, "name": case.name, "command": command,
                 "status": found.status, "refused": refused and not reads, "wrong": wrong,
                 "seconds": found.seconds, "wall": found.wall, "memory": found.mebibytes}
            )  # fmt: skip
            shutil.rmtree(out, ignore_errors=True)
    return rows


def write_set(folder: Path, seed: int) -> int:
    """Write every file of the set below a folder, and what must become of each into set.json."""
    from hostile.hostile_set import cases

    listed = []
    for number, case in enumerate(cases(seed)):
        home = folder / case.kind.replace(" ", "_") / f"{number:04d}"
        home.mkdir(parents=True)
        path = case.make(home)
        listed.append(
            {"file": str(path.relative_to(folder) if path.is_relative_to(folder) else path),
             "class": case.kind, "name": case.name, "expected": case.verdict.name,
             "statuses": {command: sorted(s) for command, s in case.statuses.items()}}
        )  # fmt: skip
    text = json.dumps({"seed": seed, "files": listed}, indent=1)
    (folder / "set.json").write_text(text + "\n", encoding="utf-8")
    return len(listed)


def run_set(seed: int, jobs: int, every: int, commands: Sequence[str]) -> int:
    """Run the set, print a table by class, and return the exit status."""
    from hostile.hostile_set import cases

    chosen = cases(seed)[::every]
    with tempfile.TemporaryDirectory() as name:
        for command in commands:
            sound = baseline(command, Path(name))
            print(f"a sound file, {command}: {sound.seconds:.2f} s, {sound.mebibytes:.0f} MiB")
    with ThreadPoolExecutor(jobs) as pool:
        found_rows = list(pool.map(lambda case: run_case(case, commands), chosen))
    rows = [row for part in found_rows for row in part]
    print("class\tfiles\truns\trefusals\tdied\twrong\tslowest refusal, s\tmost memory, MiB")
    for kind in [*dict.fromkeys(row["kind"] for row in rows), "all"]:
        here = [row for row in rows if kind in (row["kind"], "all")]
        refused = [row for row in here if row["refused"]]
        print(
            kind, len({(row["kind"], row["name"]) for row in here}), len(here), len(refused),
            sum(row["status"] is None for row in here), sum(bool(row["wrong"]) for row in here),
            f"{max((row['seconds'] for row in refused), default=0):.2f}",
            f"{max((row['memory'] for row in refused), default=0):.0f}",
            sep="\t",
        )  # fmt: skip
    for row in sorted(rows, key=lambda row: -row["seconds"] * row["refused"])[:5]:
        print(f"slow: {row['seconds']:.2f} s: {row['kind']}: {row['name']}: {row['command']}")
    wrong = [row for row in rows if row["wrong"]]
    for row in wrong[:40]:
        print(f"wrong: {row['kind']}: {row['name']}: {row['command']}: {', '.join(row['wrong'])}")
    return int(bool(wrong))
