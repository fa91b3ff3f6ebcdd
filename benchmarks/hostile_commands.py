"""The hostile set through the commands as a user runs them: a process each, its time and memory."""

import json
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
    str(REPO / "tests"), str(REPO),
    *(place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent),
]  # fmt: skip

MOST_SECONDS = 1.0
MOST_MEBIBYTES = 256

# VmHWM, and not ru_maxrss, which begins with that of the process that started this one. The children
# are the process of HDF5 and its forks, whose peaks are added to the command's own.
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


def baselines(command: str, folder: Path) -> Ran:
    """Return what the command takes over a sound file: the median of five runs."""
    from hostile.hostile_set import lstm_safetensors

    path = folder / "sound.safetensors"
    path.write_bytes(lstm_safetensors())
    runs = [ran(arguments_of(command, path, folder / f"{command}{i}"), folder) for i in range(5)]
    median = statistics.median
    return Ran(0, [], median(r.wall for r in runs), median(r.seconds for r in runs),
               median(r.mebibytes for r in runs))  # fmt: skip


def run_case(case: Any, commands: Sequence[str], sound: dict[str, Ran]) -> list[dict[str, Any]]:
    """Run the commands over one case, and return a row of each."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "case"
        folder.mkdir()
        path = case.make(folder)
        before = sorted(folder.rglob("*"))
        for command in commands:
            found = ran(arguments_of(command, path, Path(name) / "out"), Path(name))
            wrong = []
            if found.status not in case.statuses[command]:
                wrong.append(f"exit status {found.status}")
            if found.status == 3 and sum(s.startswith("ckptshrink: ") for s in found.said) != 1:
                wrong.append("not one line")
            if any(line.startswith("Traceback") for line in found.said):
                wrong.append("a traceback")
            if sorted(folder.rglob("*")) != before:
                wrong.append("left something beside the file")
            if found.status and (Path(name) / "out").exists():
                wrong.append("wrote")
            more = found.seconds - sound[command].seconds
            memory = found.mebibytes - sound[command].mebibytes
            if more > MOST_SECONDS:
                wrong.append(f"{more:.2f} s")
            if memory > MOST_MEBIBYTES:
                wrong.append(f"{memory:.0f} MiB")
            rows.append(
                {"kind": case.kind, "name": case.name, "command": command, "more": more,
                 "status": found.status, "wall": found.wall - sound[command].wall,
                 "memory": memory, "wrong": wrong}
            )  # fmt: skip
    return rows


def write_set(folder: Path, seed: int) -> int:
    """Write every file of the set below a folder, and ``set.json`` with what must become of each."""
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
        sound = {command: baselines(command, Path(name)) for command in commands}
    for command, found in sound.items():
        print(f"a sound file, {command}: {found.seconds:.2f} s, {found.mebibytes:.0f} MiB")
    with ThreadPoolExecutor(jobs) as pool:
        found_rows = list(pool.map(lambda case: run_case(case, commands, sound), chosen))
    rows = [row for part in found_rows for row in part]
    print("class\tfiles\truns\trefused or found\tdied\twrong\tmost s more\tmost MiB more")
    kinds = [*dict.fromkeys(row["kind"] for row in rows), "all"]
    for kind in kinds:
        here = [row for row in rows if kind in (row["kind"], "all")]
        print(
            kind, len({(row["kind"], row["name"]) for row in here}), len(here),
            sum(row["status"] in (1, 3) for row in here),
            sum(row["status"] is None for row in here), sum(bool(row["wrong"]) for row in here),
            f"{max(row['more'] for row in here):.2f}", f"{max(row['memory'] for row in here):.0f}",
            sep="\t",
        )  # fmt: skip
    wrong = [row for row in rows if row["wrong"]]
    for row in wrong[:40]:
        print(f"wrong: {row['kind']}: {row['name']}: {row['command']}: {', '.join(row['wrong'])}")
    return int(bool(wrong))
