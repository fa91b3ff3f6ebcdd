"""The paper's tables again, on the models of fixtures/trained, and whether its findings hold.

python benchmarks/paper_tables.py DATA [-o docs/results.md] [--work FOLDER]

DATA has the folders brown and sst5. Every cell of every table is an artefact that was written, read
again and scored; the results by example stay in FOLDER, and a second run takes them from there.
With ``--threads 1`` it takes about half an hour on two cores. SST-5 needs AllenNLP; see
docs/evaluation.md.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from paper_bilm import SOFTMAX, BiLMPerplexity
from paper_findings import Cells, Verdict, findings, norm_findings
from paper_norms import NormStudy, norm_study
from paper_norms import as_markdown as norm_tables

from ckptshrink.digest import file_sha256
from ckptshrink.evaluation import Evaluator, TaskOptions, subject_of
from ckptshrink.evaluation.evaluator import EVALUATORS
from ckptshrink.evaluation.grid import Grid
from ckptshrink.evaluation.run import changes_of, evaluate
from ckptshrink.evaluation.sweep import sweep
from ckptshrink.evaluation.sweep_tables import SweepRecord, as_markdown
from ckptshrink.payload import Compute

REPO = Path(__file__).resolve().parent.parent
TRAINED = REPO / "fixtures" / "trained"
RIVALS = TRAINED / "rivals"
METHODS = ("svd", "semi-nmf", "prune")
WEIGHTS = ("Wi", "Wh")


@dataclass(frozen=True)
class Table:
    """One model on one task.

    Attributes
    ----------
    key : str
    title, about : str
    source : Path
    rivals : tuple of Path
        Dense models by the same recipe.
    ranks : tuple of int
    like_400 : int
        The rank that keeps about the share of parameters that 400 keeps of the paper's model: half
        of the AWD-LSTM's Wh, four fifths of the ELMo's.
    metric : str
    """

    key: str
    title: str
    about: str
    source: Path
    rivals: tuple[Path, ...]
    ranks: tuple[int, ...]
    like_400: int
    metric: str

    @property
    def grid(self) -> Grid:
        """Every cell."""
        return Grid("rank", self.ranks, WEIGHTS, METHODS, {})


AWD = TRAINED / "awd_lstm_brown.pt"
ELMO = TRAINED / "elmo_brown" / "elmo_brown.hdf5"
ARCHIVE = "bcn_sst5.tar.gz"
_ELMO_RANKS = (5, 10, 25, 50, 75, 100)

TABLES = (
    Table(
        "lm", "AWD-LSTM on Brown: perplexity",
        "Perplexity on the test text, in one stream, as `ckptshrink eval --task lm` has it.",
        AWD, tuple(sorted(RIVALS.glob("awd_lstm_brown_*.pt"))), (10, 25, 50, 100, 150, 200), 150,
        "ppl",
    ),
    Table(
        "bilm", "ELMo on Brown: perplexity",
        "Perplexity of the biLM over both directions, with the softmax that it was trained with "
        "(`benchmarks/paper_bilm.py`).",
        ELMO, tuple(sorted(RIVALS.glob("elmo_brown_*/elmo_brown.hdf5"))), _ELMO_RANKS, 100, "ppl",
    ),
    Table(
        "sst5", "ELMo on SST-5: accuracy",
        "Accuracy of AllenNLP's BCN over the ELMo, as `ckptshrink eval --task sst5` has it. The "
        "BCN was trained over the dense ELMo, each rival's over the rival.",
        ELMO, tuple(sorted(p.parent / ELMO.name for p in RIVALS.glob(f"elmo_brown_*/{ARCHIVE}"))),
        _ELMO_RANKS, 100, "accuracy",
    ),
)  # fmt: skip


def main() -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description="The paper's tables on models trained here.")
    parser.add_argument("data", type=Path, help="folder of the folders brown and sst5")
    parser.add_argument("-o", "--out", type=Path, default=REPO / "docs" / "results.md")
    parser.add_argument("--work", type=Path, default=REPO / "build" / "paper")
    parser.add_argument("--python", help="interpreter that has AllenNLP (default: this one)")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    records, verdicts = {}, {}
    studies: dict[Path, NormStudy] = {}
    for table in TABLES:
        print(f"{table.key} ...", file=sys.stderr, flush=True)
        record = _record(table, given)
        cells = Cells(record, given.work / table.key, table.metric)
        records[table.key] = _only(record, table.metric)
        verdicts[table.key] = dict(findings(cells, table.like_400))
        if table.source not in studies:
            studies[table.source] = norm_study(table.source, table.grid)
            verdicts[table.key] |= norm_findings(studies[table.source], table.ranks[0])
    text = "\n".join(_document(records, verdicts, studies, given.threads)).rstrip("\n") + "\n"
    given.out.write_text(text)
    print(f"wrote {given.out}", file=sys.stderr)
    return 0


def _record(table: Table, given: argparse.Namespace) -> SweepRecord:
    """Run a table's sweep, and score what it is held against."""
    source = subject_of(table.source)
    compute = Compute("cpu", given.threads)
    out = given.work / table.key
    if table.key != "sst5":
        rivals = [subject_of(path, name=_name(path)) for path in table.rivals]
        with _evaluator(table, given) as evaluator:
            return sweep(
                source, table.grid, table.key, evaluator, out, rivals=rivals, compute=compute
            ).record
    with _evaluator(table, given) as evaluator:
        record = sweep(source, table.grid, table.key, evaluator, out, compute=compute).record
    outcomes = []
    for path in table.rivals:  # each inside of a model of its own
        with _evaluator(table, given, path) as evaluator:
            subject = subject_of(path, name=_name(path))
            (outcome,) = evaluate(table.key, evaluator, [subject]).document.outcomes
        outcomes.append(
            outcome.model_copy(update={"changes": changes_of(outcome, record.baseline)})
        )
    return record.model_copy(update={"rivals": tuple(outcomes)})


def _evaluator(table: Table, given: argparse.Namespace, elmo: Path = ELMO) -> Evaluator:
    brown = given.data / "brown"
    if table.key == "bilm":
        return BiLMPerplexity(brown, ELMO.parent / SOFTMAX)
    options: dict[str, Any] = {"device": "cpu", "threads": given.threads}
    if table.key == "lm":
        settings: dict[str, Any] = {"train_text": [brown / "train.txt"]}
        options |= {"data": brown / "test.txt", "settings": settings}
    else:
        settings = {"archive": elmo.parent / ARCHIVE, "elmo": elmo}
        settings |= {} if given.python is None else {"python": given.python}
        options |= {"data": given.data / "sst5" / "test.txt", "settings": settings}
    return EVALUATORS.get(table.key)(TaskOptions(**options))  # type: ignore[no-any-return]


def _name(rival: Path) -> str:
    """Return what tables call a rival: how many cells a layer has."""
    stem = rival.stem if rival.suffix == ".pt" else rival.parent.name
    return f"dense, {stem.rpartition('_')[2]} cells"


def _only(record: SweepRecord, name: str) -> SweepRecord:
    """Return a record without its other metrics: nats are perplexity again."""

    def only(outcome: Any) -> Any:
        kept = {
            "metrics": tuple(m for m in outcome.metrics if m.name == name),
            "changes": tuple(c for c in outcome.changes if c.metric == name),
        }
        return outcome.model_copy(update=kept)

    return record.model_copy(
        update={
            "baseline": only(record.baseline),
            "rivals": tuple(map(only, record.rivals)),
            "cells": tuple(c.model_copy(update={"outcome": only(c.outcome)}) for c in record.cells),
        }
    )


# -- the document --------------------------------------------------------------------------------


def _document(
    records: Mapping[str, SweepRecord],
    verdicts: Mapping[str, Mapping[str, Verdict]],
    studies: Mapping[Path, NormStudy],
    threads: int,
) -> Iterator[str]:
    yield "# The paper's tables, on models trained here"
    yield ""
    yield "Written by"
    yield ""
    yield "```"
    yield "python benchmarks/paper_tables.py $DATA"
    yield "```"
    yield ""
    yield (
        "where `$DATA` has `brown` and `sst5`. The models are those of "
        "[fixtures/trained](../fixtures/trained/README.md), trained from scratch by the scripts "
        "beside them; nothing was fine-tuned after compression. Every number is of an artefact "
        f"that was written and read again, with torch {torch.__version__} and {threads} "
        "thread(s). A rank of which the pair would be no smaller leaves that matrix dense."
    )
    yield ""
    yield from _models()
    yield from _verdicts(records, verdicts)
    for table in TABLES:
        yield f"## {table.title}"
        yield ""
        yield table.about
        yield ""
        shown = as_markdown(records[table.key]).splitlines()
        first = next(i for i, line in enumerate(shown) if line.startswith("Scored on"))
        yield from (f"#{line}" if line.startswith("#") else line for line in shown[first:])
        yield ""
    for source, study in studies.items():
        yield f"## Norms: {source.name}"
        yield ""
        grid = next(table.grid for table in TABLES if table.source == source)
        yield from norm_tables(study, grid)
        yield ""


def _models() -> Iterator[str]:
    yield "## The models"
    yield ""
    yield _line(["file", "parameters", "perplexity (test)", "unigrams", "Kneser-Ney 3-grams"])
    yield _line(["---", *["---:"] * 4])
    for table in TABLES[:2]:
        for path in (table.source, *table.rivals):
            log = json.loads(path.with_suffix(".json").read_text())
            ppl, grams = log["perplexity"]["test"], log["baselines_test"]
            both = ppl["both"] if isinstance(ppl, dict) else ppl
            grams = grams.get("forward", grams)
            yield _line(
                [
                    f"`{path.relative_to(TRAINED)}`", f"{log['n_params']:,}", f"{both:.2f}",
                    f"{grams['unigram']:.1f}", f"{grams['kneser_ney_3']:.1f}",
                ]
            )  # fmt: skip
    yield ""
    yield (
        "The text is the Brown corpus with `<unk>` kept. An ELMo's perplexity counts the ends of "
        "sentences as words, and so do the n-grams beside it (forward direction); its parameters "
        "are those of the file, without the softmax."
    )
    yield ""
    for path in dict.fromkeys(p for t in TABLES for p in (t.source, *t.rivals)):
        yield f"- `{path.relative_to(TRAINED)}`: sha256 {file_sha256(path)}"
    yield ""


def _verdicts(
    records: Mapping[str, SweepRecord], verdicts: Mapping[str, Mapping[str, Verdict]]
) -> Iterator[str]:
    yield "## What the paper found, and whether it holds here"
    yield ""
    yield (
        "Two cells are compared on the same examples, and are alike where they differ by no more "
        "than two standard errors of the difference. Next to nothing is a loss of at most 1 %."
    )
    yield ""
    titles = {table.key: table.title for table in TABLES}
    yield _line(["finding", *(titles[key] for key in verdicts)])
    yield _line(["---", *["---"] * len(verdicts)])
    every = dict.fromkeys(finding for found in verdicts.values() for finding in found)
    for finding in every:
        found = (verdicts[key].get(finding) for key in verdicts)
        yield _line([finding, *("" if v is None else f"**{v.answer}**: {v.detail}" for v in found)])
    yield ""


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
