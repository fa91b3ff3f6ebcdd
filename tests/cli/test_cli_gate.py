"""``gate``: its exit status, what it prints, and what it leaves for a CI server."""

import json
import os
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import Shrink
from gate_documents import (
    N,
    accuracy,
    damaged,
    document,
    outcome,
    perplexity,
    right,
    several,
    write,
)

RULE = ("--max-drop", "accuracy=1pp")
WORSE = {"PASS": 0, "FAIL": 100, "INCONCLUSIVE": 20}
"""Examples of `N` that a candidate lost; 20 are just what `RULE` allows."""
EXIT = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 5}


@pytest.fixture(autouse=True)
def no_ci_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_ACTIONS", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def files(tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    """Write a baseline, and a candidate on which `RULE` has this verdict."""

    def make(status: str) -> tuple[str, ...]:
        a = document(tmp_path / "a.json", right(), name="elmo.hdf5", role="baseline", nbytes=1_000)
        b = document(
            tmp_path / "b.json", damaged(right(), WORSE[status]), name="elmo.shrunk", nbytes=400
        )
        return ("--baseline", str(a), "--candidate", str(b))

    return make


# The answer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", EXIT)
def test_the_exit_status_is_the_verdict(status: str, files: Any, shrink: Shrink) -> None:
    done = shrink("gate", *files(status), *RULE)
    assert done.status == EXIT[status]
    (row,) = done.rows
    assert (row["status"], row["metric"], row["n"]) == (status, "accuracy", str(N))
    assert done.err.startswith(f"{status}: accuracy ")


@pytest.mark.parametrize("status", EXIT)
def test_report_only_exits_with_zero_and_says_the_same(
    status: str, files: Any, shrink: Shrink
) -> None:
    plain = shrink("gate", *files(status), *RULE)
    done = shrink("gate", *files(status), *RULE, "--exit-zero")
    assert (done.status, done.out, done.err) == (0, plain.out, plain.err)


def test_the_numbers_are_those_of_the_files_and_are_not_rounded(files: Any, shrink: Shrink) -> None:
    args = (*files("FAIL"), "--max-drop", "accuracy=0.5pp")
    (row,) = shrink("gate", *args).rows
    before, after = right().mean(), damaged(right(), 100).mean()
    assert (float(row["baseline"]), float(row["candidate"])) == (before, after)
    assert float(row["loss"]) == pytest.approx(100 * 100 / N)
    assert float(row["low"]) < float(row["loss"]) < float(row["high"])
    assert (row["worse"], row["better"]) == ("100", "0")
    assert (row["rule"], row["amount"], row["unit"]) == ("max_drop", "0.5", "pp")
    verdict = json.loads(shrink("gate", *args, "--json").out)
    assert verdict["checks"][0]["loss"] == float(row["loss"])


def test_what_went_wrong_is_one_sentence_on_standard_error(files: Any, shrink: Shrink) -> None:
    done = shrink("gate", *files("FAIL"), *RULE, "--max-size", "0.3")
    first, second = done.err.splitlines()
    assert first.startswith("FAIL: accuracy fell by 5 pp: ")
    assert first.endswith("1 pp is allowed")
    assert second == ("FAIL: size: 400 bytes are 0.4 of the baseline's 1,000, and 0.3 is allowed")
    done = shrink("gate", *files("PASS"), *RULE, "--max-size", "0.4")
    assert done.err == "PASS: elmo.shrunk keeps all 2 rules\n"


def test_json_is_one_document_with_everything(files: Any, shrink: Shrink) -> None:
    done = shrink("gate", *files("INCONCLUSIVE"), *RULE, "--alarm", "0.02", "--json")
    assert done.status == 5
    verdict = json.loads(done.out)
    assert (verdict["status"], verdict["task"]) == ("INCONCLUSIVE", "sst5")
    assert (verdict["baseline"], verdict["candidate"]) == ("elmo.hdf5", "elmo.shrunk")
    assert verdict["settings"] == {"alpha": 0.05, "alarm": 0.02, "resamples": 9999, "seed": 0}
    (check,) = verdict["checks"]
    assert check["n"] == N
    assert check["detectable"] > 1


def test_without_a_rule_every_metric_may_lose_its_default_margin(
    tmp_path: Path, shrink: Shrink
) -> None:
    metrics, results = several({"accuracy": right(), "em": right()})
    write(tmp_path / "a.json", [outcome("a", *metrics, role="baseline")], {"a": results})
    worse, results = several({"accuracy": right(), "em": damaged(right(), 200)})
    write(tmp_path / "b.json", [outcome("b", *worse)], {"b": results})
    done = shrink("gate", "--baseline", tmp_path / "a.json", "--candidate", tmp_path / "b.json")
    assert done.status == 1
    assert [(r["status"], r["metric"], r["amount"], r["unit"]) for r in done.rows] == [
        ("PASS", "accuracy", "1.0", "pp"), ("FAIL", "em", "1.0", "pp"),
    ]  # fmt: skip
    assert "allowed: accuracy 1 pp lower: the default margin" in done.err.splitlines()


def test_perplexity_is_better_lower(tmp_path: Path, shrink: Shrink) -> None:
    rng = np.random.default_rng(1)
    words = rng.integers(5, 30, 400)
    nats = words * rng.normal(4, 0.3, 400)
    for name, factor in (("a", 1.0), ("same", 1.0), ("worse", 1.05), ("better", 0.9)):
        found, results = perplexity(nats * factor, words)
        role = "baseline" if name == "a" else "variant"
        write(tmp_path / f"{name}.json", [outcome(name, found, role=role)], {name: results})
    statuses = {}
    for name in ("same", "worse", "better"):
        args = ("--baseline", tmp_path / "a.json", "--candidate", tmp_path / f"{name}.json")
        done = shrink("gate", *args, "--max-rise", "ppl=2%", "--resamples", "999")
        statuses[name] = done.rows[0]["status"]
        assert done.rows[0]["rule"] == "max_rise"
    assert statuses == {"same": "PASS", "worse": "FAIL", "better": "PASS"}


# Rules ------------------------------------------------------------------------------------------

TABLE = """
[gate]
alpha = 0.1
seed = 3

[gate.metrics.accuracy]
max_drop = "3pp"
reason = "users noticed 4"

[gate.size]
max = 0.5
reason = "the phone has 40 MB left"
"""


def test_rules_of_a_file_come_with_their_reasons(
    tmp_path: Path, files: Any, shrink: Shrink
) -> None:
    config = tmp_path / "gate.toml"
    config.write_text(TABLE)
    done = shrink("gate", *files("INCONCLUSIVE"), "--config", config)
    assert done.status == 0
    assert [(row["metric"], row["amount"], row["reason"]) for row in done.rows] == [
        ("accuracy", "3.0", "users noticed 4"), ("size", "0.5", "the phone has 40 MB left"),
    ]  # fmt: skip
    assert done.err.splitlines() == [
        "PASS: elmo.shrunk keeps all 2 rules",
        "allowed: accuracy 3 pp lower: users noticed 4",
        "allowed: size 0.5 of its bytes: the phone has 40 MB left",
    ]


def test_the_command_line_goes_before_the_file(tmp_path: Path, files: Any, shrink: Shrink) -> None:
    config = tmp_path / "gate.toml"
    config.write_text(TABLE)
    more = ("--config", config, *RULE, "--alpha", "0.02", "--json")
    verdict = json.loads(shrink("gate", *files("INCONCLUSIVE"), *more).out)
    assert [(c["rule"]["metric"], c["rule"]["amount"]) for c in verdict["checks"]] == [
        ("size", 0.5), ("accuracy", 1.0),
    ]  # fmt: skip
    assert verdict["checks"][1]["rule"]["reason"] == ""  # it was of the other amount
    assert (verdict["settings"]["alpha"], verdict["settings"]["seed"]) == (0.02, 3)
    verdict = json.loads(shrink("gate", *files("PASS"), *more, "--seed", "0").out)
    assert verdict["settings"]["seed"] == 0  # given, though it is the default


@pytest.mark.parametrize(
    "text", ["", "[other]", "[gate.metrics.accuracy]\nmax_drop = 1", "[gate", "\x00"]
)
def test_a_file_of_rules_that_is_none_is_status_3(
    text: str, tmp_path: Path, files: Any, shrink: Shrink
) -> None:
    config = tmp_path / "gate.toml"
    config.write_text(text)
    done = shrink("gate", *files("PASS"), "--config", config)
    assert (done.status, done.out) == (3, "")
    assert str(config) in done.err
    assert shrink("gate", *files("PASS"), "--config", tmp_path / "none").status == 3


WRONG = {
    "no files": ((), "--baseline A and --candidate B"),
    "no candidate": (("--baseline", "a"), "--baseline A and --candidate B"),
    "a rule without a metric": (("--max-drop", "=1pp"), "names no metric"),
    "an amount that is none": (("--max-drop", "accuracy=much"), "no amount"),
    "a negative amount": (("--max-drop", "accuracy=-1pp"), "negative"),
    "a size that is none": (("--max-size", "small"), "no share"),
    "two rules for a metric": (("--max-drop", "f1=1pp", "--max-drop", "f1=2pp"), "two rules"),
    "a drop and a rise": (("--max-drop", "f1=1pp", "--max-rise", "f1=2pp"), "two rules for f1"),
    "two names of one metric": (
        ("--max-rise", "ppl=1%", "--max-rise", "perplexity=2%"), "two rules for ppl",
    ),
    "a risk of one half": (("--alpha", "0.5"), "between 0 and 0.5"),
    "a risk of nothing": (("--alarm", "0"), "between 0 and 0.5"),
    "a risk that is no number": (("--alarm", "low"), "no number"),
    "few resamples": (("--resamples", "10"), "at least 999"),
    "a name that is no UTF-8": (("--max-drop", "\udcff=1pp"), "no UTF-8"),
    "an option of a task": (("--vocab", "x"), "--vocab goes with --task"),
    "a task of a file": (
        ("--task", "lm", "--baseline-model", "x"), "--baseline-model is of a file",
    ),
    "examples without power": (("--examples", "5"), "--examples goes with --power"),
    "power and a candidate": (("--power", "--candidate", "b"), "leave out --candidate"),
    "power of nothing": (("--power",), "--examples N, or --baseline A"),
    "power of a share": (("--power", "--examples", "9", "--max-drop", "f1=2%"), "--baseline"),
    "power of too much": (("--power", "--examples", "9", "--max-drop", "f1=2"), "more than"),
    "disagreement beyond all": (("--power", "--examples", "9", "--disagreement", "101%"), "share"),
    "no examples": (("--power", "--examples", "0"), "at least 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage(
    case: str, shrink: Shrink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args, expected = WRONG[case]
    done = shrink("gate", *args)
    assert (done.status, done.out) == (2, "")
    message, hint = done.err.splitlines()
    assert expected in message
    assert hint == "hint: ckptshrink gate -h"
    assert not list(tmp_path.iterdir())


def test_a_rule_that_limits_the_way_a_metric_gets_better_is_refused(
    files: Any, shrink: Shrink
) -> None:
    done = shrink("gate", *files("PASS"), "--max-rise", "accuracy=1pp")
    assert (done.status, done.out) == (2, "")
    assert "higher is better" in done.err


# Files that are not what they should be ---------------------------------------------------------

UNREADABLE = {
    "empty": b"",
    "blank": b" \n",
    "no JSON": b"accuracy 0.5",
    "another JSON": b'{"accuracy": 0.5}',
    "a list": b"[]",
    "a number": b"1",
    "binary": bytes(range(256)) * 40,
    "zeros": bytes(5_000),
    "deep": b"[" * 100_000,
    "UTF-16": "\ufeff{}".encode("utf-16"),
}


@pytest.mark.parametrize("side", ["--baseline", "--candidate"])
@pytest.mark.parametrize("case", UNREADABLE)
def test_what_is_no_evaluation_is_status_3(
    case: str, side: str, tmp_path: Path, files: Any, shrink: Shrink
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_bytes(UNREADABLE[case])
    done = shrink("gate", *files("PASS"), side, bad, *RULE)
    assert (done.status, done.out) == (3, "")
    assert done.err.startswith(f"ckptshrink: {bad}: ")
    assert len(done.err.splitlines()) <= 2


def test_every_cut_of_a_document_is_status_3(tmp_path: Path, files: Any, shrink: Shrink) -> None:
    args = files("PASS")
    whole = (tmp_path / "b.json").read_bytes().rstrip()
    for end in range(0, len(whole), 61):
        (tmp_path / "b.json").write_bytes(whole[:end])
        assert shrink("gate", *args, *RULE).status == 3


def test_a_huge_file_is_refused_unread(tmp_path: Path, files: Any, shrink: Shrink) -> None:
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    started = time.monotonic()
    done = shrink("gate", *files("PASS"), "--candidate", huge, *RULE)
    assert done.status == 3
    assert time.monotonic() - started < 5


def test_what_is_missing_or_a_folder_is_status_3(
    tmp_path: Path, files: Any, shrink: Shrink
) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        assert shrink("gate", *files("PASS"), "--candidate", path, *RULE).status == 3


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value["outcomes"][0])
    path.write_text(json.dumps(value))  # which writes NaN and Infinity as such


@pytest.mark.parametrize("side", ["a.json", "b.json"])
@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_a_metric_that_is_no_finite_number_fails(
    number: str, side: str, tmp_path: Path, files: Any, shrink: Shrink
) -> None:
    args = files("PASS")
    edited(
        tmp_path / side,
        lambda o: o["metrics"][0].update(value=None, nonfinite=number, of=None, stderr=None),
    )
    done = shrink("gate", *args, *RULE, "--json")
    assert done.status == 1
    assert json.loads(done.out)["status"] == "FAIL"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), "0.9", None, True, [0.9]])
def test_a_value_that_json_has_not_is_never_a_pass(
    number: Any, tmp_path: Path, files: Any, shrink: Shrink
) -> None:
    args = files("PASS")
    edited(tmp_path / "b.json", lambda o: o["metrics"][0].update(value=number))
    done = shrink("gate", *args, *RULE)
    assert done.status in {1, 3}
    assert "PASS" not in done.out + done.err


@pytest.mark.parametrize("side", ["a.json", "b.json"])
def test_a_metric_that_one_side_has_not_fails(
    side: str, tmp_path: Path, files: Any, shrink: Shrink
) -> None:
    args = files("PASS")
    edited(tmp_path / side, lambda o: o["metrics"][0].update(name="f1", of=None))
    done = shrink("gate", *args, *RULE)
    assert done.status == 1
    assert done.rows[0]["status"] == "FAIL"
    assert "accuracy" in done.err


def test_an_evaluation_that_failed_fails_the_gate(
    tmp_path: Path, files: Any, shrink: Shrink
) -> None:
    args = files("PASS")
    write(tmp_path / "b.json", [outcome("elmo.shrunk")])
    done = shrink("gate", *args, *RULE, "--max-size", "0.9")
    assert done.status == 1
    assert {row["status"] for row in done.rows} == {"FAIL"}
    assert "it crashed" in done.err


def test_results_of_another_task_or_other_data_fail(
    tmp_path: Path, files: Any, shrink: Shrink
) -> None:
    args = files("PASS")
    found, results = accuracy(right())
    for more in ({"task": "snli"}, {"data": None}, {"protocol": {"batch_size": 1}}):
        write(tmp_path / "b.json", [outcome("b", found)], {"b": results}, **more)
        assert shrink("gate", *args, *RULE).status == 1


@pytest.mark.parametrize("tamper", ["gone", "changed", "cut", "moved"])
def test_per_example_results_that_are_not_those_of_the_run_are_status_3(
    tamper: str, tmp_path: Path, files: Any, shrink: Shrink
) -> None:
    args = files("FAIL")
    name = json.loads((tmp_path / "b.json").read_text())["outcomes"][0]["examples"]["path"]
    examples = tmp_path / name
    lines = examples.read_bytes()
    if tamper == "gone":
        examples.unlink()
    elif tamper == "changed":
        examples.write_bytes(lines.replace(b"0.0", b"1.0", 1))
    elif tamper == "cut":
        examples.write_bytes(lines[:-1])
    else:
        (tmp_path / "b.json").rename(tmp_path / "c.json")
        examples.unlink()
        args = (*args[:-1], str(tmp_path / "c.json"))
    done = shrink("gate", *args, *RULE)
    assert (done.status, done.out) == (3, "")
    assert name in done.err


def test_results_without_examples_and_errors_are_never_a_pass_or_a_fail(
    tmp_path: Path, files: Any, shrink: Shrink
) -> None:
    args = files("FAIL")
    for side in ("a.json", "b.json"):
        edited(tmp_path / side, lambda o: o.update(examples=None))
        edited(tmp_path / side, lambda o: o["metrics"][0].update(stderr=None, of=None))
    assert shrink("gate", *args, *RULE).status == 5


# Which model ------------------------------------------------------------------------------------


def both(tmp_path: Path, *names: str) -> Path:
    found, results = accuracy(right())
    rest = [outcome(name, found) for name in names]
    first = outcome("elmo", found, role="baseline")
    every = dict.fromkeys(("elmo", *names), results)
    return write(tmp_path / "run.json", [first, *rest], every)


def test_one_document_may_hold_both_models(tmp_path: Path, shrink: Shrink) -> None:
    run = both(tmp_path, "small")
    verdict = json.loads(shrink("gate", "--baseline", run, "--candidate", run, "--json").out)
    assert (verdict["baseline"], verdict["candidate"]) == ("elmo", "small")


def test_of_several_models_one_is_named(tmp_path: Path, shrink: Shrink) -> None:
    run = both(tmp_path, "r=10", "r=50")
    args = ("gate", "--baseline", run, "--candidate", run)
    done = shrink(*args)
    assert done.status == 3
    assert "elmo, r=10, r=50" in done.err
    assert done.err.splitlines()[1] == "hint: --candidate-model NAME"
    verdict = json.loads(shrink(*args, "--candidate-model", "r=50", "--json").out)
    assert (verdict["baseline"], verdict["candidate"]) == ("elmo", "r=50")
    args = (*args, "--candidate-model", "r=50", "--baseline-model", "r=10", "--json")
    assert json.loads(shrink(*args).out)["baseline"] == "r=10"
    done = shrink("gate", "--baseline", run, "--candidate", run, "--candidate-model", "r=5")
    assert (done.status, str(run) in done.err) == (3, True)


# The models themselves --------------------------------------------------------------------------

PROGRAM = """
import json, sys
path = sys.argv[1]
if "broken" in path:
    sys.exit("::error::it broke")
lost = 90 if path.endswith("small") else 0
examples = [{"id": str(i), "correct": int(i >= lost)} for i in range(1000)]
accuracy = sum(one["correct"] for one in examples) / 1000
print(json.dumps({"metrics": [{"name": "accuracy", "value": accuracy}], "examples": examples}))
"""


def test_two_models_and_a_task_are_scored_and_compared(
    tmp_path: Path, lstm: Path, artefact: Path, shrink: Shrink, command: list[str]
) -> None:
    program = tmp_path / "score.py"
    program.write_text(PROGRAM)
    task = ("--task", "command", "--command", f"{command[0]} {program} {{path}}")
    args = ("gate", "--baseline", lstm, "--candidate", artefact, *task, *RULE)
    done = shrink(*args, "--max-size", "0.99", "--json")
    assert done.status == 1, done.err
    verdict = json.loads(done.out)
    assert (verdict["baseline"], verdict["candidate"]) == (lstm.name, artefact.name)
    accuracy_, size = verdict["checks"]
    assert (accuracy_["worse"], accuracy_["better"], accuracy_["n"]) == (90, 0, 1000)
    assert size["baseline"] == lstm.stat().st_size
    assert shrink(*args[:4], lstm, *args[5:]).status != 0  # two models of one name
    same = ("--baseline", f"one={lstm}", "--candidate", f"two={lstm}")
    assert shrink("gate", *same, *task, *RULE).status == 0


def test_an_evaluation_that_breaks_fails_with_its_log(
    tmp_path: Path, lstm: Path, shrink: Shrink, command: list[str]
) -> None:
    program, broken = tmp_path / "score.py", tmp_path / "broken"
    program.write_text(PROGRAM)
    broken.write_bytes(lstm.read_bytes())
    task = ("--task", "command", "--command", f"{command[0]} {program} {{path}}")
    done = shrink("gate", "--baseline", lstm, "--candidate", broken, *task, *RULE)
    assert done.status == 1
    assert done.rows[0]["status"] == "FAIL"
    assert "broken: ::error::it broke" in done.err.splitlines()


# Where it goes ----------------------------------------------------------------------------------


def test_reports_are_written_and_a_run_again_replaces_them(
    tmp_path: Path, files: Any, shrink: Shrink
) -> None:
    reports = ("--junit", tmp_path / "gate.xml", "--markdown", tmp_path / "gate.md")
    done = shrink("gate", *files("FAIL"), *RULE, *reports)
    assert done.status == 1
    assert len(list(ET.parse(tmp_path / "gate.xml").iter("failure"))) == 1
    assert "### ckptshrink gate: FAIL" in (tmp_path / "gate.md").read_text()
    assert done.err.splitlines()[-2:] == [
        f"wrote {tmp_path}/gate.xml", f"wrote {tmp_path}/gate.md",
    ]  # fmt: skip
    done = shrink("gate", *files("PASS"), *RULE, *reports)
    assert done.status == 0
    assert not list(ET.parse(tmp_path / "gate.xml").iter("failure"))
    assert "### ckptshrink gate: PASS" in (tmp_path / "gate.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir() if "gate" in p.name) == ["gate.md", "gate.xml"]


@pytest.mark.parametrize("flag", ["--junit", "--markdown"])
@pytest.mark.parametrize("content", [b"# My readme\n", b"\x00", b"<?xml version='1.0'?><page/>"])
def test_a_file_that_is_no_report_is_not_replaced(
    content: bytes, flag: str, tmp_path: Path, files: Any, shrink: Shrink
) -> None:
    args = files("PASS")
    mine, empty = tmp_path / "mine", tmp_path / "empty"
    mine.write_bytes(content)
    empty.touch()  # as mktemp makes it
    done = shrink("gate", *args, *RULE, flag, mine)
    assert (done.status, done.out, mine.read_bytes()) == (4, "", content)
    assert shrink("gate", *args, *RULE, flag, empty).status == 0
    examples = next(tmp_path.glob("a*.jsonl"))
    before = examples.read_bytes()
    assert shrink("gate", *args, *RULE, flag, examples).status == 4
    assert examples.read_bytes() == before


@pytest.mark.parametrize("flag", ["--junit", "--markdown"])
def test_a_report_that_can_not_be_written_is_status_4(
    flag: str, tmp_path: Path, files: Any, unwritable: Path, shrink: Shrink
) -> None:
    for path in (unwritable / "gate.xml", tmp_path / "none" / "gate.xml", tmp_path):
        done = shrink("gate", *files("PASS"), *RULE, flag, path)
        assert done.status == 4
        assert "Traceback" not in done.err
    assert done.out == ""  # before the work
    assert f"hint: give {flag} another file" in done.err


def test_a_report_goes_neither_over_an_input_nor_over_the_other(
    tmp_path: Path, files: Any, shrink: Shrink
) -> None:
    args = files("PASS")
    before = (tmp_path / "b.json").read_bytes()
    for path in (tmp_path / "b.json", tmp_path / "." / "b.json", tmp_path / "x" / ".." / "b.json"):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert shrink("gate", *args, *RULE, "--junit", path).status == 4
    assert (tmp_path / "b.json").read_bytes() == before
    same = ("--junit", tmp_path / "x.xml", "--markdown", tmp_path / "x" / ".." / "x.xml")
    assert shrink("gate", *args, *RULE, *same).status == 4
    assert not (tmp_path / "x.xml").exists()


def test_quiet_says_nothing_and_answers_all_the_same(
    tmp_path: Path, files: Any, shrink: Shrink
) -> None:
    done = shrink("gate", *files("FAIL"), *RULE, "-q", "--junit", tmp_path / "gate.xml")
    assert (done.status, done.err) == (1, "")
    assert done.rows[0]["status"] == "FAIL"


@pytest.fixture
def github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Set what a runner sets; return the files of the summary and the output."""
    summary, output = tmp_path / "summary.md", tmp_path / "output"
    summary.write_text("# tests\n\nall green")
    output.write_text("size=3\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_OUTPUT", str(output))
    return summary, output


@pytest.mark.parametrize("status", EXIT)
def test_github_gets_a_summary_an_output_and_an_annotation(
    status: str, files: Any, shrink: Shrink, github: tuple[Path, Path]
) -> None:
    done = shrink("gate", *files(status), *RULE)
    assert done.status == EXIT[status]
    kind = {"PASS": "notice", "FAIL": "error", "INCONCLUSIVE": "warning"}[status]
    assert [line for line in done.err.splitlines() if line.startswith("::")] == [
        line for line in done.err.splitlines() if line.startswith(f"::{kind} title={status}%3A ")
    ]
    assert "::" not in done.out
    summary, output = (path.read_text() for path in github)
    assert summary.startswith(f"# tests\n\nall green\n\n### ckptshrink gate: {status}\n")
    assert output == f"size=3\nstatus={status}\n"


def test_no_github_tells_it_nothing(files: Any, shrink: Shrink, github: tuple[Path, Path]) -> None:
    done = shrink("gate", *files("FAIL"), *RULE, "--no-github")
    assert done.status == 1
    assert "::" not in done.err
    assert [path.read_text() for path in github] == ["# tests\n\nall green", "size=3\n"]


def test_a_summary_that_is_full_or_can_not_be_written_changes_no_verdict(
    files: Any, shrink: Shrink, github: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, _ = github
    summary.write_bytes(b"x" * ((1 << 20) - 40))
    done = shrink("gate", *files("FAIL"), *RULE)
    assert done.status == 1
    assert summary.stat().st_size == (1 << 20) - 40
    assert "no room" in done.err
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary / "none"))
    monkeypatch.setenv("GITHUB_OUTPUT", str(summary / "none"))
    done = shrink("gate", *files("PASS"), *RULE)
    assert done.status == 0
    assert done.err.count("GitHub is not told") == 2


def test_a_summary_stays_below_what_github_shows(
    tmp_path: Path, shrink: Shrink, github: tuple[Path, Path]
) -> None:
    names = {f"{i} " + "ß|" * 1_500: right(50) for i in range(250)}
    metrics, results = several(names)
    write(tmp_path / "a.json", [outcome("a", *metrics, role="baseline")], {"a": results})
    write(tmp_path / "b.json", [outcome("b", *metrics)], {"b": results})
    args = ("--baseline", tmp_path / "a.json", "--candidate", tmp_path / "b.json")
    done = shrink("gate", *args)
    assert done.status in {0, 5}
    assert 500_000 < github[0].stat().st_size < 1 << 20
    assert sum(line.startswith("::") for line in done.err.splitlines()) <= 20


# Names that are not nice ------------------------------------------------------------------------

NAMES = ("a\x1b[31mb\x07", "a\nb\tc", "##[stop-commands]x", "::error::x", "\u202eppl", "x" * 300)


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_is_text_wherever_it_is_shown(
    name: str, tmp_path: Path, shrink: Shrink, github: tuple[Path, Path]
) -> None:
    found, results = accuracy(right(), name)
    write(tmp_path / "a.json", [outcome(name, found, role="baseline")], {name: results})
    worse, results = accuracy(damaged(right(), 100), name)
    write(tmp_path / "b.json", [outcome(name, worse)], {name: results})
    junit = tmp_path / "gate.xml"
    args = ("--baseline", tmp_path / "a.json", "--candidate", tmp_path / "b.json")
    done = shrink("gate", *args, "--junit", junit)
    assert done.status == 1
    assert len(done.rows) == 1
    for line in (done.out + done.err).splitlines():
        assert line.replace("\t", "").isprintable()
        command = line.lstrip().startswith("::")
        assert command == line.startswith("::error title=FAIL%3A ")
        assert command or "##[" not in line
    ET.parse(junit)
    out = shrink("gate", *args, "--json").out
    assert json.loads(out)["checks"][0]["rule"]["metric"] == name
    assert "##[" not in out


# A real shell -----------------------------------------------------------------------------------


@pytest.fixture
def bash(tmp_path: Path, command: list[str]) -> Iterator[Callable[..., tuple[int, str]]]:
    """Run a line of shell in which ``$GATE`` is the gate with its two files."""

    def run(line: str, files: tuple[str, ...], shell: str = "bash") -> tuple[int, str]:
        words = [*command, "gate", *files, *RULE]
        gate = tmp_path / "gate.sh"
        gate.write_text("#!/bin/sh\nexec " + " ".join(f"'{word}'" for word in words) + ' "$@"\n')
        gate.chmod(0o755)
        done = subprocess.run(
            [shell, *(["-e", "-o", "pipefail"] if shell == "bash" else []), "-c", line],
            env={**os.environ, "GATE": str(gate)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=100,
            check=False,
        )
        return done.returncode, done.stdout

    return run


@pytest.mark.parametrize("status", EXIT)
def test_the_status_gets_through_a_pipe_a_list_and_a_condition(
    status: str, tmp_path: Path, files: Any, bash: Any
) -> None:
    args, code = files(status), EXIT[status]
    assert bash('"$GATE" | tee log', args)[0] == code
    assert (tmp_path / "log").read_text().splitlines()[1].startswith(f"{status}\taccuracy\t")
    assert bash('"$GATE" > log && echo shipped', args) == (code, "shipped\n" * (code == 0))
    found = bash('if "$GATE" -q > log; then echo yes; else echo no $?; fi', args)
    assert found == (0, "yes\n" if code == 0 else f"no {code}\n")
    to_json = '"$GATE" --json | python3 -c "import json, sys; json.load(sys.stdin)"'
    assert bash(to_json, args)[0] == code


def test_the_status_is_that_of_any_shell(files: Any, bash: Any) -> None:
    assert bash('"$GATE" > log 2> log; echo $?', files("INCONCLUSIVE"), shell="sh") == (0, "5\n")


def test_a_reader_that_stops_early_changes_nothing(files: Any, bash: Any) -> None:
    assert bash('"$GATE" | head -0', files("FAIL"))[0] == 1
    assert bash('"$GATE" >&-', files("FAIL"))[0] == 1
    assert bash('"$GATE" 2>&-', files("FAIL"))[0] == 1


def test_files_are_found_from_any_folder(tmp_path: Path, files: Any, program: Shrink) -> None:
    files("FAIL")
    inner = tmp_path / "one" / "two"
    inner.mkdir(parents=True)
    args = ("--baseline", "../../a.json", "--candidate", "../../b.json", "--junit", "gate.xml")
    done = program("gate", *args, *RULE, cwd=inner)
    assert done.status == 1
    assert (inner / "gate.xml").is_file()


def test_the_verdict_is_the_same_at_every_run(tmp_path: Path, shrink: Shrink) -> None:
    rng = np.random.default_rng(2)
    words = rng.integers(5, 30, 300)
    nats = words * rng.normal(4, 0.3, 300)
    for name, noise in (("a", 0.0), ("b", 0.05)):
        found, results = perplexity(nats + noise * rng.normal(1, 1, 300) * words, words)
        role = "baseline" if name == "a" else "variant"
        write(tmp_path / f"{name}.json", [outcome(name, found, role=role)], {name: results})
    args = ("--baseline", tmp_path / "a.json", "--candidate", tmp_path / "b.json", "--json")
    runs = [shrink("gate", *args, "--resamples", "999") for _ in range(3)]
    assert len({(done.status, done.out) for done in runs}) == 1
    other = shrink("gate", *args, "--resamples", "999", "--seed", "1")
    assert other.out != runs[0].out


# Before the run ---------------------------------------------------------------------------------


def test_power_says_how_likely_each_answer_is(shrink: Shrink) -> None:
    from ckptshrink.evaluation.gate.power import detectable, power
    from ckptshrink.evaluation.gate.verdict import Settings

    args = ("--examples", "500,2210", "--disagreement", "5%,0.1", "--max-drop", "accuracy=0.5pp")
    done = shrink("gate", "--power", *args)
    assert done.status == 0
    assert len(done.rows) == 2 * 2 * 5
    for row in done.rows:
        n, share, drop = int(row["n"]), float(row["disagreement"]), float(row["drop_pp"])
        outlook = power(n, drop / 100, share, 0.005, Settings())
        assert float(row["p_fail"]) == outlook.p_fail
        assert float(row["p_pass"]) == outlook.p_pass
        shows = detectable(n, share, 0.005, Settings())
        assert shows is not None
        assert float(row["detectable_pp"]) == 100 * shows
    assert [row["drop_pp"] for row in done.rows[:5]] == ["0.0", "0.5", "1.0", "2.0", "3.0"]
    assert done.err.splitlines()[0].startswith("accuracy, 0.5 pp allowed, 5 % disagreement: ")
    document = json.loads(shrink("gate", "--power", *args, "--json").out)
    assert len(document["rows"]) == 20


def test_power_takes_the_number_of_examples_of_a_baseline(
    tmp_path: Path, files: Any, shrink: Shrink
) -> None:
    args = ("gate", "--power", *files("PASS")[:2])
    assert {(r["n"], r["metric"], r["allowed_pp"]) for r in shrink(*args).rows} == {
        (str(N), "accuracy", "1.0")
    }
    for row in shrink(*args, "--max-drop", "accuracy=2%").rows:
        assert float(row["allowed_pp"]) == pytest.approx(2 * right().mean())
    done = shrink(*args, "--max-drop", "f1=1pp")
    assert (done.status, "there are accuracy" in done.err) == (2, True)


def test_power_leaves_out_what_is_no_share_of_right_answers(tmp_path: Path, shrink: Shrink) -> None:
    found, results = perplexity(np.full(50, 3.0), np.ones(50))
    write(tmp_path / "a.json", [outcome("a", found)], {"a": results})
    done = shrink("gate", "--power", "--baseline", tmp_path / "a.json")
    assert (done.status, done.out) == (3, "")
    assert "no metric that is a share of right answers" in done.err


# Help -------------------------------------------------------------------------------------------


def test_help_imports_nothing_slow(command: list[str]) -> None:
    code = (
        "import sys\nfrom ckptshrink_cli.main import run\nrun(['gate', '-h'])\n"
        "slow = {'torch', 'scipy', 'numpy', 'pydantic', 'rich'} & set(sys.modules)\n"
        "sys.exit(', '.join(slow) or 0)"
    )
    done = subprocess.run([command[0], "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_defaults_in_the_help_are_those_of_the_library(shrink: Shrink) -> None:
    from ckptshrink.evaluation.gate.rules import DEFAULT_PERCENT, DEFAULT_POINTS
    from ckptshrink.evaluation.gate.verdict import Settings
    from ckptshrink_cli.gate_power import DISAGREEMENTS

    text = " ".join(shrink("gate", "-h").out.split())
    settings = Settings()
    assert f"worse than allowed (default {settings.alpha})" in text
    assert f"FAIL for one that is not (default {settings.alarm})" in text
    assert f"Of the bootstrap (default {settings.resamples})" in text
    assert f"{DEFAULT_POINTS:g}pp of a proportion, {DEFAULT_PERCENT:g}% of anything else" in text
    assert ",".join(f"{100 * share:g}%" for share in DISAGREEMENTS) in text
