"""What docs/evaluation.md shows is what its commands print; the other commands are well formed."""

import json
import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
from cli_helpers import Shrink

from ckptshrink.digest import file_sha256
from ckptshrink_cli.main import main

REPO = Path(__file__).resolve().parents[2]
DOC = (REPO / "docs" / "evaluation.md").read_text()
README = (REPO / "README.md").read_text()
TRAINED = REPO / "fixtures" / "trained"


def commands(kind: str) -> list[list[str]]:
    blocks = re.findall(rf"<!-- {kind} -->\n```console\n(.*?)```", DOC, re.DOTALL)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line[:2] == "$ "]
    return [shlex.split(line.partition(" > ")[0])[1:] for line in lines]


def rows(table: str) -> list[list[str]]:
    """Return the cells of the Markdown tables whose header line begins so."""
    found = re.findall(rf"^\| {re.escape(table)}.*?(?=\n\n)", DOC, re.DOTALL | re.MULTILINE)
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for text in found
        for line in text.splitlines()[2:]
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(REPO / "fixtures", tmp_path / "fixtures")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_language_model_scores_what_the_docs_say(
    folder: Path, shared_data: Path, shrink: Shrink
) -> None:
    brown = str(shared_data / "brown")
    compress, score = ([arg.replace("$BROWN", brown) for arg in c] for c in commands("lm example"))
    assert shrink(*compress).status == 0
    done = shrink(*score, "--threads", 1)
    assert done.status == 0, done.err
    shown = rows("model | metric | value | ±")
    assert [(r["model"], r["metric"]) for r in done.rows] == [(s[0], s[1]) for s in shown]
    for row, cells in zip(done.rows, shown, strict=True):
        assert float(row["value"]) == pytest.approx(float(cells[2]), rel=2e-4)
        assert row["n_params_model"] == cells[6].replace(",", "")
        for name, cell in (("efficiency_lstm", cells[8]), ("efficiency_model", cells[9])):
            assert (
                row[name] == ""
                if not cell
                else float(row[name]) == pytest.approx(float(cell), rel=0.02)
            )
    log = json.loads((TRAINED / "awd_lstm_brown.json").read_text())
    assert float(done.rows[0]["value"]) == pytest.approx(log["perplexity"]["test"], rel=1e-5)
    (gate,) = commands("gate example")
    verdict = shrink(*gate)
    assert verdict.status == 1
    assert f"{verdict.err.strip()}\n```" in DOC
    for cells in (shown[0], shown[2]):
        assert f" | {cells[2]} | " in README


@pytest.mark.slow
def test_a_cell_of_the_sweeps_table_comes_out_again(
    folder: Path, shared_data: Path, shrink: Shrink
) -> None:
    (sweep,) = (c for c in commands("options") if "--sweep" in c)
    args = [arg.replace("$BROWN", str(shared_data / "brown")) for arg in sweep]
    args[args.index("--sweep") + 1] = "rank=10"
    args[args.index("--method") + 1] = "svd"
    args[args.index("--target") + 1] = "Wh"
    done = shrink(*args, "--json")
    assert done.status == 0, done.err
    (cell,) = json.loads(done.out)["cells"]
    (shown,) = {row[2] for row in rows("weights | method") if row[:2] == ["Wh", "svd"]} & {"128.6"}
    (ppl,) = (m["value"] for m in cell["outcome"]["metrics"] if m["name"] == "ppl")
    assert ppl == pytest.approx(float(shown), rel=2e-4)


@pytest.mark.parametrize("args", commands("options"), ids=lambda args: " ".join(args)[:60])
def test_the_other_commands_have_options_that_there_are(args: list[str]) -> None:
    parent = click.Context(main, **main.context_settings)
    command = main.get_command(parent, args[0])
    assert command is not None
    command.make_context(args[0], args[1:], parent=parent)


def test_the_trained_files_are_those_of_their_logs() -> None:
    files = [p for p in TRAINED.rglob("*") if p.suffix in {".pt", ".hdf5"}]
    assert {file.suffix for file in files} == {".pt", ".hdf5"}
    for file in files:
        record = json.loads(file.with_suffix(".json").read_text())
        assert file_sha256(file) == record["file_sha256"]
    assert max(p.stat().st_size for p in TRAINED.rglob("*")) < 12_000_000


def test_the_trained_language_model_beats_n_grams() -> None:
    record = json.loads((TRAINED / "awd_lstm_brown.json").read_text())
    assert record["perplexity"]["test"] < 0.6 * record["baselines_test"]["kneser_ney_3"]
