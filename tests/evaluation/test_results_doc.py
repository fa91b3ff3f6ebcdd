"""docs/results.md is about the files of fixtures/trained, and its cells come out again."""

import argparse
import importlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from allennlp_environment import require_allennlp

from ckptshrink.digest import file_sha256
from ckptshrink.evaluation import subject_of

REPO = Path(__file__).resolve().parents[2]
TRAINED = REPO / "fixtures" / "trained"
DOC = (REPO / "docs" / "results.md").read_text()


@pytest.fixture(scope="module")
def paper() -> Iterator[Any]:
    sys.path.insert(0, str(REPO / "benchmarks"))
    try:
        yield importlib.import_module("paper_tables")
    finally:
        sys.path.remove(str(REPO / "benchmarks"))


def section(title: str) -> list[list[str]]:
    """Return the rows of the tables under a heading."""
    start = DOC.index(f"\n## {title}\n")
    text = DOC[start : DOC.find("\n## ", start + 4)]
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def number(cell: str) -> float:
    return float(cell.split()[0].replace(",", ""))


def test_it_names_every_trained_file_with_its_hash() -> None:
    named = dict(re.findall(r"^- `([^`]+)`: sha256 ([0-9a-f]{64})$", DOC, re.MULTILINE))
    assert named == {name: file_sha256(TRAINED / name) for name in named}
    models = {p for p in TRAINED.rglob("*") if p.suffix in {".pt", ".hdf5"}}
    assert {TRAINED / name for name in named} == models


def test_its_models_are_those_of_the_logs(paper: Any) -> None:
    rows = {row[0].strip("`"): row[1:] for row in section("The models")[1:]}
    for name, cells in rows.items():
        log = json.loads((TRAINED / name).with_suffix(".json").read_text())
        ppl = log["perplexity"]["test"]
        assert cells[0] == f"{subject_of(TRAINED / name).n_params:,}"
        assert number(cells[1]) == round(ppl["both"] if isinstance(ppl, dict) else ppl, 2)
        assert number(cells[1]) < number(cells[3]) < number(cells[2])  # better than n-grams


@pytest.mark.slow
@pytest.mark.parametrize("key", ["lm", "bilm", "sst5"])
def test_a_cell_of_each_table_comes_out_again(
    paper: Any, key: str, shared_data: Path, tmp_path: Path
) -> None:
    if key == "sst5":
        require_allennlp()
    (table,) = (t for t in paper.TABLES if t.key == key)
    rivals = () if key == "sst5" else table.rivals[:1]  # each is half a minute
    small = replace(table, ranks=(table.ranks[0],), rivals=rivals)
    given = argparse.Namespace(data=shared_data, work=tmp_path, threads=1, python=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "METHODS", ("svd",))
        patch.setattr(paper, "WEIGHTS", ("Wh",))
        record = paper._record(small, given)
    rows = section(table.title)
    (cell,) = record.cells
    first = next(row for row in rows if row[:2] == ["Wh", "svd"])
    found = cell.outcome.metric(table.metric)
    # in accuracy one sentence of 2,210 may fall otherwise on another processor
    assert found.number == pytest.approx(number(first[2]), rel=5e-4 if key != "sst5" else 0.01)
    sizes = [row for row in rows if row[:2] == ["Wh", "svd"]][-1]
    assert cell.outcome.model.n_params.model == number(sizes[2])
    for rival in record.rivals:
        (row,) = (row for row in rows if row[0] == rival.model.name)
        value = rival.metric(table.metric).number
        assert value == pytest.approx(number(row[1]), rel=5e-4 if key != "sst5" else 0.01)
        assert row[3] == f"{rival.model.n_params.model:,}"


def test_every_cell_that_loses_to_a_rival_is_marked() -> None:
    assert "dense, 250 cells" in DOC
    for title in re.findall(r"^## (.*: (?:perplexity|accuracy))$", DOC, re.MULTILINE):
        rows = section(title)
        higher = title.endswith("accuracy")
        rivals = [(number(row[1]), number(row[3])) for row in rows if row[0].startswith("dense")]
        assert bool(rivals) is ("† loses to" in DOC[DOC.index(f"## {title}") :].split("\n## ")[0])
        keyed = [row for row in rows if row[0] in {"Wi", "Wh"}]
        n = len({tuple(row[:2]) for row in keyed})
        for scores, sizes in zip(keyed[:n], keyed[-n:], strict=True):
            assert scores[:2] == sizes[:2]
            for score, size in zip(scores[2:-2], sizes[2:], strict=True):
                lost = any(
                    n_params <= number(size)
                    and (value > number(score) if higher else value < number(score))
                    for value, n_params in rivals
                )
                assert ("†" in score) is lost, (title, scores[:2], score)
