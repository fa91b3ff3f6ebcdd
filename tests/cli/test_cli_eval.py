"""``ckptshrink eval`` as a user runs it: tables, documents, failures, sweeps, and its refusals."""

import csv
import io
import json
import math
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import Shrink

from ckptshrink.evaluation import examples_beside, read_evaluation
from ckptshrink.runtime import load_language_model

WORDS = 120
"""Vocabulary of the fixture."""


@pytest.fixture
def awd(fixtures: Path) -> Path:
    return fixtures / "torch" / "awd_lstm_state.zip.pt"


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text(
        "".join(f"{w}\n" for w in ["<eos>", "<unk>", *(f"w{i}" for i in range(2, WORDS))])
    )
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "text.txt"
    lines = [
        " ".join(f"w{int(i)}" for i in torch.randint(2, WORDS, (7,), generator=generator))
        for _ in range(40)
    ]
    path.write_text("\n".join([*lines, "w5 stranger w7"]) + "\n")
    return path


@pytest.fixture
def small(awd: Path, tmp_path: Path, shrink: Shrink) -> Path:
    out = tmp_path / "small"
    done = shrink("compress", awd, "--target", "Wh", "--rank", 2, "-o", out)
    assert done.status == 0, done.err
    return out


@pytest.fixture
def lm(text: Path, vocab: Path) -> list[object]:
    return ["--task", "lm", "--data", text, "--vocab", vocab, "--threads", 1]


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """Make a program for ``--task command`` from its Python code; ``path`` is what it is given."""

    def make(code: str) -> str:
        script = tmp_path / "score.py"
        script.write_text(f"import json, os, sys, time\npath = sys.argv[1]\n{code}\n")
        return f"{sys.executable} {script}"

    return make


def ids_of(text: Path, vocab: Path) -> torch.Tensor:
    number = {word: i for i, word in enumerate(vocab.read_text().split())}
    words = [w for line in text.read_text().splitlines() for w in [*line.split(), "<eos>"]]
    return torch.tensor([number.get(w, number["<unk>"]) for w in words])


def test_a_perplexity_is_that_of_an_independent_computation(
    shrink: Shrink, awd: Path, small: Path, lm: list[object], text: Path, vocab: Path
) -> None:
    done = shrink("eval", small, "--baseline", awd, *lm, "--json")
    assert done.status == 0, done.err
    document = json.loads(done.out)
    ids = ids_of(text, vocab)
    for outcome, path in zip(document["outcomes"], (awd, small), strict=True):
        state, nats = None, 0.0
        model = load_language_model(path)
        with torch.no_grad():
            for token, target in pairwise(ids):
                scores, state = model.log_probs(token.view(1, 1), state)
                nats -= float(scores[0, 0, target])
        (ppl,) = (m["value"] for m in outcome["metrics"] if m["name"] == "ppl")
        assert ppl == pytest.approx(math.exp(nats / (len(ids) - 1)), rel=1e-5)
    assert document["protocol"]["n_unknown"] == 1


def test_the_table_has_a_row_for_each_model_and_metric(
    shrink: Shrink, awd: Path, small: Path, lm: list[object]
) -> None:
    done = shrink("eval", small, f"again={small}", "--baseline", awd, *lm)
    assert done.status == 0, done.err
    assert [(r["model"], r["role"], r["metric"]) for r in done.rows] == [
        (name, role, metric)
        for name, role in ((awd.name, "baseline"), ("small", "variant"), ("again", "variant"))
        for metric in ("ppl", "nats")
    ]
    base, one, two = done.rows[0], done.rows[2], done.rows[4]
    assert one["value"] == two["value"] != base["value"]
    gone = (int(base["n_params_lstm"]) - int(one["n_params_lstm"])) / int(base["n_params_lstm"])
    loss = (float(one["value"]) - float(base["value"])) / float(base["value"])
    expected = loss / gone if loss >= 0 else loss / (1 - gone)
    assert float(one["efficiency_lstm"]) == pytest.approx(expected)
    assert base["efficiency_lstm"] == ""
    assert "E(r)" in done.err


def test_the_document_and_its_results_lie_beside_each_other(
    shrink: Shrink, awd: Path, small: Path, lm: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "run.json"
    done = shrink("eval", small, "--baseline", awd, *lm, "-o", out)
    assert done.status == 0, done.err
    document = read_evaluation(out)
    for outcome in document.outcomes:
        examples = examples_beside(out, outcome)
        assert examples is not None
        assert len(examples) == 41
        for metric in outcome.metrics:
            assert metric.of is not None
            weight = None if metric.of.weight is None else examples.columns[metric.of.weight]
            value = metric.of.value(examples.columns[metric.of.score], weight)
            assert value == pytest.approx(metric.number, rel=1e-12)
    again = shrink("eval", small, *lm, "-o", out)
    assert again.status == 4
    assert "exists already" in again.err
    assert shrink("eval", small, *lm, "-o", out, "--overwrite").status == 0
    assert [o.model.name for o in read_evaluation(out).outcomes] == ["small"]


def test_the_same_run_gives_the_same_numbers(shrink: Shrink, small: Path, lm: list[object]) -> None:
    one, two = (json.loads(shrink("eval", small, *lm, "--json").out) for _ in range(2))
    for document in (one, two):
        for outcome in document["outcomes"]:
            outcome.pop("seconds")
    assert one == two


def test_a_model_that_was_damaged_is_seen_to_be(
    shrink: Shrink, awd: Path, lm: list[object], tmp_path: Path
) -> None:
    state = torch.load(awd, weights_only=True)
    bias = state["decoder.bias"]
    bias[2:] = -30.0  # every word of the text but the end of a line becomes unlikely
    torch.save(state, tmp_path / "damaged.pt")
    done = shrink("eval", tmp_path / "damaged.pt", "--baseline", awd, *lm)
    ppl = [float(row["value"]) for row in done.rows if row["metric"] == "ppl"]
    assert ppl[1] > 1e6 * ppl[0]


def test_what_is_not_made_from_the_baseline_is_told(
    shrink: Shrink, small: Path, fixtures: Path, lm: list[object], tmp_path: Path
) -> None:
    other = tmp_path / "other.pt"
    state = torch.load(fixtures / "torch" / "awd_lstm_state.zip.pt", weights_only=True)
    torch.save({**state}, other)
    done = shrink("eval", small, "--baseline", other, *lm)
    assert "note: small was not made from other.pt" in done.err


# -- a program ---------------------------------------------------------------------------------


def test_a_program_scores_an_artefact_by_its_path(
    shrink: Shrink, small: Path, awd: Path, program: Callable[[str], str]
) -> None:
    command = program('print(json.dumps({"accuracy": 0.5 if os.path.isdir(path) else 0.75}))')
    done = shrink("eval", small, "--baseline", awd, "--task", "command", "--command", command)
    assert done.status == 0, done.err
    assert [row["value"] for row in done.rows] == ["0.75", "0.5"]
    assert float(done.rows[1]["relative_loss"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("sys.exit('it broke')", "it broke"),
        ("print('nonsense')", "JSON"),
        ("time.sleep(60)", "seconds"),
        ("os.kill(os.getpid(), 9)", "SIGKILL"),
    ],
)
def test_a_program_that_fails_is_a_failed_evaluation_with_its_log(
    shrink: Shrink, small: Path, program: Callable[[str], str], code: str, said: str, tmp_path: Path
) -> None:
    out = tmp_path / "run.json"
    done = shrink(
        "eval", small, "--task", "command", "--command", program(code), "--timeout", 2, "-o", out
    )
    assert done.status == 1
    (row,) = done.rows
    assert row["failure"]
    assert row["value"] == ""
    (outcome,) = read_evaluation(out).outcomes
    assert outcome.failure is not None
    assert said in outcome.failure.reason + outcome.failure.log
    assert f"failed: small: {outcome.failure.reason}" in done.err
    assert "Traceback" not in done.err


def test_one_failure_does_not_keep_the_others_from_being_scored(
    shrink: Shrink, small: Path, awd: Path, program: Callable[[str], str]
) -> None:
    command = program("assert os.path.isfile(path)\nprint('{\"f1\": 1}')")
    done = shrink("eval", small, "--baseline", awd, "--task", "command", "--command", command)
    assert done.status == 1
    assert [(r["model"], r["value"], bool(r["failure"])) for r in done.rows] == [
        (awd.name, "1.0", False),
        ("small", "", True),
    ]


def test_any_file_can_be_scored_by_a_program(
    shrink: Shrink, tmp_path: Path, program: Callable[[str], str]
) -> None:
    (tmp_path / "odd.bin").write_bytes(b"no checkpoint")
    command = program('print(json.dumps({"loss": os.path.getsize(path)}))')
    done = shrink("eval", tmp_path / "odd.bin", "--task", "command", "--command", command)
    assert done.status == 0, done.err
    assert done.rows[0]["value"] == "13.0"
    assert done.rows[0]["n_params_model"] == ""


# -- sweeps ------------------------------------------------------------------------------------


def test_a_sweep_makes_the_papers_table_and_goes_on_where_it_was(
    shrink: Shrink, awd: Path, lm: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    args: list[object] = [
        "eval", awd, *lm, "--sweep", "rank=2,4", "--target", "Wi,Wh",
        "--method", "svd,semi-nmf,prune", "-o", out,
    ]  # fmt: skip
    done = shrink(*args)
    assert done.status == 0, done.err
    assert sorted(p.name for p in out.iterdir()) == ["cells", "sweep.csv", "sweep.json", "sweep.md"]
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert len(rows) == 2 * (1 + 2 * 3 * 2)
    again = shrink(*args, "--json")
    assert "13 evaluations were there already" in again.err
    assert len(json.loads(again.out)["cells"]) == 12
    cell = next((out / "cells").glob("Wh-svd-rank-2-*.json"))
    alone = shrink("compress", awd, "--target", "Wh", "--rank", 2, "-o", tmp_path / "alone")
    assert alone.status == 0
    scored = json.loads(shrink("eval", tmp_path / "alone", *lm, "--json").out)
    assert (
        json.loads(cell.read_text())["outcomes"][0]["metrics"] == scored["outcomes"][0]["metrics"]
    )


def test_a_sweep_is_held_against_a_rival(
    shrink: Shrink, awd: Path, lm: list[object], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    assert shrink("compress", awd, "--target", "Wi,Wh", "--rank", 1, "-o", small).status == 0
    done = shrink(
        "eval", awd, *lm, "--sweep", "rank=2", "--target", "Wh", "--rival", f"tiny={small}",
        "-o", tmp_path / "sweep",
    )  # fmt: skip
    assert done.status == 0, done.err
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [r["method"] for r in rows if r["metric"] == "ppl"] == ["baseline", "rival tiny", "svd"]
    alone = shrink("eval", small, *lm).rows
    assert [r["value"] for r in rows if r["method"] == "rival tiny"] == [r["value"] for r in alone]
    assert "| tiny | " in (tmp_path / "sweep" / "sweep.md").read_text()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--sweep", "rank=2"], "needs -o"),
        (["--sweep", "rank=2", "-o", "OUT"], "needs --target"),
        (["--sweep", "rank=2", "-o", "OUT", "--target", "Wh", "--baseline", "AWD"], "--baseline"),
        (["--sweep", "rank=two", "-o", "OUT", "--target", "Wh"], "takes numbers"),
        (["--sweep", "size=2", "-o", "OUT", "--target", "Wh"], "is no sweep"),
        (["--sweep", "rank=0", "-o", "OUT", "--target", "Wh"], "at least 1"),
        (["--sweep", "rank=2", "-o", "OUT", "--target", "Wh:rank=3"], "no settings of its own"),
        (["--sweep", "rank=2", "-o", "OUT", "--target", "Wh", "--method", "sdv"], "svd"),
        (["--target", "Wh"], "goes with --sweep"),
    ],
)
def test_a_sweep_that_can_not_be_is_a_mistake_of_usage(
    shrink: Shrink, awd: Path, lm: list[object], tmp_path: Path, args: list[str], said: str
) -> None:
    names = {"OUT": tmp_path / "out", "AWD": awd}
    done = shrink("eval", awd, *lm, *(names.get(arg, arg) for arg in args))
    assert done.status == 2
    assert said in done.err
    assert not (tmp_path / "out").exists()


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        ([], 2, "give a --task"),
        (["--task", "squda"], 2, "did you mean squad?"),
        (["--task", "lm"], 2, "--data"),
        (["--task", "lm", "--data", "TEXT"], 2, "vocab"),
        (
            ["--task", "lm", "--data", "TEXT", "--vocab", "VOCAB", "--archive", "x"],
            2,
            "--archive goes",
        ),
        (["--task", "command", "--command", "true", "--vocab", "VOCAB"], 2, "--vocab goes with"),
        (["--task", "command"], 2, "command"),
        (["--task", "lm", "--data", "nowhere", "--vocab", "VOCAB"], 3, "nowhere"),
        (["--task", "lm", "--data", "TEXT", "--train-text", "TEXT"], 3, "120"),
        (["--task", "lm", "--data", "TEXT", "--vocab", "VOCAB", "--timeout", "0"], 2, "above 0"),
        (
            ["--task", "lm", "--data", "TEXT", "--vocab", "VOCAB", "--batch-size", "0"],
            2,
            "at least 1",
        ),
        (["--task", "lm", "--data", "TEXT", "--vocab", "VOCAB", "--seed", "-1"], 2, "at least 0"),
        (["--task", "command", "--command", "no-such-program-at-all"], 3, "no-such-program"),
        (["--task", "command", "--command", "true", "--better", "loss=up"], 2, "higher or lower"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(
    shrink: Shrink, awd: Path, text: Path, vocab: Path, args: list[str], status: int, said: str
) -> None:
    names = {"TEXT": text, "VOCAB": vocab}
    done = shrink("eval", awd, *(names.get(arg, arg) for arg in args))
    assert done.status == status, done.err
    assert said in done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) <= 2


@pytest.mark.parametrize("kind", ["missing", "no checkpoint", "an ELMo"])
def test_what_can_not_be_scored_as_a_language_model_is_refused(
    shrink: Shrink, tmp_path: Path, fixtures: Path, lm: list[object], kind: str
) -> None:
    path = tmp_path / "thing.bin"
    if kind == "no checkpoint":
        path.write_bytes(os.urandom(100))
    if kind == "an ELMo":
        path = fixtures / "elmo" / "elmo.hdf5"
    done = shrink("eval", path, *lm)
    assert done.status == 3
    assert "Traceback" not in done.err
    assert done.out == ""


def test_two_models_of_one_name_are_refused(shrink: Shrink, small: Path, lm: list[object]) -> None:
    done = shrink("eval", small, small, *lm)
    assert done.status == 3
    assert "NAME=PATH" in done.err


def test_it_runs_from_another_folder_without_a_terminal(
    program_of: Any, small: Path, lm: list[object], tmp_path: Path
) -> None:
    done = program_of("eval", small, *lm, "-q", cwd=tmp_path)
    assert done.status == 0, done.err
    assert done.err == ""
    assert len(done.rows) == 2


@pytest.fixture
def program_of(request: pytest.FixtureRequest, command: list[str]) -> Any:
    """Run the command line as a process of its own; `program` is another thing here."""
    import subprocess

    from cli_helpers import Done

    def call(*args: object, cwd: Path) -> Done:
        done = subprocess.run(
            [*command, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=100
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return call
