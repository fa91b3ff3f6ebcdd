"""What `ckptshrink bench` measures: each recurrent layer of a model, dense and as it is stored.

A layer's contestants are the module that runs it in this runtime and dense ones with the same
inputs; every comparison is of one layer and one direction.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from ckptshrink.errors import LayoutError, PlanError
from ckptshrink.events import Listener, Progress, silent
from ckptshrink.payload import Compute
from ckptshrink.runtime.cells import Cell, cells_of
from ckptshrink.runtime.gru import FactoredGRU
from ckptshrink.runtime.layer import LSTMWeights
from ckptshrink.runtime.lstm import FactoredLSTM
from ckptshrink.runtime.recurrence import Recurrence
from ckptshrink.runtime.timing import Ratio, Timing, interleaved, total
from ckptshrink.runtime.weights import Weight, dense

ROUNDS: Final = 7
"""Rounds of which the median is taken."""

_SEED: Final = 0
_FACTORED: Final = "factored"
Run = Callable[[Tensor], object]
RouteOf = Callable[[int, int], str]


@dataclass(frozen=True, slots=True)
class Row:
    """One layer, or all of them, at one batch size.

    Attributes
    ----------
    cell : Cell or None
        None for the sum over all layers.
    batch, steps : int
    dense_by : str
        The fastest dense contestant; several where layers differ.
    dense, factored : Timing
    route : str
        How the runtime ran it; several where layers differ.
    """

    cell: Cell | None
    batch: int
    steps: int
    dense_by: str
    dense: Timing
    factored: Timing
    route: str

    @property
    def ratio(self) -> Ratio:
        """How many times as long the dense layer takes."""
        return self.dense.over(self.factored)

    def tokens_per_s(self, timing: Timing) -> float:
        """Return the tokens that a contestant takes through the layer in a second."""
        return self.batch * self.steps / timing.median


@dataclass(frozen=True, slots=True)
class Bench:
    """What was measured, and on what.

    Attributes
    ----------
    rows : tuple of Row
        By batch size: every layer, then all of them.
    notes : tuple of str
        What a reader of the numbers has to know.
    device : str
    threads : int
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    device: str
    threads: int


def bench(
    path: Path,
    *,
    against: Path | None = None,
    batches: Sequence[int] = (1, 8, 80),
    steps: int = 70,
    rounds: int = ROUNDS,
    compute: Compute | None = None,
    listen: Listener = silent,
) -> Bench:
    """Measure each recurrent layer of a model, dense and as it is stored.

    Parameters
    ----------
    path : Path
        An artefact, or a checkpoint.
    against : Path, optional
        Whose dense layers to compare with; else those of `path`, multiplied back.
    batches : sequence of int
        Sequences at a time.
    steps : int
        Steps of each sequence.
    rounds : int
    compute : Compute, optional
        Device and threads; torch's own by default.
    listen : callable, optional

    Raises
    ------
    CheckpointError, ManifestMismatchError
        A file can't be read, there is no recurrent layer, or those of `against` are others.
    PlanError
        The device is no such, or there is none.
    """
    compute = compute or Compute()
    device = compute.resolve()
    cells, notes = cells_of(path)
    rivals = _rivals(cells, against) if against is not None else cells
    notes += _notes_on(cells)
    turns = sum(rounds * (1 + _n_dense(cell, device)) for cell in cells) * len(batches)
    done = 0

    def turned(what: str) -> None:
        nonlocal done
        done += 1
        listen(Progress(what, done, turns))

    by_batch: dict[int, list[Row]] = {batch: [] for batch in batches}
    with compute.limits() as threads, warnings.catch_warnings():
        # of torch: that oneDNN knows no projections, and of a setting for Intel's GPUs
        warnings.simplefilter("ignore", UserWarning)
        for cell, rival in zip(cells, rivals, strict=True):
            pair = _Contestants(cell, rival, device)
            for batch, rows in by_batch.items():
                rows.append(pair.measured(batch, steps, rounds, turned))
    found = (row for of_batch in by_batch.values() for row in (*of_batch, _summed(of_batch)))
    return Bench(tuple(found), tuple(notes), str(device), threads)


def _rivals(cells: Sequence[Cell], against: Path) -> list[Cell]:
    """Return the cells of another checkpoint that stand for these."""
    others, _ = cells_of(against)
    by_key = {other.key: other for other in others}
    rivals = [by_key.get(cell.key) for cell in cells]
    if None in rivals and len(others) == len(cells):
        rivals = list(others)  # the same layers under other names, as in a restored file
    for cell, rival in zip(cells, rivals, strict=True):
        if rival is None or rival.sizes != cell.sizes:
            place = f"{cell.name} layer {cell.layer} {cell.direction}"
            raise LayoutError(
                f"has no layer {place}"
                if rival is None
                else f"has {_said(rival)} for {place}, which is {_said(cell)}",
                path=against,
                hint="--against takes the checkpoint that the artefact was made from",
            )
    return [rival for rival in rivals if rival is not None]


def _said(cell: Cell) -> str:
    projected = "" if cell.projected is None else f"→{cell.projected}"
    return f"{cell.kind} {cell.n_inputs}→{cell.hidden}{projected}"


def _notes_on(cells: Sequence[Cell]) -> list[str]:
    notes = []
    if any(_is_clipped(cell) for cell in cells):
        notes.append(
            "nn.LSTM can't clip as ELMo does; the dense layer is this runtime's own, multiplied "
            "back, with the same clips"
        )
    return notes


def _is_clipped(cell: Cell) -> bool:
    return cell.cell_clip is not None or cell.proj_clip is not None


def _n_dense(cell: Cell, device: torch.device) -> int:
    return 1 if _is_clipped(cell) or device.type != "cpu" else 2


def dense_runs(cell: Cell, device: torch.device) -> dict[str, Run]:
    """Return the dense contestants of a cell, by name: from x (T, B, I) to whatever they return."""
    if _is_clipped(cell):
        return {"dense loop": _by_recurrence(cell.multiplied_back(), device)[0]}
    kind = nn.LSTM if cell.kind == "lstm" else nn.GRU
    sizes: dict[str, Any] = {"bias": cell.bias_ih is not None}
    if cell.projected is not None:
        sizes["proj_size"] = cell.projected
    module = kind(cell.n_inputs, cell.hidden, **sizes)
    module.load_state_dict({n: dense(weight) for n, weight in cell.weights().items()})
    module.to(device).eval()
    name = f"nn.{kind.__name__}"
    if device.type != "cpu":
        return {name: module}

    def without_onednn(x: Tensor) -> object:
        with torch.backends.mkldnn.flags(enabled=False):
            return module(x)

    return {name: module, f"{name} without oneDNN": without_onednn}


def factored_run(cell: Cell, device: torch.device) -> tuple[Run, RouteOf]:
    """Return what runs a cell as it is stored, and what names the route it takes."""
    if _is_clipped(cell):
        return _by_recurrence(cell, device)
    if cell.kind == "gru":
        gru = FactoredGRU.from_weights(cell.weights()).to(device).eval()
        return gru, lambda batch, steps: gru.routes(batch, steps)[0]
    lstm = FactoredLSTM.from_weights(cell.weights()).to(device).eval()
    return lstm, lambda batch, steps: lstm.routes(batch, steps)[0]


def _by_recurrence(cell: Cell, device: torch.device) -> tuple[Run, RouteOf]:
    weights = LSTMWeights(
        wi=_on(cell.wi, device),
        wh=_on(cell.wh, device),
        bias=None if cell.bias_ih is None else cell.bias_ih.to(device),
        proj=None if cell.proj is None else _on(cell.proj, device),
        cell_clip=cell.cell_clip,
        proj_clip=cell.proj_clip,
        bias_hh=None if cell.bias_hh is None else cell.bias_hh.to(device),
    )
    recurrence = Recurrence()

    def run(x: Tensor) -> object:
        batch = x.shape[1]
        h, c = x.new_zeros(batch, weights.state), x.new_zeros(batch, weights.hidden)
        return recurrence(weights, x, h, c, reverse=cell.direction == "backward")

    return run, lambda batch, steps: recurrence.route_for(weights, batch, steps)


def _on(weight: Weight, device: torch.device) -> Weight:
    return weight.to(device)


class _Contestants:
    """A layer as it is stored, and its dense rivals, ready to run."""

    def __init__(self, cell: Cell, rival: Cell, device: torch.device) -> None:
        self._cell = cell
        self._device = device
        self._dense = dense_runs(rival, device)
        self._factored, self._route_of = factored_run(cell, device)

    def measured(self, batch: int, steps: int, rounds: int, turned: Callable[[str], None]) -> Row:
        """Return what they take at one batch size."""
        generator = torch.Generator().manual_seed(_SEED)
        with _within_memory(batch, steps):
            x = torch.randn(steps, batch, self._cell.n_inputs, generator=generator)
        x = x.to(self._device)
        contestants = {**self._dense, _FACTORED: self._factored}
        runs = {name: partial(run, x) for name, run in contestants.items()}
        with torch.inference_mode(), _within_memory(batch, steps):
            timings = interleaved(
                runs,
                rounds,
                settle=torch.cuda.synchronize if self._device.type == "cuda" else _nothing,
                after_turn=lambda name: turned(f"{self._cell.name}, batch {batch}: {name}"),
            )
            route = self._route_of(batch, steps)
        fastest = min(self._dense, key=lambda name: timings[name].median)
        return Row(self._cell, batch, steps, fastest, timings[fastest], timings[_FACTORED], route)


@contextmanager
def _within_memory(batch: int, steps: int) -> Iterator[None]:
    """Turn torch's way of saying that memory is short, which is no bug, into an error of ours."""
    try:
        yield
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise PlanError(
            f"there is no memory for {steps} steps of {batch} sequences",
            hint="a smaller --batch, or fewer --steps",
        ) from error


def _nothing() -> None:
    """Wait for nothing: the CPU is done when a call returns."""


def _summed(rows: Sequence[Row]) -> Row:
    """Return all layers of one batch size as one."""
    return Row(
        cell=None,
        batch=rows[0].batch,
        steps=rows[0].steps,
        dense_by=_together(row.dense_by for row in rows),
        dense=total([row.dense for row in rows]),
        factored=total([row.factored for row in rows]),
        route=_together(row.route for row in rows),
    )


def _together(words: Iterable[str]) -> str:
    return " + ".join(dict.fromkeys(words))
