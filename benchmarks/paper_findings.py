"""Whether the paper's findings hold: each a comparison of cells, pair by pair, with its noise.

Two cells are compared on the same examples. They are alike where they differ by no more than two
standard errors of the difference.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from paper_norms import NormStudy

from ckptshrink.evaluation.document import examples_beside, read_evaluation
from ckptshrink.evaluation.examples import Examples
from ckptshrink.evaluation.metrics import Aggregate
from ckptshrink.evaluation.sweep_tables import SweepRecord, SweptCell

ERRORS = 2.0
NOTHING = 0.01
"""Relative loss up to which a compression costs next to nothing."""


@dataclass(frozen=True)
class Verdict:
    """What was found of one finding in one table."""

    answer: str
    detail: str


@dataclass(frozen=True)
class Tally:
    """How often the first of two cells was better, worse, or not to be told from the second."""

    better: int
    worse: int
    alike: int

    @property
    def n(self) -> int:
        """Number of pairs."""
        return self.better + self.worse + self.alike

    def answer(self) -> str:
        """Return whether the first is better, as far as it shows."""
        if self.better and not self.worse:
            return "holds"
        if self.worse and not self.better:
            return "does not hold"
        return "holds in part" if self.better else "not to be told"

    def text(self, first: str, second: str) -> str:
        """Return the counts in words."""
        return (
            f"{first} better in {self.better} of {self.n} pairs, {second} in {self.worse}, "
            f"alike in {self.alike}"
        )


class Cells:
    """The cells of a sweep with their results by example.

    Parameters
    ----------
    record : SweepRecord
    folder : Path
        Of the sweep.
    name : str
        The metric.
    """

    def __init__(self, record: SweepRecord, folder: Path, name: str) -> None:
        self.record = record
        self.name = name
        self._folder = folder
        self._by_key = {(c.weights, c.method, int(c.value)): c for c in record.cells}
        self._examples: dict[str, Examples] = {}

    def __getitem__(self, key: tuple[str, str, int]) -> SweptCell:
        return self._by_key[key]

    def loss(self, key: tuple[str, str, int]) -> float:
        """Return how much worse than the dense model a cell is, relative to it."""
        (change,) = (c for c in self[key].outcome.changes if c.metric == self.name)
        assert change.relative_loss is not None
        return change.relative_loss

    def compare(self, first: tuple[str, str, int], second: tuple[str, str, int]) -> int:
        """Return 1 where the first is better, -1 where the second is, 0 where they are alike."""
        found = self[first].outcome.metric(self.name)
        assert found is not None
        assert found.of is not None
        one, other = self._of(self[first]), self._of(self[second])
        assert one.ids == other.ids
        column = one.columns[found.of.score] - other.columns[found.of.score]
        weight = None if found.of.weight is None else one.columns[found.of.weight]
        mean = Aggregate(score=found.of.score, weight=found.of.weight)
        difference, error = mean.value(column, weight), mean.stderr(column, weight) or 0.0
        if abs(difference) <= ERRORS * error:
            return 0
        return 1 if (difference > 0) == (found.better == "higher") else -1

    def tally(self, pairs: Iterator[tuple[tuple[str, str, int], tuple[str, str, int]]]) -> Tally:
        """Return how the first of each pair compares with the second."""
        found = [self.compare(first, second) for first, second in pairs]
        return Tally(found.count(1), found.count(-1), found.count(0))

    def _of(self, cell: SweptCell) -> Examples:
        if cell.file not in self._examples:
            path = self._folder / cell.file
            found = examples_beside(path, read_evaluation(path).outcomes[0])
            assert found is not None
            self._examples[cell.file] = found
        return self._examples[cell.file]


def findings(cells: Cells, like_400: int) -> Mapping[str, Verdict]:
    """Return the verdicts that follow from scores.

    Parameters
    ----------
    like_400 : int
        The rank that keeps the share of parameters which 400 keeps in the paper's model.
    """
    record = cells.record
    ranks = [int(v) for v in record.values]
    lowest, highest = ranks[0], ranks[-1]
    roles = cells.tally(
        (("Wh", method, rank), ("Wi", method, rank)) for method in record.methods for rank in ranks
    )
    solvers = cells.tally(
        ((weights, "svd", rank), (weights, "semi-nmf", rank))
        for weights in record.weights
        for rank in ranks
    )
    low = cells.tally(
        ((weights, "svd", lowest), (weights, "prune", lowest)) for weights in record.weights
    )
    high = cells.tally(
        ((weights, "prune", highest), (weights, "svd", highest)) for weights in record.weights
    )
    losses = {weights: cells.loss((weights, "svd", like_400)) for weights in ("Wh", "Wi")}
    cheap = [loss <= NOTHING for loss in losses.values()]
    return {
        "Wh stands compression better than Wi": Verdict(roles.answer(), roles.text("Wh", "Wi")),
        "SVD is at or above Semi-NMF": Verdict(
            "holds" if not solvers.worse else solvers.answer(), solvers.text("SVD", "Semi-NMF")
        ),
        "factorization is better than pruning at low rank": Verdict(
            low.answer(), f"rank {lowest}: {low.text('SVD', 'pruning')}"
        ),
        "pruning is better at high rank": Verdict(
            high.answer(), f"rank {highest}: {high.text('pruning', 'SVD')}"
        ),
        "a rank like 400 costs next to nothing": Verdict(
            _share(sum(cheap), len(cheap)),
            f"rank {like_400} by SVD: "
            + ", ".join(f"{weights} {100 * loss:+.2f} %" for weights, loss in losses.items()),
        ),
    }


def norm_findings(study: NormStudy, lowest: int) -> Mapping[str, Verdict]:
    """Return the verdicts that follow from norms."""
    ratio = study.total("Wi") / study.total("Wh")
    layers = study.layers()
    larger = sum(study.total("Wi", layer) > study.total("Wh", layer) for layer in layers)
    spread = {key: shares["l1_std"] for key, shares in study.after.items() if key[2] == lowest}
    fall = {key: shares["l1"] for key, shares in study.after.items() if key[2] == lowest}
    methods = sorted({method for _, method, _ in study.after})
    pruned = [spread[weights, "prune", lowest] for weights in ("Wi", "Wh")]
    factored = [spread[w, m, lowest] for w in ("Wi", "Wh") for m in methods if m != "prune"]
    deeper = [fall["Wi", m, lowest] < fall["Wh", m, lowest] for m in methods]
    spreads = all(s < 1 for s in pruned) and all(s > 1 for s in factored)
    return {
        "the nuclear norm of Wi is above that of Wh": Verdict(
            _share(larger, len(layers)),
            f"in {larger} of {len(layers)} layers; {ratio:.2f} times, summed over layers",
        ),
        "at low rank pruning lowers the spread of L1, factorization raises it": Verdict(
            "holds" if spreads else "does not hold",
            f"rank {lowest}: pruning {_range(pruned)}, factorization {_range(factored)} "
            "times what it was",
        ),
        "at low rank L1 falls further in Wi than in Wh": Verdict(
            _share(sum(deeper), len(deeper)),
            f"rank {lowest}, as a share of before: "
            + ", ".join(
                f"{m} {fall['Wi', m, lowest]:.2f} and {fall['Wh', m, lowest]:.2f}" for m in methods
            ),
        ),
    }


def _share(n: int, of: int) -> str:
    return "holds" if n == of else "holds in part" if n else "does not hold"


def _range(values: list[float]) -> str:
    least, most = (f"{value:.2f}" for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"
