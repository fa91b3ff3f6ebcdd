"""A zoo's tasks and gate: what is scored, what a change redoes of it, what the gate says."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from zoo_helpers import Zoo, lstm

from ckptshrink.zoo.records import Record, read_record

PROGRAM = """
echo "$1" >> {folder}/calls
case "$1" in *.shrunk) cat {folder}/artefact.json ;; *) cat {folder}/source.json ;; esac
"""

NAME = "zoo/a.safetensors"

TEXT = """
[defaults]
target = "Wh"
rank = 3
[[model]]
path = "zoo/a.safetensors"
[model.tasks.mine]
task = "command"
command = "sh {folder}/score.sh {{path}}"
"""

GATE = """
[model.gate.metrics.accuracy]
max_drop = "5pp"
reason = "as much as nobody notices"
"""


@pytest.fixture
def scored(tmp_path: Path) -> Zoo:
    lstm(tmp_path / NAME)
    program(tmp_path)
    return Zoo(tmp_path, TEXT.format(folder=tmp_path) + GATE)


def program(folder: Path, right: int = 200, n: int = 200) -> None:
    """Write a program that scores a source as without fault, and an artefact as it is told."""
    for name, score in (("source", n), ("artefact", right)):
        metric = {"name": "accuracy", "value": score / n, "unit": "fraction", "better": "higher"}
        examples = [{"id": f"{i}", "accuracy": int(i < score)} for i in range(n)]
        document = {"metrics": [metric | {"n": n}], "examples": examples}
        (folder / f"{name}.json").write_text(json.dumps(document))
    (folder / "score.sh").write_text(PROGRAM.format(folder=folder))


def calls(zoo: Zoo) -> list[str]:
    """Return which of the two were scored since this was asked last."""
    file = zoo.folder / "calls"
    found = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return ["artefact" if line.endswith(".shrunk") else "source" for line in found]


def record(zoo: Zoo) -> Record:
    found = read_record(zoo.out / "reports" / NAME)
    assert found is not None
    return found


def test_both_are_scored_and_the_gate_decides(scored: Zoo) -> None:
    ran = scored.run()
    assert ran.totals.passed, record(scored)
    assert calls(scored) == ["source", "artefact"]
    found = record(scored)
    assert found.tasks["mine"].baseline[0].number == 1.0
    assert found.gate is not None
    (verdict,) = found.gate.verdicts
    assert (verdict.status, verdict.task) == ("PASS", "mine")
    row = json.loads((scored.out / "zoo.json").read_text())["models"][0]
    assert (row["gate"], row["metrics"]) == ("PASS", "mine accuracy 1 → 1")


@pytest.mark.parametrize(("right", "status"), [(100, "FAIL"), (192, "INCONCLUSIVE"), (200, "PASS")])
def test_a_model_that_is_not_good_enough_is_no_success(
    scored: Zoo, right: int, status: str
) -> None:
    program(scored.folder, right)
    ran = scored.run()
    assert ran.totals.passed is (status == "PASS")
    assert ran.totals.not_good_enough == (status != "PASS")
    found = record(scored)
    assert found.gate is not None
    assert found.gate.verdicts[0].status == status
    assert scored.run().names("started") == []


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        (lambda z: z.text.replace("rank = 3", "rank = 4"), ["artefact"]),
        (lambda z: z.text.replace("5pp", "6pp"), []),
        (lambda z: z.text.replace(GATE, ""), []),
        (lambda z: z.text + '[model.gate.size]\nmax = 0.9\nreason = "room"\n', []),
        (lambda z: z.text.replace('task = "command"', 'task = "command"\nseed = 1'),
         ["source", "artefact"]),
        (lambda z: z.text.replace("score.sh", "./score.sh"), ["source", "artefact"]),
        (lambda z: z.text.replace("tasks.mine", "tasks.other"), ["source", "artefact"]),
    ],
)  # fmt: skip
def test_a_change_redoes_what_depends_on_it(
    scored: Zoo, change: Callable[[Zoo], str], redone: list[str]
) -> None:
    scored.run()
    artefact = scored.out / f"{NAME}.shrunk"
    before = artefact.stat().st_ino
    calls(scored)
    scored.text = change(scored)
    ran = scored.run()
    assert ran.names("started") == [NAME]
    assert calls(scored) == redone
    assert (artefact.stat().st_ino == before) is (redone != ["artefact"])
    assert scored.run().names("started") == []


@pytest.mark.parametrize("file", ["mine.json", "mine.baseline.examples.jsonl"])
def test_scores_that_were_changed_are_made_again(scored: Zoo, file: str) -> None:
    scored.run()
    calls(scored)
    path = scored.out / "reports" / NAME / file
    path.write_text(path.read_text().replace("1", "2", 1))
    ran = scored.run()
    assert ran.names("started") == [NAME]
    assert calls(scored) == ["source", "artefact"]
    assert ran.totals.passed


def test_a_task_that_fails_is_the_models_failure_and_keeps_its_log(scored: Zoo) -> None:
    (scored.folder / "score.sh").write_text("echo no such dictionary >&2; exit 3\n")
    ran = scored.run()
    assert ran.totals.failed == 1
    found = record(scored)
    assert found.failed is not None
    assert found.failed.step == "mine"
    assert found.size is not None
    log = (scored.out / "reports" / NAME / "log.txt").read_text()
    assert "no such dictionary" in log
    # the artefact is there, and what failed at its scores is not tried until something changes
    assert scored.run().names("started") == []
    program(scored.folder)
    assert scored.run(failed=True).totals.passed


def test_a_gate_of_the_size_alone_needs_no_task(scored: Zoo) -> None:
    base = TEXT.format(folder=scored.folder).partition("[model.tasks")[0]
    for most, status in (("150%", "done"), ("1%", "not good enough")):
        scored.text = f'{base}[model.gate.size]\nmax = "{most}"\nreason = "room"\n'
        scored.run()
        assert record(scored).status == status


def test_a_rule_that_is_of_no_task_fails(scored: Zoo) -> None:
    scored.text = scored.text.replace("metrics.accuracy", "metrics.acuracy")
    scored.run()
    found = record(scored)
    assert found.gate is not None
    assert "did you mean accuracy" in found.gate.verdicts[0].checks[0].because
    assert found.status == "not good enough"


def test_a_rule_may_be_of_one_task_by_its_name(scored: Zoo) -> None:
    scored.text = scored.text.replace("metrics.accuracy", 'metrics."mine.accuracy"')
    assert scored.run().totals.passed
