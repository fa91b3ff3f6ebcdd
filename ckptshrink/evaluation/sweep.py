"""Many compressions of one checkpoint, each scored: the paper's table for any model and task.

Every cell's evaluation is kept in a file of its own, named by a hash of all that it depends on. A
sweep that is run again takes those from there, so that it goes on where it was stopped.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ckptshrink.errors import EvaluationInputError, OutputError
from ckptshrink.evaluation.document import (
    Evaluation,
    Outcome,
    examples_beside,
    read_evaluation,
    write_evaluation,
)
from ckptshrink.evaluation.evaluator import Evaluator
from ckptshrink.evaluation.grid import Cell, Grid, digest_of, file_stem
from ckptshrink.evaluation.run import compared_with, evaluate
from ckptshrink.evaluation.subjects import Subject, subject_of
from ckptshrink.evaluation.sweep_tables import SweepRecord, SweptCell, as_csv, as_markdown
from ckptshrink.events import Listener, Progress, silent
from ckptshrink.io.staging import Staging, locked_folder
from ckptshrink.manifest import Manifest
from ckptshrink.payload import Compute
from ckptshrink.plan import NOT_TARGETED
from ckptshrink.rewrite import compress
from ckptshrink.version import __version__

CELLS: Final = "cells"
"""Folder of the sweep that has an evaluation of each cell."""

TABLES: Final[Mapping[str, Callable[[SweepRecord], str]]] = {
    "sweep.json": lambda record: record.to_json(),
    "sweep.csv": as_csv,
    "sweep.md": as_markdown,
}
"""The files that sum a sweep up."""


@dataclass(frozen=True, slots=True)
class Swept:
    """A sweep that was run.

    Attributes
    ----------
    record : SweepRecord
    n_reused : int
        Cells that an earlier run had done.
    """

    record: SweepRecord
    n_reused: int


def sweep(
    source: Subject,
    grid: Grid,
    task: str,
    evaluator: Evaluator,
    out: Path,
    *,
    rivals: Sequence[Subject] = (),
    seed: int = 0,
    compute: Compute | None = None,
    listen: Listener = silent,
) -> Swept:
    """Compress a checkpoint in every way of a grid, score each and its source, write the tables.

    Parameters
    ----------
    source : Subject
        A checkpoint.
    grid : Grid
    task : str
    evaluator : Evaluator
        Of that task; the caller closes it.
    out : Path
        A folder; made where there is none. Tables in it are written again after each cell that
        is scored.
    rivals : sequence of Subject
        Other models of the same task, which the tables hold the cells against: dense ones that were
        trained small, for instance.

    Raises
    ------
    CheckpointError, PlanError
        The checkpoint can't be read, or a cell's request can't be met.
    OutputError
        `out` can't be written, or another sweep is at work in it.
    """
    if source.kind != "source":
        raise EvaluationInputError("a sweep starts from a checkpoint", path=source.path)
    if out.exists() and not out.is_dir():
        raise OutputError("is a file; a sweep writes a folder", path=out)
    cells = grid.cells()
    where = _where(source, task, evaluator, seed)
    with ExitStack() as stack:
        stack.enter_context(locked_folder(out / CELLS))
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ckptshrink-")))
        run = _Sweep(source, grid, task, evaluator, out, seed, compute, work, where)
        listen(Progress(f"{task}: {source.name}", 0, len(cells) + 1))
        baseline = run.baseline()
        others = tuple(run.rival(rival, baseline) for rival in rivals)
        done: list[SweptCell] = []
        for number, cell in enumerate(cells, 1):
            listen(Progress(f"{task}: {cell.name}", number, len(cells) + 1))
            n_reused = run.n_reused
            done.append(run.cell(cell, baseline))
            # a cell that was there already adds nothing: the tables of an earlier run have it
            if run.n_reused == n_reused or len(done) == len(cells):
                run.write_tables(run.record(baseline, others, done))
        listen(Progress(task, len(cells) + 1, len(cells) + 1))
        return Swept(run.record(baseline, others, done), run.n_reused)


@dataclass(slots=True)
class _Sweep:
    """A sweep at work."""

    source: Subject
    grid: Grid
    task: str
    evaluator: Evaluator
    out: Path
    seed: int
    compute: Compute | None
    work: Path
    where: Mapping[str, Any]
    n_reused: int = 0

    def baseline(self) -> Evaluation:
        """Return the source's evaluation."""
        digest = digest_of(Cell("", "", "rank", 0), {}, self.where)
        path = self.out / CELLS / f"baseline-{digest[:12]}.json"
        found = self._reused(path)
        if found is None:
            made = evaluate(self.task, self.evaluator, [], baseline=self.source, seed=self.seed)
            found = write_evaluation(made.document, made.examples, path, overwrite=True)
        (outcome,) = found.outcomes
        if outcome.failure is not None:
            raise EvaluationInputError(
                f"the checkpoint itself can't be scored: {outcome.failure.reason}",
                path=self.source.path,
            )
        return found

    def cell(self, cell: Cell, baseline: Evaluation) -> SweptCell:
        """Return a cell's outcome: an earlier run's, or compress and score now."""
        digest = digest_of(cell, self.grid.more, self.where)
        path = self.out / CELLS / f"{file_stem(cell)}-{digest[:12]}.json"
        found = self._reused(path)
        if found is None:
            artefact = self.work / "artefact"
            result = compress(
                self.source.path, artefact, cell.request(self.grid.more),
                compute=self.compute, overwrite=True,
            )  # fmt: skip
            subject = subject_of(artefact, name=cell.name)
            made = evaluate(self.task, self.evaluator, [subject], seed=self.seed)
            document = compared_with(made.document, baseline.outcomes[0])
            document = _noting(document, _stayed_dense(result.manifest))
            found = write_evaluation(document, made.examples, path, overwrite=True)
        return SweptCell(
            weights=cell.weights, method=cell.method, key=cell.key, value=cell.value,
            file=f"{CELLS}/{path.name}", outcome=found.outcomes[0],
        )  # fmt: skip

    def rival(self, subject: Subject, baseline: Evaluation) -> Outcome:
        """Return a rival's outcome: an earlier run's, or score it now."""
        digest = digest_of(Cell("", "", "rank", 0), {"rival": subject.sha256}, self.where)
        path = self.out / CELLS / f"rival-{digest[:12]}.json"
        found = self._reused(path)
        if found is None:
            made = evaluate(self.task, self.evaluator, [subject], seed=self.seed)
            document = compared_with(made.document, baseline.outcomes[0])
            found = write_evaluation(document, made.examples, path, overwrite=True)
        (outcome,) = found.outcomes
        named = outcome.model.model_copy(update={"name": subject.name})
        return outcome.model_copy(update={"model": named})

    def record(
        self, baseline: Evaluation, rivals: tuple[Outcome, ...], done: list[SweptCell]
    ) -> SweepRecord:
        """Return what is done so far."""
        return SweepRecord(
            task=self.task,
            data=baseline.data,
            protocol=baseline.protocol,
            seed=self.seed,
            environment=baseline.environment,
            tool=baseline.tool,
            key=self.grid.key,
            values=self.grid.values,
            weights=self.grid.weights,
            methods=self.grid.methods,
            baseline=baseline.outcomes[0],
            rivals=rivals,
            cells=tuple(done),
        )

    def write_tables(self, record: SweepRecord) -> None:
        """Write the files that sum up what is done, where they say something else."""
        for name, text in TABLES.items():
            path, data = self.out / name, text(record).encode()
            if path.is_file() and path.read_bytes() == data:
                continue
            with Staging(path, single=True, overwrite=True) as staging:
                staging.create(path.name).write(data)
                staging.commit()

    def _reused(self, path: Path) -> Evaluation | None:
        """Return what an earlier run left, if it is whole and no failure."""
        if not path.exists():
            return None
        try:
            found = read_evaluation(path)
            (outcome,) = found.outcomes
            examples_beside(path, outcome)
        except (EvaluationInputError, ValueError):
            return None
        if outcome.failure is not None:
            return None
        self.n_reused += 1
        return found


def _where(source: Subject, task: str, evaluator: Evaluator, seed: int) -> dict[str, Any]:
    """Return all that every cell of a sweep depends on."""
    data = evaluator.data
    return {
        "version": __version__,
        "source": source.sha256,
        "task": task,
        "data": None if data is None else data.sha256,
        "protocol": dict(evaluator.protocol),
        "environment": dict(evaluator.environment),
        "seed": seed,
    }


def _stayed_dense(manifest: Manifest) -> str | None:
    """Return one line on the matrices that were to be compressed and stayed as they were."""
    stayed = [
        row for row in manifest.tensors
        if row.role is not None and row.action == "keep" and row.reason != NOT_TARGETED
    ]  # fmt: skip
    if not stayed:
        return None
    total = len(stayed) + sum(row.action == "factorize" for row in manifest.tensors)
    which = "every matrix" if len(stayed) == total else f"{len(stayed)} of {total} matrices"
    return f"{which} stayed dense: {stayed[0].reason}"


def _noting(document: Evaluation, note: str | None) -> Evaluation:
    if note is None:
        return document
    (outcome,) = document.outcomes
    noted = outcome.model_copy(update={"notes": (*outcome.notes, note)})
    return document.model_copy(update={"outcomes": (noted,)})
