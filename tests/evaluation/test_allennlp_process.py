"""A worker process that misbehaves: what is said of it, and that nothing of it is left."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ckptshrink.errors import EvaluationError, EvaluationInputError
from ckptshrink.evaluation.downstream.process import PROTOCOL, RefusedError, Worker

START = f"""
import json, os, signal, subprocess, sys, time
def say(number, **result):
    print(json.dumps(dict(result, id=number)), flush=True)
def hello():
    say(0, ok={{"protocol": {PROTOCOL}}})
def asked():
    return json.loads(sys.stdin.readline())
"""

Fake = Callable[[str], Path]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """Return a maker of interpreters that run a given program, whatever they are told to run."""

    def make(program: str) -> Path:
        script = tmp_path / "program.py"
        script.write_text(START + program)
        python = tmp_path / "python"
        command = shlex.join([sys.executable, "-S", "-E", str(script)])
        python.write_text(f"#!/bin/sh\nexec {command}\n")
        python.chmod(0o755)
        return python

    return make


def gone(pid: int) -> bool:
    """Return whether a process is gone, or only waits to be buried by init."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        except NotADirectoryError:  # no /proc on this system
            with suppress(ProcessLookupError):
                os.kill(pid, 0)
                time.sleep(0.02)
                continue
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_requests_are_answered_in_turn(fake: Fake, tmp_path: Path) -> None:
    program = """
hello()
for _ in range(2):
    request = asked()
    say(request["id"], ok={"got": request})
"""
    worker = Worker(fake(program), tmp_path, threads=3)
    assert worker.about == {"protocol": PROTOCOL}
    assert worker.ask("one", x=[1, None])["got"] == {"id": 1, "do": "one", "x": [1, None]}
    assert worker.ask("two", timeout=10)["got"]["id"] == 2
    worker.close()
    worker.close()
    assert not worker.alive


def test_the_environment_makes_two_runs_alike(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/of/another/python")
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    worker = Worker(fake("hello()\nsay(asked()['id'], ok=dict(os.environ))"), tmp_path, threads=3)
    said = worker.ask("environment")
    worker.close()
    assert said["PYTHONHASHSEED"] == "0"
    assert said["OMP_NUM_THREADS"] == said["MKL_NUM_THREADS"] == "3"
    assert said["HF_HUB_OFFLINE"] == said["TRANSFORMERS_OFFLINE"] == said["TQDM_DISABLE"] == "1"
    assert not {"PYTHONPATH", "PYTHONWARNINGS"} & set(said)


def test_what_is_refused_names_its_kind(fake: Fake, tmp_path: Path) -> None:
    program = """
hello()
say(asked()["id"], error={"kind": "data", "message": "line 3\\x1b[31m"})
time.sleep(60)
"""
    worker = Worker(fake(program), tmp_path)
    with pytest.raises(RefusedError, match=r"line 3\\x1b\[31m") as caught:
        worker.ask("score")
    assert caught.value.kind == "data"
    assert not worker.alive


FAILURES = {
    "crash": ("print('the cause', file=sys.stderr); sys.exit(3)",
              "the worker ended with status 3: the cause"),
    "silent end": ("sys.exit(0)", "the worker ended with status 0"),
    "killed": ("os.kill(os.getpid(), 9)", r"was ended by SIGKILL \(out of memory\?\)"),
    "aborted": ("os.abort()", "was ended by SIGABRT"),
    "hangs": ("time.sleep(60)", r"took more than 0\.5 s \(score\)"),
    "hangs in a line": ("print('{', end='', flush=True); time.sleep(60)", "took more than"),
    "trickles": ("while True: os.write(1, b'x'); time.sleep(0.01)", r"took more than 0\.5 s"),
    "no json": ("print('Epoch 1 of 3', flush=True); time.sleep(60)",
                "answered nonsense: Epoch 1 of 3"),
    "no object": ("print('[1, 2]', flush=True); time.sleep(60)", "answered nonsense"),
    "binary": ("os.write(1, b'\\xff\\x00\\x1b[2J\\n'); time.sleep(60)", "answered nonsense"),
    "another id": ("say(7, ok={}); time.sleep(60)", "answered nonsense"),
    "neither": ("say(1); time.sleep(60)", "answered nonsense"),
    "both": ("say(1, ok={}, error={'kind': 'data', 'message': ''}); time.sleep(60)", "nonsense"),
    "nested": ("print('[' * 100_000, flush=True); time.sleep(60)", "answered nonsense"),
    "endless": ("while True: os.write(1, b'x' * 65536)", "more than any answer has"),
    "failure": ("say(1, error={'kind': 'failure', 'message': 'RuntimeError: no'})",
                "AllenNLP failed: RuntimeError: no"),
    "closed": ("os.close(1); time.sleep(60)", "the worker closed its output"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_a_worker_that_fails_is_ended_and_said_in_one_line(
    name: str, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptshrink.evaluation.downstream.process._END_SECONDS", 0.5)
    program, message = FAILURES[name]
    program = f"hello()\nasked()\nprint('in the log', file=sys.stderr, flush=True)\n{program}\n"
    worker = Worker(fake(program), tmp_path)
    started = time.monotonic()
    with pytest.raises(EvaluationError, match=message) as caught:
        worker.ask("score", timeout=0.5 if "took more" in message else 30)
    assert time.monotonic() - started < 20
    assert str(caught.value).isprintable()
    assert "in the log" in caught.value.log
    assert not worker.alive
    with pytest.raises(EvaluationError):
        worker.ask("score")


def test_the_end_of_a_long_log_is_kept_without_control_characters(
    fake: Fake, tmp_path: Path
) -> None:
    program = """
hello()
asked()
for k in range(100_000):
    print(f"\\rline {k}\\x1b[2J", file=sys.stderr)
sys.exit(1)
"""
    worker = Worker(fake(program), tmp_path)
    with pytest.raises(EvaluationError) as caught:
        worker.ask("score")
    assert len(caught.value.log) < 200_000
    assert caught.value.log.endswith(r"line 99999\x1b[2J")
    assert all(line.isprintable() for line in caught.value.log.splitlines())


def test_nothing_that_a_worker_started_is_left(fake: Fake, tmp_path: Path) -> None:
    program = """
hello()
request = asked()
child = subprocess.Popen(["sleep", "600"])
say(request["id"], ok={"pids": [os.getpid(), child.pid]})
asked()
sys.exit(1) if "crash" in sys.argv[0] else time.sleep(600)
"""
    worker = Worker(fake(program), tmp_path)
    pids = worker.ask("start")["pids"]
    with pytest.raises(EvaluationError):
        worker.ask("hang", timeout=0.2)
    assert all(map(gone, pids))

    worker = Worker(fake(program.replace('"crash" in sys.argv[0]', "True")), tmp_path)
    pids = worker.ask("start")["pids"]
    with pytest.raises(EvaluationError, match="status 1"):
        worker.ask("crash")
    assert all(map(gone, pids))


def test_a_worker_that_does_not_end_is_ended(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptshrink.evaluation.downstream.process._END_SECONDS", 0.2)
    program = "hello()\nsay(asked()['id'], ok={'pid': os.getpid()})\ntime.sleep(600)"
    worker = Worker(fake(program), tmp_path)
    pid = worker.ask("pid")["pid"]
    worker.close()
    assert gone(pid)


def test_an_answer_that_came_too_late_is_not_the_next_ones(fake: Fake, tmp_path: Path) -> None:
    worker = Worker(fake("hello()\nwhile True: say(asked()['id'] - 1, ok={})"), tmp_path)
    with pytest.raises(EvaluationError, match="nonsense"):
        worker.ask("one")


# -- interpreters --------------------------------------------------------------------------------

BAD_STARTS = {
    "no allennlp": (
        "say(0, error={'kind': 'environment', 'message': \"No module named 'allennlp'\"})",
        "can't run AllenNLP: No module named 'allennlp'",
    ),
    "no worker": ("print('Python 9')", "does not run the worker: the worker answered nonsense"),
    "nothing": ("", "does not run the worker: the worker ended with status 0"),
    "syntax": (
        "print('SyntaxError: invalid syntax', file=sys.stderr); sys.exit(1)",
        "ended with status 1: SyntaxError: invalid syntax",
    ),
    "another version": ("say(0, ok={'protocol': -1})", "is not a worker of this version"),
}


@pytest.mark.parametrize("name", BAD_STARTS)
def test_an_interpreter_that_can_not_run_it_is_an_input_error(
    name: str, fake: Fake, tmp_path: Path
) -> None:
    program, message = BAD_STARTS[name]
    python = fake(program)
    with pytest.raises(EvaluationInputError, match=message) as caught:
        Worker(python, tmp_path)
    assert caught.value.path == str(python)
    assert caught.value.hint is None or "allennlp==2.10.1" in caught.value.hint


def test_a_worker_killed_while_it_starts_is_a_failure(fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="ended by SIGKILL"):
        Worker(fake(f"os.kill(os.getpid(), {int(signal.SIGKILL)})"), tmp_path)


def test_an_interpreter_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    text = tmp_path / "python"
    text.write_text("not a program")
    for python in (tmp_path / "nothing", text, tmp_path, "no-such-python-3"):
        with pytest.raises(EvaluationInputError, match="there is no such interpreter"):
            Worker(python, tmp_path)
    text.chmod(0o755)
    with pytest.raises(EvaluationInputError, match="can't be started: Exec format error"):
        Worker(text, tmp_path)


def test_an_interpreter_may_be_named(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake("hello()").rename(tmp_path / "my-python")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    Worker("my-python", tmp_path).close()
