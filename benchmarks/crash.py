"""Kill and fail the program at every call that changes a file system, and look what is left.

Run: ``python benchmarks/crash.py [--only compress-folder,...] [--part faults,random,...]``

Parts:

faults   each call, at its n-th time for every n until there is none: killed, ENOSPC, EIO (strace)
random   SIGKILL, SIGTERM, SIGINT and SIGHUP at random moments
full     a disk that is really full, at every size (a tmpfs, so root is needed), and RLIMIT_FSIZE
pairs    two runs on one target at once; the target's folder taken away in the middle of a run

After each run: the target is as it was or whole, byte for byte; the input is untouched; the exit
status is 4 with one line, or the signal's; nothing but a part folder is left, and the next run to
the target succeeds and sweeps it. Faults need strace, and leave to trace: apt-get install strace.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a fork has none of the threads of its parent

from crash_runs import (
    KILLED,
    ROOT,
    Ended,
    Job,
    Place,
    finish,
    preload,
    run,
    start,
    traced,
    tree,
    visible,
)  # fmt: skip

from ckptshrink.io.part_folder import LOCK

_ALL = ("--target", "all", "--rank", "2", "-q")
_ELSE = ("--target", "all", "--rank", "3", "-q")

CONTAINERS = {
    "hdf5": ("fixtures/elmo/one_layer", "lm_weights.hdf5"),
    "zip": ("fixtures/torch/lstm_state.zip.pt", "lstm_state.zip.pt"),
    "legacy": ("fixtures/torch/awd_lstm_state.legacy.pt", "awd_lstm_state.legacy.pt"),
    "safetensors": ("fixtures/safetensors/lstm.safetensors", "lstm.safetensors"),
    "sharded": ("fixtures/safetensors/sharded", "model.safetensors.index.json"),
    "packed": ("fixtures/elmo/packed", "elmo_packed.hdf5"),  # written by the HDF5 process
    "keras": ("fixtures/keras/lm.keras", "lm.keras"),
    "archive": ("fixtures/allennlp/tagger.tar.gz", "tagger.tar.gz"),
    "tar": ("fixtures/torch/awd_lstm_bare.tar.pt", "awd_lstm_bare.tar.pt"),
    "script": ("fixtures/torch/tagger.script.pt", "tagger.script.pt"),
    "t5": ("fixtures/transformers/t5", "."),  # a model's folder, of torch shards
    "bert": ("fixtures/transformers/bert", "."),
}

PACKED = {"packed"}
"""Those of which a dense or restored one is written by the HDF5 process: compressed datasets."""

FOLDERS = {"sharded", "t5", "bert"}
"""Those of which a dense or restored one is a folder without a manifest: never overwritten."""

CALLS = (
    "write", "pwrite64", "writev", "ftruncate", "fsync", "fdatasync", "openat", "close", "mkdir",
    "mkdirat", "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "rmdir",
    "chmod", "fchmod", "fchmodat", "flock",
)  # fmt: skip

FAULTS = ("signal=KILL", "error=ENOSPC", "error=EIO")

_LOADING = ("openat", "close")
"""What libraries do too when they are loaded, and not all of them can bear that it fails."""

CLEANING = ("unlink", "unlinkat", "rmdir", "openat", "close")
"""What a run cleans up with: where that fails, the next run has to."""

ENDS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


def jobs(folder: Path) -> list[Job]:
    """Return every kind of writer, over every container."""
    found = []
    for kind, (source, name) in CONTAINERS.items():
        file = "{in}/" + name
        for form, target in (("factored", "o"), ("dense", "d")):
            packs = form == "dense" and kind in PACKED
            job = ("compress", file, "--format", form, "-o", "{out}/" + target)
            over, args = (*job, *_ELSE), (*job, *_ALL, "--overwrite")
            new = (*job, *_ALL)
            found.append(Job(f"compress-{form}-{kind}", new, source, target, packs=packs))
            if form == "factored" or kind not in FOLDERS:
                again = Job(f"overwrite-{form}-{kind}", args, source, target, over, packs=packs)
                found.append(again)
            if form == "factored" and kind in {"hdf5", "sharded"}:
                found.append(Job(f"aside-{kind}", args, source, target, over, plain=True))
        packs = kind in PACKED
        two, three = (_artefact(folder / f"{kind}-{rank}", kind, rank) for rank in (2, 3))
        restore = ("restore", "{in}/a", "-o", "{out}/r", "-q")
        over = ("restore", f"{three}/a", "-o", "{out}/r", "-q")
        found.append(Job(f"restore-{kind}", restore, str(two), "r", packs=packs))
        if kind not in FOLDERS:
            args = (*restore, "--overwrite")
            again = Job(f"overwrite-restore-{kind}", args, str(two), "r", over, packs=packs)
            found.append(again)
    source, name = CONTAINERS["safetensors"]
    plan = ("plan", "{in}/" + name, "-o", "{out}/p.json")
    found.append(Job("plan", (*plan, *_ALL), source, "p.json"))
    args = (*plan, *_ALL, "--overwrite")
    found.append(Job("overwrite-plan", args, source, "p.json", (*plan, *_ELSE)))
    return found + _evaluations(folder / "scored")


def _artefact(folder: Path, kind: str, rank: int) -> Path:
    source, name = CONTAINERS[kind]
    file = ROOT / source / name if (ROOT / source).is_dir() else ROOT / source
    folder.mkdir()
    size = ("--target", "all", "--rank", str(rank), "-q")
    ended = run(["compress", str(file), *size, "-o", str(folder / "a")], folder.parent / "log")
    if ended.status != 0:
        sys.exit(f"{kind}: no artefact to restore: {ended.err}")
    return folder


def _evaluations(folder: Path) -> list[Job]:
    """Return an evaluation by a program, of which two files are written."""
    source, name = CONTAINERS["safetensors"]
    folder.mkdir()
    shutil.copy(ROOT / source, folder)
    for score in (0, 1):
        examples = [{"id": f"{i}", "accuracy": score} for i in range(9)]
        metric = {
            "name": "accuracy",
            "value": score,
            "better": "higher",
            "unit": "fraction",
            "n": 9,
        }
        document = {"metrics": [metric], "examples": examples}
        (folder / f"{score}.json").write_text(json.dumps(document))
    base = ("eval", "{in}/" + name, "--task", "command", "-o", "{out}/e.json", "-q")
    commands = (f"sh -c 'cat {folder}/{score}.json' {{path}}" for score in (1, 0))
    one, zero = ((*base, "--command", command) for command in commands)
    return [
        Job("eval", one, str(folder), "e.json"),
        Job("overwrite-eval", (*one, "--overwrite"), str(folder), "e.json", zero),
    ]


class Tally:
    """Counts, and what went wrong."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def add(self, what: str, found: Iterable[str]) -> None:
        """Take what is wrong after a run."""
        self.counts["runs"] += 1
        for line in found:
            self.wrong.append(f"{what}: {line}")
            print(f"WRONG {what}: {line}", flush=True)


def faults(place: Place, tally: Tally) -> Iterator[tuple[str, int]]:
    """Tamper with each call at each of its times; yield each fault and how often it was met.

    strace counts the calls of each thread, and each file is written by a thread of its own: so the
    faults are put on each file by itself too, by its path.
    """
    job = place.job
    between = job.plain or "eval" in job.name
    part = place.out / f".{job.target}.part-{'0' * 12}"
    files = [str(part / "new" / name) for name in place.new]
    made = (
        "",
        "new",
        f"new/{job.target}",
        "old",
        LOCK,
        "passing",
        *(f"old/{n}" for n in place.new),
    )
    ends = [place.out, *(place.out / name for name in place.new), *(part / name for name in made)]
    here = [*map(str, ends), *files]
    for fault in FAULTS:
        met = 0
        sites = [(call, here if call in _LOADING or "eval" in job.name else []) for call in CALLS]
        # by itself, a file is written to by its own thread only; all else was met before
        for call, paths in [*sites, *(("write", [path]) for path in files)]:
            where = f" of {paths[0]}" if len(paths) == 1 else ""
            for number in range(1, 1000):
                place.reset()
                inject = [f"{call}:{fault}:when={number}"]
                if job.plain and call != "renameat2":
                    inject.append("renameat2:error=ENOSYS")
                ended, lines = traced(place.args(), place.log, inject, paths, borrow=not job.packs)
                if job.plain and call != "renameat2":
                    lines = [line for line in lines if "renameat2" not in line]
                if not any("KILL" not in fault or KILLED in line for line in lines):
                    break
                killed = ended.status == -signal.SIGKILL
                met += 1
                left = killed or call in CLEANING
                found = list(place.wrong(ended, left=left, between=between))
                if not killed:
                    found += _refusal(ended, call)
                tally.add(f"{job.name}: {fault} at {call} {number}{where}", found)
        print(f"{job.name}, {fault}: {met}", file=sys.stderr, flush=True)
        yield fault, met


def _refusal(ended: Ended, call: str) -> Iterator[str]:
    """Yield what is wrong with how a run ended that met an error."""
    lines = [line for line in ended.err.splitlines() if not line.startswith("hint: ")]
    others = ("can't be unpacked into", "the HDF5 library ended over it")
    reading = ended.status == 3 and any(text in ended.err for text in others)
    if ended.status not in {0, 4} and not reading:
        yield f"status {ended.status}: {ended.err.strip()}"
    # standard error is written to as well, and the first write of a thread is failed in each
    elif ended.status and len(lines) != 1 and (lines or call != "write"):
        yield f"not one line: {ended.err.strip()}"


def at_random(place: Place, tally: Tally, rng: random.Random, rounds: int) -> None:
    """Send a signal at a random moment of a run."""
    place.reset()
    pid, go = start(place.args(), place.log)
    time.sleep(0.2)  # the fork alone can take longer than the run
    began = time.monotonic()
    finish(pid, go, place.log)
    seconds = time.monotonic() - began
    for _ in range(rounds):
        place.reset()
        number = rng.choice(list(ENDS))
        pid, go = start(place.args(), place.log)
        time.sleep(0.2)
        os.write(go, b"g")
        time.sleep(rng.uniform(0.05, 1.0) * seconds)
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        ended = finish(pid, go, place.log, let_go=False)
        tally.counts[f"{number.name} ended it" if ended.status else "came too late"] += 1
        found = list(place.wrong(ended, left=ended.status < 0, between="eval" in place.job.name))
        # a signal that arrives before there are handlers ends the process by itself
        if ended.status not in {0, ENDS[number], -number}:
            found.append(f"status {ended.status} of {number.name}: {ended.err.strip()}")
        tally.add(f"{place.job.name}: {number.name}", found)


def full(place: Place, tally: Tally) -> None:
    """Run on disks and under limits that are too small, in ever smaller steps of what is needed."""
    largest = max(map(len, place.new.values()))
    for limit in range(0, largest + 1, max(1, largest // 12)):
        place.reset()

        def limited(limit: int = limit) -> None:
            # and this process's own output is a file too, so it must be short
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        ended = run(place.args(), place.log, prepare=limited)
        found = list(place.wrong(ended, left=False, between=False))
        if limit >= 4096:  # below, not even the error can be written
            found += _refusal(ended, "write")
        tally.add(f"{place.job.name}: files of at most {limit:,} bytes", found)
        tally.counts["RLIMIT_FSIZE refused" if ended.status else "RLIMIT_FSIZE fitted"] += 1
    old, new = (sum(-(-len(d) // 4096) + 1 for d in t.values()) for t in (place.old, place.new))
    for pages in range(old + 2, old + new + 12):
        place.reset()
        kept = place.out.rename(place.out.with_name("kept"))
        place.out.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={pages * 4}k", "tmpfs", str(place.out)]
        try:
            if subprocess.run(mount, capture_output=True).returncode != 0:
                tally.counts["tmpfs: not allowed here"] += 1
                return
            try:
                shutil.copytree(kept, place.out, dirs_exist_ok=True)
                ended = run(place.args(), place.log)
                found = tree(place.out)
                wrong = list(_refusal(ended, "write"))
                if found != (place.new if ended.status == 0 else place.old):
                    wrong.append(f"status {ended.status} and {sorted(found)}")
                tally.add(f"{place.job.name}: a disk of {pages * 4} kB", wrong)
                tally.counts["tmpfs refused" if ended.status else "tmpfs fitted"] += 1
            finally:
                subprocess.run(["umount", str(place.out)], check=True)
        finally:
            place.out.rmdir()
            kept.rename(place.out)


def pairs(place: Place, tally: Tally, rng: random.Random, rounds: int) -> None:
    """Start two runs on one target at once; take the target's folder away in the middle of one."""
    other = place.log.with_name("log2")
    for _ in range(rounds):
        place.reset()
        first, second = start(place.args(), place.log), start(place.args(), other)
        for _, go in (first, second):
            os.write(go, b"g")
        ended = [
            finish(*run_, log, let_go=False) for run_, log in ((first, place.log), (second, other))
        ]
        done = sum(one.status == 0 for one in ended)
        found = [line for one in ended if one.status for line in _refusal(one, "write")]
        if tree(place.out) != place.new:
            found.append(f"two runs came to {sorted(tree(place.out))}")
        if done == 0 or (done == 2 and "--overwrite" not in place.job.args):
            found.append(f"{done} of two runs say that it was them")
        tally.add(f"{place.job.name}: two at once", found)
    for _ in range(rounds):
        place.reset()
        began = time.monotonic()
        run(place.args(), place.log)
        seconds = time.monotonic() - began
        place.reset()
        pid, go = start(place.args(), place.log)
        os.write(go, b"g")
        time.sleep(rng.uniform(0.0, 1.0) * seconds)
        away = place.out.rename(place.out.with_name("away"))
        ended_ = finish(pid, go, place.log, let_go=False)
        seen = visible(tree(away))
        found = []
        if seen not in (place.old, place.new):
            found.append(f"its folder was taken away, and in it is {sorted(seen)}")
        if ended_.status not in {0, 3, 4}:
            found.append(f"status {ended_.status}: {ended_.err.strip()}")
        tally.add(f"{place.job.name}: folder taken away", found)
        shutil.rmtree(away)


def main() -> None:
    """Run the parts asked for, and print a table of counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="names of jobs, or parts of them, in that order")
    parser.add_argument("--part", default="faults,random,full,pairs")
    parser.add_argument("--rounds", type=int, default=10, help="of random, and of pairs, each job")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    parts, rng = options.part.split(","), random.Random(options.seed)
    if "faults" in parts and shutil.which("strace") is None:
        sys.exit("strace is missing: apt-get install strace, or leave faults out by --part")
    preload()
    tallies = {part: Tally() for part in parts}
    with tempfile.TemporaryDirectory(prefix="crash-") as made:
        folder = Path(made).resolve()
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder / "tmp")
        (folder / "tmp").mkdir()
        wanted = options.only.split(",")
        known = jobs(folder)
        found = list(dict.fromkeys(job for name in wanted for job in known if name in job.name))
        print("| job | killed | ENOSPC | EIO | wrong |\n|---|---:|---:|---:|---:|", flush=True)
        for number, job in enumerate(found):
            place = Place(job, folder / f"job{number}")
            if "faults" in parts:
                before = len(tallies["faults"].wrong)
                met = [str(count) for _, count in faults(place, tallies["faults"])]
                wrong = len(tallies["faults"].wrong) - before
                print(f"| {job.name} | {' | '.join(met)} | {wrong} |", flush=True)
            if job.plain:
                continue  # for these only strace can take the call away
            if "random" in parts:
                at_random(place, tallies["random"], rng, options.rounds)
            if "full" in parts and "eval" not in job.name:
                full(place, tallies["full"])
            if "pairs" in parts and "eval" not in job.name:
                pairs(place, tallies["pairs"], rng, options.rounds)
            for part in sorted(set(parts) - {"faults"}):
                print(f"{job.name}, {part} so far: {dict(tallies[part].counts)}", file=sys.stderr)
            shutil.rmtree(folder / f"job{number}")
    for part, tally in tallies.items():
        print(f"{part}: {dict(tally.counts)}, wrong {len(tally.wrong)}")
    sys.exit(any(tally.wrong for tally in tallies.values()))


if __name__ == "__main__":
    main()
