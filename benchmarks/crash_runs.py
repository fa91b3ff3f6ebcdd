"""Runs of the program that can be killed and failed by the thousand, since none of them imports.

This process imports everything once, and every run is a fork of it that calls the program's entry
point as a process of its own would: same code, same exit status, without a second of start-up.
"""

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

Tree = dict[str, bytes]

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Job:
    """A command that writes: its arguments, where ``{in}`` and ``{out}`` are folders.

    Attributes
    ----------
    source : str
        What is copied into ``{in}``: a path in the repository, or the name of another job's output.
    target : str
        What the command makes in ``{out}``.
    before : tuple of str
        The command that makes what stands there beforehand; none if nothing does.
    """

    name: str
    args: tuple[str, ...]
    source: str
    target: str
    before: tuple[str, ...] = ()
    plain: bool = False
    """Whether the file system is to have no RENAME_EXCHANGE: strace says ENOSYS to renameat2."""
    packs: bool = False
    """Whether the HDF5 process writes: then the faults are its too, and it is never a lent one."""


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit status, or minus the signal's number, and what it said."""

    status: int
    out: str
    err: str


def preload() -> None:
    """Import what any run would import."""
    import importlib
    import pkgutil

    import ckptshrink
    import ckptshrink_cli

    for package in (ckptshrink_cli, ckptshrink):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if ".worker" in module.name or module.name.endswith("__main__"):
                continue
            try:
                importlib.import_module(module.name)
            except ImportError:  # an extra that isn't installed
                continue
    gc.freeze()  # no fork then copies the pages of all this by walking over it
    from ckptshrink.io import hdf5_process

    hdf5_process.start()
    _lent.append(hdf5_process._server)
    hdf5_process._server = None  # or a fork would close it


_lent: list[Any] = []
"""The HDF5 process of this one, for runs that may use it: one of their own takes longer."""


def _borrow() -> None:
    from ckptshrink.io import hdf5_process

    (hdf5_process._server,) = _lent


def _become(
    args: Sequence[str],
    log: Path,
    prepare: Callable[[], None],
    wait: Callable[[], object],
    borrow: bool,
) -> NoReturn:
    """Be the program, in a fork, once `wait` is over: what comes before is not the program's."""
    status = 99
    try:
        for number, name in ((1, "out"), (2, "err")):
            made = os.open(log / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(made, number)
            os.close(made)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["ckptshrink", *args]
        from ckptshrink_cli.main import entry

        prepare()
        if borrow:
            _borrow()
        wait()
        entry()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0
    except KeyboardInterrupt:  # before the program listens, or after: Python ends with this status
        status = 130
    finally:
        os._exit(status)


def start(
    args: Sequence[str],
    log: Path,
    *,
    prepare: Callable[[], None] = lambda: None,
    borrow: bool = False,
) -> tuple[int, int]:
    """Fork a run that waits; return its process number and the pipe that lets it go.

    With ``borrow`` it reads and writes HDF5 in a process that is there, and that nobody disturbs.
    """
    read, write = os.pipe()
    log.mkdir(exist_ok=True)
    pid = os.fork()
    if pid == 0:
        os.close(write)
        _become(args, log, prepare, lambda: os.read(read, 1), borrow)
    os.close(read)
    return pid, write


def finish(pid: int, go: int, log: Path, *, let_go: bool = True) -> Ended:
    """Let a run go, if it still waits, and wait for its end."""
    if let_go:
        os.write(go, b"g")
    os.close(go)
    _, status = os.waitpid(pid, 0)
    said = [(log / name).read_text(errors="replace") for name in ("out", "err")]
    return Ended(os.waitstatus_to_exitcode(status), *said)


def run(
    args: Sequence[str],
    log: Path,
    *,
    prepare: Callable[[], None] = lambda: None,
    borrow: bool = False,
) -> Ended:
    """Run the program to its end."""
    pid, go = start(args, log, prepare=prepare, borrow=borrow)
    return finish(pid, go, log)


KILLED = "+++ killed by SIGKILL +++"
"""What strace says of a process; of the HDF5 process too, which its parent outlives."""


def traced(
    args: Sequence[str],
    log: Path,
    inject: Sequence[str],
    paths: Sequence[str] = (),
    *,
    borrow: bool = False,
) -> tuple[Ended, list[str]]:
    """Run the program under strace; return how it ended and what was done to it."""
    pid, go = start(args, log, prepare=_predictable, borrow=borrow)
    trace = log / "trace"
    calls = ",".join(rule.partition(":")[0] for rule in inject)
    command = ["strace", "-f", "-q", "-o", str(trace), "-e", f"trace={calls}", "-e", "signal=KILL"]
    for rule in inject:
        command += ["-e", f"inject={rule}"]
    for path in paths:
        command += ["-P", path]
    tracer = subprocess.Popen([*command, "-p", str(pid)], stderr=subprocess.DEVNULL)
    status = Path(f"/proc/{pid}/status")
    while "TracerPid:\t0\n" in status.read_text():
        if tracer.poll() is not None:
            os.kill(pid, signal.SIGKILL)
            finish(pid, go, log, let_go=False)
            sys.exit("strace can't attach to a process here: is ptrace forbidden?")
        time.sleep(0.001)
    ended = finish(pid, go, log)
    tracer.wait()
    lines = trace.read_text(errors="replace").splitlines()
    return ended, [line for line in lines if "(INJECTED)" in line or KILLED in line]


def _predictable() -> None:
    """Give part folders a known name, so that strace can be pointed at the files in them."""
    from ckptshrink.io import part_folder

    part_folder.secrets.token_hex = lambda nbytes: "0" * (2 * nbytes)  # type: ignore[assignment]


def tree(folder: Path) -> Tree:
    """Return every file below a folder, and every empty folder, by its path.

    The document of an evaluation says how long it took, which is left out.
    """
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"folder"
        for path in sorted(folder.rglob("*"))
        if path.is_file() or not any(path.iterdir())
    }
    for name in found:
        if name.endswith("e.json"):
            found[name] = re.sub(rb'(seconds": )[-+.0-9e]+', rb"\g<1>0", found[name])
    return found


def visible(found: Tree) -> Tree:
    """Return what isn't in a part folder."""
    return {name: data for name, data in found.items() if ".part-" not in name}


class Place:
    """A job with its folders, as it finds them each time, and what comes of it undisturbed."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job = job
        self.inputs = folder / "in"
        self.out = folder / "out"
        self.log = folder / "log"
        folder.mkdir()
        self.inputs.mkdir()
        source = ROOT / job.source
        for path in [source] if source.is_file() else sorted(source.iterdir()):
            if path.is_dir():
                shutil.copytree(path, self.inputs / path.name)
            else:
                shutil.copy(path, self.inputs)
        self.source = tree(self.inputs)
        self.old: Tree = {}
        self.reset()
        if job.before:
            self._must(job.before)
            self.old = tree(self.out)
        self._must(job.args)
        self.new = tree(self.out)
        if self.new == self.old:
            sys.exit(f"{job.name}: what it writes is what was there, so nothing could be seen")

    def args(self, given: Sequence[str] | None = None) -> list[str]:
        """Return arguments with the folders filled in."""
        marks = {"{in}": str(self.inputs), "{out}": str(self.out)}
        found = list(self.job.args if given is None else given)
        for mark, path in marks.items():
            found = [arg.replace(mark, path) for arg in found]
        return found

    def reset(self) -> None:
        """Put the folder for output back to how a run finds it."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        for name, data in self.old.items():
            path = self.out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def again(self, *args: str) -> Ended:
        """Run another command in the same place."""
        return run(self.args(args), self.log, borrow=True)

    def _must(self, args: Sequence[str]) -> None:
        ended = run(self.args(args), self.log)
        if ended.status != 0:
            sys.exit(f"{self.job.name}: {' '.join(args)} ended with {ended.status}: {ended.err}")

    def wrong(self, ended: Ended, *, left: bool, between: bool) -> Iterator[str]:
        """Yield what is wrong after a run that was killed or failed, and put it right by a run.

        Parameters
        ----------
        left : bool
            Whether a part folder may stay: it was killed, or the fault was met in cleaning up.
        between : bool
            Whether a kill may leave the target between old and new until the next run: a commit
            that takes several steps.
        """
        found = tree(self.out)
        seen, whole = visible(found), (self.old, self.new)
        if tree(self.inputs) != self.source:
            yield "the input was changed"
        temporary = Path(tempfile.gettempdir())
        for path in list(temporary.iterdir()):
            if "eval" not in self.job.name:  # which hands a folder to another program
                yield f"left behind among temporary files: {path.name}"
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if seen not in whole and not (left and between):
            yield f"the target is neither as it was nor whole: {sorted(seen)}"
        if not left and found != seen:
            yield f"left behind: {sorted(set(found) - set(seen))}"
        if ended.status == 70 or "Traceback" in ended.err:
            yield f"status {ended.status}: {ended.err.strip()}"
        if ended.status == 0 and seen != self.new:
            yield "status 0 and not what was to be written"
        said = (
            "is there and whole",
            "was written, and",
            "standard output",
        )  # what comes after it has appeared
        refused = ended.status in {1, 2, 3, 4} and not any(text in ended.err for text in said)
        if refused and seen != self.old:
            yield f"status {ended.status} and the target is not as it was: {ended.err.strip()}"
        if found in (self.old, self.new):
            return  # the next run finds what this one found
        # what is left is swept by the next run to the target, which succeeds
        args, target = list(self.job.args), self.job.target
        refused = False
        if seen == self.new and "--overwrite" not in args:
            # a folder that is no artefact is never overwritten, and the run that is refused sweeps
            refused = target not in self.new and f"{target}/manifest.json" not in self.new
            args += [] if refused else ["--overwrite"]
        rerun = self.again(*args)
        if rerun.status != (4 if refused else 0):
            yield f"the next run ended with {rerun.status}: {rerun.err.strip()}"
        elif tree(self.out) != self.new:
            yield f"after the next run: {sorted(tree(self.out))}"
