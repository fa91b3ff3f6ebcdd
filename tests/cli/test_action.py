"""The composite action, its script run by bash as a runner would, and what docs/ci.md says."""

import json
import os
import re
import shlex
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from cli_helpers import Shrink
from gate_documents import N, accuracy, damaged, document, outcome, right, several, write

from ckptshrink_cli.main import main

REPO = Path(__file__).resolve().parents[2]
ACTION: dict[str, Any] = yaml.safe_load((REPO / "action.yml").read_text(encoding="utf-8"))
STEPS: dict[str, dict[str, Any]] = {step["name"]: step for step in ACTION["runs"]["steps"]}
_EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


@dataclass(frozen=True)
class Job:
    status: int
    log: str
    outputs: dict[str, str]
    summary: str


def expand(value: str, inputs: dict[str, str], folder: Path) -> str:
    """Return a value with its expressions evaluated: inputs, and the folder of the action."""
    known = {f"inputs.{name}": given for name, given in inputs.items()}
    known["github.action_path"] = str(REPO)
    return _EXPRESSION.sub(lambda found: known[found[1]], value)


@pytest.fixture
def job(tmp_path: Path, command: list[str]) -> Any:
    """Run one step of the action in a workspace of its own."""

    def run(name: str = "Gate", **given: str) -> Job:
        step = STEPS[name]
        temp = tmp_path / "runner"
        tool = temp / "bin" / "ckptshrink"
        tool.parent.mkdir(parents=True, exist_ok=True)
        quoted = " ".join(f"'{word}'" for word in command)
        tool.write_text(f'#!/bin/sh\nexec {quoted} "$@"\n')
        tool.chmod(0o755)
        output, summary = temp / "output", temp / "summary"
        output.write_text("")
        summary.write_text("")
        inputs = {key: str(spec.get("default", "")) for key, spec in ACTION["inputs"].items()}
        inputs |= {"install": "none"}
        inputs |= {key.replace("_", "-"): value for key, value in given.items()}
        assert set(inputs) == set(ACTION["inputs"])
        script = temp / "script.sh"
        script.write_text(step["run"])
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)],
            cwd=tmp_path,
            env={
                **os.environ,
                **{k: expand(v, inputs, tmp_path) for k, v in step["env"].items()},
                "PATH": f"{tool.parent}:{os.environ['PATH']}",
                "GITHUB_ACTIONS": "true",
                "GITHUB_OUTPUT": str(output),
                "GITHUB_STEP_SUMMARY": str(summary),
                "RUNNER_TEMP": str(temp),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=100,
            check=False,
        )
        lines = output.read_text().splitlines()
        outputs = dict(line.split("=", 1) for line in lines)  # the last one holds
        return Job(done.returncode, done.stdout, outputs, summary.read_text())

    return run


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    return document(tmp_path / "a.json", right(), name="elmo", role="baseline")


def test_the_action_declares_what_it_uses() -> None:
    assert ACTION["runs"]["using"] == "composite"
    for spec in ACTION["inputs"].values():
        assert spec["description"]
        assert spec.get("required") or "default" in spec
    text = (REPO / "action.yml").read_text(encoding="utf-8")
    used = set(re.findall(r"inputs\.([\w-]+)", text))
    assert used == set(ACTION["inputs"])
    assert ACTION["outputs"]["status"]["value"] == "${{ steps.gate.outputs.status }}"
    assert STEPS["Gate"]["id"] == "gate"


@pytest.mark.parametrize("step", STEPS)
def test_every_step_is_bash_and_has_no_expression_in_its_script(step: str) -> None:
    assert STEPS[step]["shell"] == "bash"
    assert "${{" not in STEPS[step]["run"]
    variables = set(re.findall(r"\$\{?(GATE_\w+)", STEPS[step]["run"]))
    assert variables == set(STEPS[step]["env"])


def test_the_gate_passes_every_option_that_it_has_an_input_for(shrink: Shrink) -> None:
    known = set(re.findall(r"--[a-z-]+", shrink("gate", "-h").out))
    passed = set(re.findall(r"--[a-z-]+", STEPS["Gate"]["run"]))
    assert passed <= known
    others = {"python", "install", "report-only"}
    assert passed == {f"--{name}" for name in set(ACTION["inputs"]) - others} | {"--exit-zero"}


@pytest.mark.parametrize(
    ("worse", "n", "code", "status"),
    [(0, N, 0, "PASS"), (100, N, 1, "FAIL"), (1, 60, 5, "INCONCLUSIVE")],
)
def test_the_step_ends_as_the_gate_does(
    worse: int, n: int, code: int, status: str, tmp_path: Path, job: Any
) -> None:
    document(tmp_path / "a.json", right(n), name="elmo", role="baseline")
    document(tmp_path / "b.json", damaged(right(n), worse), name="elmo.shrunk")
    done = job(
        baseline="a.json", candidate="b.json", max_drop="accuracy=1pp\n", junit="gate.xml",
        markdown="gate.md",
    )  # fmt: skip
    assert (done.status, done.outputs) == (code, {"status": status}), done.log
    assert f"### ckptshrink gate: {status}" in done.summary
    kind = {"PASS": "notice", "FAIL": "error", "INCONCLUSIVE": "warning"}[status]
    assert f"\n::{kind} title={status}%3A elmo.shrunk" in f"\n{done.log}"
    (case,) = ET.parse(tmp_path / "gate.xml").iter("testcase")
    assert case.attrib["name"] == "sst5: elmo.shrunk: accuracy"
    assert (tmp_path / "gate.md").read_text() in done.summary


def test_several_rules_a_line_each_with_a_size(tmp_path: Path, job: Any) -> None:
    metrics, results = several({"accuracy": right(), "f 1": right()})
    write(tmp_path / "a.json", [outcome("a", *metrics, role="baseline")], {"a": results})
    write(tmp_path / "b.json", [outcome("b", *metrics)], {"b": results})
    done = job(
        baseline="a.json", candidate="b.json", max_drop="accuracy=1pp\nf 1=1pp\n", max_size="0.4",
        junit="gate.xml",
    )  # fmt: skip
    assert (done.status, done.outputs) == (1, {"status": "FAIL"})
    cases = {
        case.attrib["name"]: len(case) for case in ET.parse(tmp_path / "gate.xml").iter("testcase")
    }
    assert cases == {"sst5: b: accuracy": 0, "sst5: b: f 1": 0, "sst5: b: size": 1}


def test_a_report_never_fails_the_step(baseline: Path, tmp_path: Path, job: Any) -> None:
    document(tmp_path / "b.json", damaged(right(), 200))
    done = job(baseline="a.json", candidate="b.json", max_drop="accuracy=1pp", report_only="true")
    assert (done.status, done.outputs) == (0, {"status": "FAIL"})


def test_no_verdict_is_an_error_and_never_a_pass(baseline: Path, job: Any) -> None:
    done = job(baseline="a.json", candidate="none.json", max_drop="accuracy=1pp")
    assert (done.status, done.outputs) == (3, {"status": "ERROR"})
    done = job(baseline="a.json", candidate="a.json", max_drop="accuracy=x", report_only="true")
    assert (done.status, done.outputs) == (2, {"status": "ERROR"})


HOSTILE = (
    "$(touch pwned)",
    "`touch pwned`",
    '"; touch pwned; "',
    "' ; touch pwned ; '",
    "a && touch pwned",
    "-q --exit-zero",
    "--exit-zero",
    "*",
    "$GITHUB_OUTPUT",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_input_is_run_or_taken_for_another_option(
    text: str, baseline: Path, tmp_path: Path, job: Any
) -> None:
    found, results = accuracy(right(), text)
    write(tmp_path / "a.json", [outcome(text, found, role="baseline")], {text: results})
    worse, results = accuracy(damaged(right(), 200), text)
    write(tmp_path / "b.json", [outcome(text, worse)], {text: results})
    done = job(
        baseline="a.json", candidate="b.json", max_drop=f"{text}=1pp", candidate_model=text,
        baseline_model=text, junit=f"{text}.xml".replace("/", "_"),
    )  # fmt: skip
    assert (done.status, done.outputs) == (1, {"status": "FAIL"}), done.log
    assert (tmp_path / f"{text}.xml").is_file()
    assert not (tmp_path / "pwned").exists()


def test_a_metric_called_like_a_command_of_the_runner_gives_it_none(
    tmp_path: Path, job: Any
) -> None:
    for name in ("::set-output name=status::PASS", "##[set-output name=status]PASS"):
        found, results = accuracy(right(), name)
        write(tmp_path / "a.json", [outcome("a", found, role="baseline")], {"a": results})
        worse, results = accuracy(damaged(right(), 200), name)
        write(tmp_path / "b.json", [outcome("b", worse)], {"b": results})
        done = job(baseline="a.json", candidate="b.json")
        assert (done.status, done.outputs) == (1, {"status": "FAIL"})
        commands = [line for line in done.log.splitlines() if line.lstrip().startswith("::")]
        assert [line.split(" ")[0] for line in commands] == ["::error"]
        assert not any("##[" in line for line in done.log.splitlines() if line not in commands)


def test_the_installing_step_makes_an_environment_of_its_own(tmp_path: Path, job: Any) -> None:
    calls = tmp_path / "calls"
    python = tmp_path / "my python"
    python.write_text(
        f'#!/bin/sh\necho "$@" >> {calls}\nmkdir -p "$3/bin"\n'
        f'printf \'#!/bin/sh\\necho "$@" >> {calls}\\n\' > "$3/bin/python"\n'
        'chmod +x "$3/bin/python"\n'
    )
    python.chmod(0o755)
    done = job("Install ckptshrink", python=str(python), install="")
    assert done.status == 0, done.log
    made, installed = calls.read_text().splitlines()
    assert made == f"-m venv {tmp_path}/runner/ckptshrink-gate"
    assert installed == f"-m pip install --quiet {REPO}"
    job("Install ckptshrink", python=str(python), install="ckptshrink==9.9; touch pwned")
    assert calls.read_text().splitlines()[-1].endswith("ckptshrink==9.9; touch pwned")
    assert not (tmp_path / "pwned").exists()


# docs/ci.md -------------------------------------------------------------------------------------

DOC = (REPO / "docs" / "ci.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", DOC, re.DOTALL)
    assert found is not None, name
    return found[1]


def commands() -> list[list[str]]:
    """Return every ckptshrink command of the page, from its workflows and shells."""
    workflow, gitlab = yaml.safe_load(block("workflow")), yaml.safe_load(block("gitlab"))
    lines = [step.get("run", "") for step in workflow["jobs"]["gate"]["steps"]]
    lines += gitlab["gate"]["script"]
    lines += [*block("shell").splitlines(), block("power").removeprefix("$ ")]
    return [
        shlex.split(line.split(" | ")[0])[1:] for line in lines if line.startswith("ckptshrink")
    ]


def test_the_workflow_of_the_docs_uses_the_action_as_it_is() -> None:
    workflow = yaml.safe_load(block("workflow"))
    assert workflow["permissions"] == {"contents": "read"}
    (gate,) = (s for s in workflow["jobs"]["gate"]["steps"] if s.get("id") == "gate")
    required = {name for name, spec in ACTION["inputs"].items() if spec.get("required")}
    assert required <= set(gate["with"]) <= set(ACTION["inputs"])
    (step,) = yaml.safe_load(block("steps"))
    assert set(re.findall(r"steps\.gate\.outputs\.(\w+)", step["if"])) == set(ACTION["outputs"])
    assert yaml.safe_load(block("gitlab"))["gate"]["allow_failure"]["exit_codes"] == 5


def test_the_commands_of_the_docs_are_understood() -> None:
    names = []
    for name, *args in commands():
        # click keeps the help option that it made first: the parent must be as it is in a run
        parent = click.Context(main, **main.context_settings)
        command = main.get_command(parent, name)
        assert command is not None
        command.make_context(name, args, parent=parent)  # reads the options, and runs nothing
        names.append(name)
    assert set(names) == {"compress", "eval", "gate"}


def test_the_table_of_the_docs_is_read(tmp_path: Path) -> None:
    from ckptshrink.evaluation.gate.table import read_gate_table

    (tmp_path / "gate.toml").write_text(block("table"))
    rules, settings = read_gate_table(tmp_path / "gate.toml")
    assert [(rule.kind, rule.metric) for rule in rules] == [
        ("max_rise", "ppl"), ("max_size", "size")
    ]  # fmt: skip
    assert (settings.alpha, settings.alarm) == (0.05, 0.01)


def test_the_power_of_the_docs_is_what_the_command_prints(shrink: Shrink) -> None:
    done = shrink(*commands()[-1], "--json")
    found = {(row["n"], row["drop_pp"]): row for row in json.loads(done.out)["rows"]}
    lines = re.findall(r"^\| ([\d,]+) \| (.*) \|$", DOC, re.MULTILINE)
    assert [int(n.replace(",", "")) for n, _ in lines] == sorted({n for n, _ in found})
    for n, cells in lines:
        size = int(n.replace(",", ""))
        expected = [
            found[size, 0.0]["p_pass"],
            *(found[size, d]["p_fail"] for d in (1.0, 2.0, 3.0)),
        ]
        shown = [f"{100 * p:.1f} %" for p in expected]
        shown.append(f"{found[size, 0.0]['detectable_pp']:.2f} pp")
        assert cells.split(" | ") == shown
    assert "3,134 examples" in done.err
    assert "3,134 examples" in DOC
    half = shrink(*commands()[-1][:-1], "accuracy=0.5pp")
    assert "12,416 examples" in half.err
    assert "12,416" in DOC
