"""Sweeps: every cell is compressed and scored, the tables follow, and nothing is done twice."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from ckptshrink import Request, Size, Target, compress
from ckptshrink.errors import EvaluationError, EvaluationInputError, OutputError, PlanError
from ckptshrink.evaluation import (
    Aggregate,
    Data,
    Scores,
    Subject,
    examples_of,
    metric,
    subject_of,
)
from ckptshrink.evaluation.document import examples_beside, read_evaluation
from ckptshrink.evaluation.efficiency import efficiency
from ckptshrink.evaluation.evaluator import HoldsNothing
from ckptshrink.evaluation.grid import Grid, parse_sweep
from ckptshrink.evaluation.sweep import CELLS, TABLES, sweep
from ckptshrink.evaluation.sweep_tables import (
    CSV_FIELDS,
    LOSES,
    as_csv,
    as_markdown,
    beaten_by,
)
from ckptshrink.io.staging import locked_folder
from ckptshrink.runtime.opened import Opened
from ckptshrink.runtime.weights import dense


class Norm(HoldsNothing):
    """Scores a model by the mean square of its matrices, which compression makes smaller."""

    data = Data("numbers", "0" * 64, 3)
    environment: dict[str, str] = {"norm": "1"}  # noqa: RUF012 - a stand-in

    def __init__(self, fails: str = "", protocol: str = "plain", **factors: float) -> None:
        self.scored: list[str] = []
        self.factors = factors
        self.fails = fails
        self.protocol: dict[str, Any] = {"kind": protocol}

    def score(self, subject: Subject) -> Scores:
        self.scored.append(subject.name)
        if self.fails and self.fails in subject.name:
            raise EvaluationError("it crashed", log="first\nlast")
        with Opened(subject.path) as opened:
            weights = [dense(opened.weight(m)).detach() for m in opened.facts.matrices]
        factor = self.factors.get(subject.name, 1.0)
        squares = [factor * float((w.double() ** 2).sum()) for w in weights]
        examples = examples_of([str(i) for i in range(len(squares))], {"square": squares})
        of = Aggregate(score="square")
        value = of.value(squares)
        return Scores(
            (metric("norm", value, better="higher", n=len(squares), of=of),), examples=examples
        )


@pytest.fixture
def source(fixtures: Path) -> Subject:
    return subject_of(fixtures / "torch" / "awd_lstm_state.zip.pt")


def grid(**changed: Any) -> Grid:
    fields: dict[str, Any] = {
        "key": "rank", "values": (2, 4), "weights": ("Wi", "Wh"), "methods": ("svd", "prune"),
        "more": {},
    }  # fmt: skip
    return Grid(**{**fields, **changed})


def test_every_cell_is_what_compress_and_the_evaluator_make_of_it(
    source: Subject, tmp_path: Path
) -> None:
    swept = sweep(source, grid(), "norm", Norm(), tmp_path / "out")
    assert [(c.weights, c.method, c.value) for c in swept.record.cells] == [
        (w, m, r) for w in ("Wi", "Wh") for m in ("svd", "prune") for r in (2, 4)
    ]
    for cell in swept.record.cells:
        compress(
            source.path,
            tmp_path / "alone",
            Request((Target(cell.weights),), size=Size(rank=int(cell.value)), method=cell.method),
            overwrite=True,
        )
        alone = subject_of(tmp_path / "alone")
        assert cell.outcome.model.sha256 == alone.sha256
        assert cell.outcome.metrics == Norm().score(alone).metrics
        before, after = swept.record.baseline.metrics[0].number, cell.outcome.metrics[0].number
        (change,) = cell.outcome.changes
        assert change.relative_loss == pytest.approx((before - after) / before)
        for scope, now, then in (
            ("model", alone.n_params, source.n_params),
            ("lstm", alone.n_params_lstm, source.n_params_lstm),
        ):
            assert now is not None
            assert then is not None
            expected = efficiency((before - after) / before, (then - now) / then)
            assert change.efficiency[scope] == pytest.approx(expected)


def test_a_second_run_scores_nothing_and_writes_the_same_tables(
    source: Subject, tmp_path: Path
) -> None:
    first, second = Norm(), Norm()
    sweep(source, grid(), "norm", first, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in TABLES}
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    swept = sweep(source, grid(), "norm", second, tmp_path)
    assert len(first.scored) == 9
    assert second.scored == []
    assert swept.n_reused == 9
    assert {name: (tmp_path / name).read_bytes() for name in TABLES} == before
    assert written == {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()
    }


def test_a_stopped_sweep_goes_on_where_it_was(source: Subject, tmp_path: Path) -> None:
    class Stops(Norm):
        def score(self, subject: Subject) -> Scores:
            if len(self.scored) == 4:
                raise KeyboardInterrupt
            return super().score(subject)

    with pytest.raises(KeyboardInterrupt):
        sweep(source, grid(), "norm", Stops(), tmp_path)
    assert "3 of 8 cells are done" in (tmp_path / "sweep.md").read_text()
    rest = Norm()
    swept = sweep(source, grid(), "norm", rest, tmp_path)
    assert swept.n_reused == 4
    assert len(rest.scored) == 5
    assert swept.record == sweep(
        source, grid(), "norm", Norm(), tmp_path / "whole"
    ).record.model_copy(
        update={
            "baseline": swept.record.baseline,
            "cells": swept.record.cells,
        }
    )


@pytest.mark.parametrize("what", ["truncated", "examples changed", "gone"])
def test_a_cell_that_is_no_longer_whole_is_done_again(
    source: Subject, tmp_path: Path, what: str
) -> None:
    record = sweep(source, grid(), "norm", Norm(), tmp_path).record
    path = tmp_path / record.cells[2].file
    if what == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    elif what == "gone":
        path.unlink()
    else:
        beside = path.parent / str(read_evaluation(path).outcomes[0].examples.path)  # type: ignore[union-attr]
        beside.write_text(beside.read_text().replace("0", "1", 1))
    again = Norm()
    assert sweep(source, grid(), "norm", again, tmp_path).n_reused == 8
    assert again.scored == ["Wi prune rank=2"]


@pytest.mark.parametrize("what", ["protocol", "seed", "grouping", "data"])
def test_a_changed_setting_does_everything_again(
    source: Subject, tmp_path: Path, what: str
) -> None:
    sweep(source, grid(), "norm", Norm(), tmp_path)
    other = Norm(protocol="other" if what == "protocol" else "plain")
    if what == "data":
        other.data = Data("numbers", "1" * 64, 3)  # type: ignore[misc]
    more = {"grouping": "per-gate"} if what == "grouping" else {}
    swept = sweep(source, grid(more=more), "norm", other, tmp_path, seed=1 if what == "seed" else 0)
    assert swept.n_reused == (1 if what == "grouping" else 0)  # the source stays what it is


def test_a_failed_cell_is_told_and_done_again(source: Subject, tmp_path: Path) -> None:
    record = sweep(source, grid(), "norm", Norm(fails="Wh svd rank=4"), tmp_path).record
    failed = [cell for cell in record.cells if cell.outcome.failure is not None]
    assert [(c.weights, c.method, c.value) for c in failed] == [("Wh", "svd", 4)]
    assert failed[0].outcome.failure.log == "first\nlast"  # type: ignore[union-attr]
    text = (tmp_path / "sweep.md").read_text()
    assert "| failed |" in text
    assert "(1 of 2)" in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "sweep.csv").read_text())))
    assert [row["failure"] for row in rows if row["failure"]] == ["it crashed"]
    again = Norm()
    assert sweep(source, grid(), "norm", again, tmp_path).n_reused == 8
    assert again.scored == ["Wh svd rank=4"]


def test_a_source_that_can_not_be_scored_ends_the_sweep(source: Subject, tmp_path: Path) -> None:
    with pytest.raises(EvaluationInputError, match="the checkpoint itself can't be scored"):
        sweep(source, grid(), "norm", Norm(fails=source.name), tmp_path)


def test_csv_has_every_number_unrounded(source: Subject, tmp_path: Path) -> None:
    record = sweep(source, grid(), "norm", Norm(), tmp_path).record
    rows = list(csv.DictReader(io.StringIO(as_csv(record))))
    assert tuple(rows[0]) == CSV_FIELDS
    assert len(rows) == 9
    assert float(rows[0]["value"]) == record.baseline.metrics[0].number
    for row, cell in zip(rows[1:], record.cells, strict=True):
        assert float(row["value"]) == cell.outcome.metrics[0].number
        assert float(row["efficiency_lstm"]) == cell.outcome.changes[0].efficiency["lstm"]
        assert int(row["n_params_model"]) == cell.outcome.model.n_params.model
    assert json.loads((tmp_path / "sweep.json").read_text())["values"] == [2, 4]


def test_best_and_average_are_of_the_row(source: Subject, tmp_path: Path) -> None:
    record = sweep(source, grid(), "norm", Norm(), tmp_path).record
    lines = as_markdown(record).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| weights"))
    row = [cell.strip() for cell in lines[start + 2].strip("|").split("|")]
    values = [c.outcome.metrics[0].number for c in record.cells[:2]]
    assert row[:2] == ["Wi", "svd"]
    assert [float(v) for v in row[2:4]] == pytest.approx(values, rel=1e-4)
    assert float(row[4]) == pytest.approx(max(values), rel=1e-4)
    assert float(row[5]) == pytest.approx(math.fsum(values) / 2, rel=1e-4)


def rival(source: Subject, folder: Path, name: str, ratio: float) -> Subject:
    """Return a model of another size: the source with its matrices pruned to a share."""
    compress(
        source.path, folder / name, Request((Target("Wi"), Target("Wh")), size=Size(ratio=ratio),
                                            method="prune")
    )  # fmt: skip
    return subject_of(folder / name)


def test_cells_that_lose_to_a_rival_of_no_more_parameters_are_marked(
    source: Subject, tmp_path: Path
) -> None:
    rivals = [rival(source, tmp_path, "small", 0.2), rival(source, tmp_path, "large", 0.9)]
    scorer = Norm(small=1.22, large=1.2)
    record = sweep(source, grid(), "norm", scorer, tmp_path / "out", rivals=rivals).record
    assert [r.model.name for r in record.rivals] == ["small", "large"]
    for found, subject in zip(record.rivals, rivals, strict=True):
        assert found.metrics == scorer.score(subject).metrics
        assert found.changes[0].difference == pytest.approx(
            found.metrics[0].number - record.baseline.metrics[0].number
        )
    lost = 0
    for cell in record.cells:
        value, size = cell.outcome.metrics[0].number, cell.outcome.model.n_params.model
        assert size is not None
        expected = [
            r for r, s in zip(record.rivals, rivals, strict=True)
            if s.n_params is not None and s.n_params <= size and r.metrics[0].number > value
        ]  # fmt: skip
        assert list(beaten_by(cell.outcome, "norm", record.rivals)) == expected
        lost += bool(expected)
    assert 0 < lost < len(record.cells)
    text = as_markdown(record)
    table = text[: text.index("### E(r)")]
    assert table.count(f" {LOSES} |") == lost
    assert f"{LOSES} loses to one of these" in text
    assert len(list(csv.DictReader(io.StringIO(as_csv(record))))) == 1 + 2 + 8


def test_rivals_are_scored_once(source: Subject, tmp_path: Path) -> None:
    rivals = [rival(source, tmp_path, "small", 0.2)]
    sweep(source, grid(), "norm", Norm(), tmp_path / "out", rivals=rivals)
    before = {name: (tmp_path / "out" / name).read_bytes() for name in TABLES}
    again = Norm()
    sweep(source, grid(), "norm", again, tmp_path / "out", rivals=rivals)
    assert again.scored == []
    assert {name: (tmp_path / "out" / name).read_bytes() for name in TABLES} == before


def test_a_rank_above_break_even_is_marked(source: Subject, tmp_path: Path) -> None:
    record = sweep(
        source, grid(values=(2, 500), weights=("Wh",), methods=("svd",)), "norm", Norm(), tmp_path
    ).record
    (note,) = record.cells[1].outcome.notes
    assert note.startswith("every matrix stayed dense")
    assert record.cells[1].outcome.changes[0].efficiency == {"lstm": None, "model": None}
    text = as_markdown(record)
    assert f"[1] {note}" in text
    assert " [1] |" in text


def test_weights_joined_by_plus_are_compressed_together(source: Subject, tmp_path: Path) -> None:
    record = sweep(
        source, grid(values=(2,), weights=("Wi+Wh",), methods=("svd",)), "norm", Norm(), tmp_path
    ).record
    compress(
        source.path, tmp_path / "both", Request((Target("Wi"), Target("Wh")), size=Size(rank=2))
    )
    assert record.cells[0].outcome.model.sha256 == subject_of(tmp_path / "both").sha256


def test_the_evaluations_of_cells_can_be_compared_pair_by_pair(
    source: Subject, tmp_path: Path
) -> None:
    record = sweep(source, grid(), "norm", Norm(), tmp_path).record
    path = tmp_path / record.cells[0].file
    document = read_evaluation(path)
    found = examples_beside(path, document.outcomes[0])
    (base,) = (tmp_path / CELLS).glob("baseline-*.json")
    other = examples_beside(base, read_evaluation(base).outcomes[0])
    assert found is not None
    assert other is not None
    assert found.ids == other.ids


def test_two_sweeps_in_one_folder_keep_out_of_each_others_way(
    source: Subject, tmp_path: Path
) -> None:
    with (
        locked_folder(tmp_path / CELLS),
        pytest.raises(OutputError, match="another run is at work"),
    ):
        sweep(source, grid(), "norm", Norm(), tmp_path)


def test_a_sweep_does_not_start_from_an_artefact(source: Subject, tmp_path: Path) -> None:
    compress(source.path, tmp_path / "small", Request((Target("Wh"),), size=Size(rank=2)))
    with pytest.raises(EvaluationInputError, match="starts from a checkpoint"):
        sweep(subject_of(tmp_path / "small"), grid(), "norm", Norm(), tmp_path / "out")


def test_a_sweep_into_a_file_is_refused(source: Subject, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        sweep(source, grid(), "norm", Norm(), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rank", "is no sweep"),
        ("size=3", "is no sweep"),
        ("rank=", "takes numbers"),
        ("rank=1,b", "takes numbers"),
        ("rank=1.5", "takes numbers"),
    ],
)
def test_a_malformed_sweep_is_refused(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        parse_sweep(text)


@pytest.mark.parametrize(
    "changed",
    [
        {"values": (0,)},
        {"values": (2, 2)},
        {"values": ()},
        {"weights": ("Wh", "Wh")},
        {"key": "ratio", "values": (0.5, 1.5)},
        {"key": "ratio", "values": (math.nan,)},
    ],
)
def test_a_grid_that_can_not_be_is_refused_before_any_work(changed: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        grid(**changed)
