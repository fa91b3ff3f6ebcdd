"""Norms of gate matrices before compression, and what becomes of them by method and rank."""

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckptshrink import compress
from ckptshrink.analysis import Analysed, analyse
from ckptshrink.evaluation.grid import Grid

MEASURES = {
    "l1": "L1 norm (largest absolute column sum; columns are inputs)",
    "l1_std": "spread of the absolute column sums",
    "nuclear": "nuclear norm",
}


@dataclass(frozen=True)
class NormStudy:
    """Norms of one model.

    Attributes
    ----------
    before : list of Analysed
        Of the dense model's Wi and Wh.
    after : mapping
        By weights, method and size: each measure as a share of what it was, mean over matrices.
    """

    before: list[Analysed]
    after: dict[tuple[str, str, int], dict[str, float]]

    def layers(self) -> list[tuple[int | None, str | None]]:
        """Return the layers by number and direction."""
        return list(dict.fromkeys((a.layer, a.direction) for a in self.before))

    def total(self, role: str, layer: tuple[int | None, str | None] | None = None) -> float:
        """Return the nuclear norms of the dense matrices of one role, summed."""
        return sum(
            a.norms.nuclear
            for a in self.before
            if a.role == role and layer in (None, (a.layer, a.direction))
        )


def norm_study(source: Path, grid: Grid) -> NormStudy:
    """Compress a checkpoint in every way of a grid, and analyse each."""
    before = {a.name + a.role: a for a in analyse(source) if a.role in grid.weights}
    after: dict[tuple[str, str, int], dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for cell in grid.cells():
            artefact = Path(folder) / "artefact"
            compress(source, artefact, cell.request(grid.more), overwrite=True)
            shares = defaultdict(list)
            for found in analyse(artefact):
                if found.role != cell.weights:
                    continue
                was = before[found.name + found.role].norms
                for measure in MEASURES:
                    shares[measure].append(getattr(found.norms, measure) / getattr(was, measure))
            after[cell.weights, cell.method, int(cell.value)] = {
                measure: float(np.mean(values)) for measure, values in shares.items()
            }
    return NormStudy(list(before.values()), after)


def as_markdown(study: NormStudy, grid: Grid) -> Iterator[str]:
    """Yield the tables of a study."""
    titles = ["matrix", "role", "shape", "L1", "spread of L1", "nuclear", "rank of 99 % energy"]
    yield _line(titles)
    yield _line(["---", "---", *["---:"] * 5])
    for found in study.before:
        where = "" if found.direction is None else f", {found.direction}"
        norms = found.norms
        yield _line(
            [
                f"layer {found.layer}{where}", found.role, " × ".join(map(str, found.shape)),
                f"{norms.l1:.1f}", f"{norms.l1_std:.2f}", f"{norms.nuclear:.1f}",
                str(norms.rank_of_energy),
            ]
        )  # fmt: skip
    for measure, about in MEASURES.items():
        yield ""
        yield f"After compression, as a share of before, mean over the matrices: {about}."
        yield ""
        yield _line(["weights", "method", *(f"rank={value}" for value in grid.values)])
        yield _line(["---", "---", *["---:"] * len(grid.values)])
        for weights in grid.weights:
            for method in grid.methods:
                row = [study.after[weights, method, int(v)][measure] for v in grid.values]
                yield _line([weights, method, *(f"{share:.3f}" for share in row)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
