"""A small zoo, and executors of which a test knows what they do."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ckptshrink.zoo.batch import Event, Settings, Totals, run_batch
from ckptshrink.zoo.jobs import Job, jobs_of
from ckptshrink.zoo.settings import read_zoo
from ckptshrink.zoo.summary import Summary

HEAD = '[defaults]\ntarget = "Wh"\nrank = 3\n'
ALL = HEAD + '[[model]]\npath = "zoo/**/*.safetensors"\n'


def lstm(path: Path, seed: int = 0, hidden: int = 16) -> Path:
    """Write the state dict of an LSTM."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "rnn.weight_ih_l0": rng.standard_normal((4 * hidden, 8)),
        "rnn.weight_hh_l0": rng.standard_normal((4 * hidden, hidden)),
        "rnn.bias_ih_l0": rng.standard_normal(4 * hidden),
        "rnn.bias_hh_l0": rng.standard_normal(4 * hidden),
    }
    save_file({name: array.astype(np.float32) for name, array in tensors.items()}, path)
    return path


class Inline(Executor):
    """Does what it is given at once, in this thread."""

    workers = 1

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(self.call(fn, *args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future

    def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)


@dataclass
class Ran:
    """What a batch did."""

    totals: Totals
    events: list[Event] = field(default_factory=list)
    starts: int = 0

    def names(self, kind: str) -> list[str]:
        return [event.name for event in self.events if event.kind == kind]


@dataclass
class Zoo:
    """A folder with a zoo file and an output."""

    folder: Path
    text: str = ALL
    out: Path = field(init=False)

    def __post_init__(self) -> None:
        self.out = self.folder / "out"

    def jobs(self) -> list[Job]:
        file = self.folder / "zoo.toml"
        file.write_text(self.text)
        return jobs_of(read_zoo(file), self.folder, str(self.out))

    def run(self, executor: Callable[[], Executor] = Inline, **settings: Any) -> Ran:
        self.out.mkdir(exist_ok=True)
        jobs, ran = self.jobs(), Ran(Totals())

        def start() -> Executor:
            ran.starts += 1
            return executor()

        ran.totals = run_batch(jobs, Settings(str(self.out), **settings), start, ran.events.append)
        Summary(jobs, str(self.out)).write()
        return ran


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return when and as what each file was written last."""
    found = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in found}


def bytes_of(folder: Path, names: Sequence[str]) -> Iterator[bytes]:
    """Yield what is in files."""
    for name in names:
        yield (folder / name).read_bytes()
