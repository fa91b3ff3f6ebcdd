"""The verdicts of benchmarks/paper_tables.py follow from its cells, and docs/results.md from it."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptshrink.evaluation import Aggregate, Data, Scores, Subject, examples_of, metric, subject_of
from ckptshrink.evaluation.evaluator import HoldsNothing
from ckptshrink.evaluation.grid import Grid
from ckptshrink.evaluation.sweep import sweep

REPO = Path(__file__).resolve().parents[2]
N = 400
Level = Callable[[str, str, int], float]


@pytest.fixture(scope="module")
def paper() -> Any:
    sys.path.insert(0, str(REPO / "benchmarks"))
    try:
        yield importlib.import_module("paper_findings")
    finally:
        sys.path.remove(str(REPO / "benchmarks"))


class Told(HoldsNothing):
    """Scores a cell by a function of its name, with noise that all cells have in common."""

    data = Data("told", "0" * 64, 1)
    environment: dict[str, str] = {}  # noqa: RUF012 - a stand-in
    protocol: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, level: Level, own: float) -> None:
        self.level = level
        self.own = own

    def score(self, subject: Subject) -> Scores:
        words = subject.name.split()
        level = self.level(words[0], words[1], int(words[2][5:])) if len(words) == 3 else 1.0
        shared = np.random.default_rng(0).normal(size=N)
        own = np.random.default_rng(sum(subject.name.encode())).normal(size=N)
        columns = {"nats": 10 + level + shared + self.own * own, "tokens": np.full(N, 2.0)}
        of = Aggregate(score="nats", weight="tokens", transform="exp")
        value = of.value(columns["nats"], columns["tokens"])
        examples = examples_of([str(i) for i in range(N)], columns)
        return Scores((metric("ppl", value, better="lower", n=N, of=of),), examples=examples)


def cells(paper: Any, fixtures: Path, out: Path, level: Level, own: float = 0.05) -> Any:
    source = subject_of(fixtures / "torch" / "awd_lstm_state.zip.pt")
    grid = Grid("rank", (1, 2, 4), ("Wi", "Wh"), ("svd", "semi-nmf", "prune"), {})
    record = sweep(source, grid, "told", Told(level, own), out).record
    return paper.Cells(record, out, "ppl")


def answers(paper: Any, found: Any) -> dict[str, str]:
    return {name: verdict.answer for name, verdict in paper.findings(found, 4).items()}


def test_what_the_paper_found_is_found_where_it_is_so(
    paper: Any, fixtures: Path, tmp_path: Path
) -> None:
    def level(weights: str, method: str, rank: int) -> float:
        loss = (2.0 if weights == "Wi" else 1.0) * (0.5 / rank if rank < 4 else 0.011)
        more = {"svd": 0.0, "semi-nmf": 0.01, "prune": 0.1 if rank < 4 else -0.01}
        return 1.0 + loss + more[method]

    found = cells(paper, fixtures, tmp_path, level, own=0.01)
    assert set(answers(paper, found).values()) == {"holds", "holds in part"}
    in_part = {name for name, said in answers(paper, found).items() if said == "holds in part"}
    # exp(0.011 / 2) is 0.55 % worse, exp(0.022 / 2) 1.1 %
    assert in_part == {"a rank like 400 costs next to nothing"}


def test_the_opposite_does_not_hold(paper: Any, fixtures: Path, tmp_path: Path) -> None:
    def level(weights: str, method: str, rank: int) -> float:
        loss = 2.0 if weights == "Wh" else 1.0
        return loss + {"svd": 0.2, "semi-nmf": 0.1, "prune": 0.0 if rank < 4 else 0.3}[method]

    assert set(answers(paper, cells(paper, fixtures, tmp_path, level)).values()) == {
        "does not hold"
    }


def test_what_noise_hides_is_not_told(paper: Any, fixtures: Path, tmp_path: Path) -> None:
    found = cells(paper, fixtures, tmp_path, lambda weights, method, rank: 1.0, own=3.0)
    alike = sum(
        found.compare((w, "svd", r), (w, "prune", r)) == 0 for w in ("Wi", "Wh") for r in (1, 2, 4)
    )
    assert alike >= 5  # each is taken for a difference one time in twenty


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((3, 0, 1), "holds"),
        ((0, 2, 0), "does not hold"),
        ((1, 1, 0), "holds in part"),
        ((0, 0, 4), "not to be told"),
    ],
)
def test_an_answer_follows_from_the_counts(
    paper: Any, counts: tuple[int, int, int], said: str
) -> None:
    assert paper.Tally(*counts).answer() == said
