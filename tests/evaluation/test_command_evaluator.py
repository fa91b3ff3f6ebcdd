"""The task ``command``: a program of anybody's, and what becomes of it whatever it does."""

import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckptshrink.errors import EvaluationError, EvaluationInputError, PlanError
from ckptshrink.evaluation import program
from ckptshrink.evaluation.command import Command, evaluator
from ckptshrink.evaluation.evaluator import EVALUATORS, Scores, TaskOptions
from ckptshrink.evaluation.run import evaluate
from ckptshrink.evaluation.subjects import Subject, subject_of
from ckptshrink.payload import Compute
from ckptshrink.planning.request import Request, Size, parse_target
from ckptshrink.registry import Registry
from ckptshrink.rewrite import compress

PYTHON = f"{sys.executable} -I -S"
Script = Callable[..., Command]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Return a task that runs a Python script."""

    def make(text: str, arguments: str = "", settings: Any = None, **options: Any) -> Command:
        path = tmp_path / "script.py"
        path.write_text("import json, os, signal, sys, time\n" + textwrap.dedent(text))
        command = f"{PYTHON} {path} {arguments}"
        return evaluator(TaskOptions(settings={"command": command, **(settings or {})}, **options))

    return make


@pytest.fixture
def model(tmp_path: Path) -> Subject:
    path = tmp_path / "-my model {dense}.bin"
    path.write_bytes(b"weights")
    return subject_of(path, any_file=True)


def failed(task: Command, subject: Subject) -> EvaluationError:
    with pytest.raises(EvaluationError) as caught:
        task.score(subject)
    assert "\n" not in str(caught.value)
    return caught.value


def said(scores: Scores) -> dict[str, float]:
    return {metric.name: metric.number for metric in scores.metrics}


# -- what a program is given -----------------------------------------------------------------------


def arguments(task: Command, subject: Subject) -> list[str]:
    """Return the arguments that a program was given; it says them in the log of its failure."""
    error = failed(task, subject)
    found: list[str] = json.loads(error.log.splitlines()[0])
    return found


ARGUMENTS = "print(json.dumps(sys.argv[1:]), file=sys.stderr); sys.exit(1)"


def test_the_path_is_put_where_the_command_says_or_behind_it(
    script: Script, model: Subject
) -> None:
    path = str(model.path)
    assert arguments(script(ARGUMENTS), model) == [path]
    assert arguments(script(ARGUMENTS, "--n 3"), model) == ["--n", "3", path]
    assert arguments(script(ARGUMENTS, "--model={path} 'a b'"), model) == [f"--model={path}", "a b"]
    assert arguments(script(ARGUMENTS, "{path} {dense}"), model) == [path, path]
    assert arguments(script(ARGUMENTS, "{other}"), model) == ["{other}", path]
    assert arguments(script(ARGUMENTS, "';' '$HOME' '*' {path}"), model) == [
        ";",
        "$HOME",
        "*",
        path,
    ]


def test_a_relative_path_is_given_as_an_absolute_one(
    script: Script, model: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.path.parent)
    here = subject_of(Path(model.path.name), any_file=True)
    assert arguments(script(ARGUMENTS), here) == [str(model.path)]


def test_an_artefact_is_restored_where_the_command_asks_for_it(
    fixtures: Path, tmp_path: Path, script: Script
) -> None:
    source = fixtures / "torch" / "awd_lstm_bare.zip.pt"
    compress(source, tmp_path / "small", Request((parse_target("Wh"),), size=Size(rank=2)),
             compute=Compute("cpu", 1))  # fmt: skip
    text = """
        given = sys.argv[1]
        kind = 1.0 if os.path.isdir(given) else 0.0
        print(json.dumps({"loss": kind, "error": os.path.getsize(given)}))
        print(given, file=sys.stderr)
    """
    artefact = subject_of(tmp_path / "small")
    assert said(script(text).score(artefact))["loss"] == 1
    dense = said(script(text, "{dense}").score(artefact))
    assert dense["loss"] == 0
    assert dense["error"] > 50_000
    assert said(script(text, "{dense}").score(subject_of(source)))["error"] == source.stat().st_size
    (given,) = arguments(script(ARGUMENTS, "{dense}"), artefact)
    assert Path(given).name == source.name
    assert not Path(given).exists()
    assert not Path(given).parent.exists()


def test_a_restored_elmo_has_its_options_beside_it(
    fixtures: Path, tmp_path: Path, script: Script
) -> None:
    source = fixtures / "elmo" / "elmo.hdf5"
    compress(source, tmp_path / "small", Request((parse_target("Wh"),), size=Size(rank=2)),
             compute=Compute("cpu", 1))  # fmt: skip
    text = """
        beside = os.listdir(os.path.dirname(sys.argv[1]))
        print(json.dumps({"loss": len(beside), "error": int("options.json" in beside)}))
    """
    task = script(text, "{dense}")
    assert said(task.score(subject_of(tmp_path / "small"))) == {"loss": 2, "error": 1}


def test_a_program_has_the_seed_the_threads_and_no_input(
    script: Script, model: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
        print(json.dumps({
            "loss": int(os.environ["CKPTSHRINK_SEED"]),
            "error": int(os.environ.get("OMP_NUM_THREADS", "-1")),
            "mse": len(sys.stdin.read()),
            "mae": int(os.environ["MINE"]),
        }))
    """
    monkeypatch.setenv("MINE", "5")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = said(script(text, seed=11, threads=3).score(model))
    assert found == {"loss": 11, "error": 3, "mse": 0, "mae": 5}
    assert said(script(text).score(model))["error"] == 7
    assert "CKPTSHRINK_SEED" not in os.environ


def test_the_data_is_hashed_and_the_command_kept_as_given(script: Script, tmp_path: Path) -> None:
    (tmp_path / "dev.txt").write_bytes(b"abc")
    task = script("", "{path}", data=tmp_path / "dev.txt")
    assert (task.data.name, task.data.nbytes) == ("dev.txt", 3)
    assert task.data.sha256.startswith("ba7816bf")
    assert task.protocol == {"command": f"{PYTHON} {tmp_path / 'script.py'} {{path}}"}
    assert script("").data is None
    with pytest.raises(EvaluationInputError, match="there is no such file"):
        script("", data=tmp_path / "none")


# -- what a program answers ------------------------------------------------------------------------


def test_an_answer_is_read_and_what_goes_to_standard_error_is_not(
    script: Script, model: Subject
) -> None:
    text = """
        print("loading " * 100_000, file=sys.stderr)
        print(json.dumps({"metrics": [{"name": "accuracy", "value": 0.5}],
                          "examples": [{"id": "1", "correct": 1}, {"id": "2", "correct": 0}]}))
    """
    scores = script(text).score(model)
    assert said(scores) == {"accuracy": 0.5}
    assert scores.examples.columns["correct"].tolist() == [1, 0]
    settings = {"better": {"speed": "higher"}, "units": {"speed": "1/s"}}
    (metric,) = script('print(json.dumps({"speed": 3}))', settings=settings).score(model).metrics
    assert (metric.better, metric.unit) == ("higher", "1/s")


def test_nonsense_is_a_failure_with_the_log(script: Script, model: Subject) -> None:
    text = """
        print("a warning", file=sys.stderr)
        print("accuracy: 0.99\\x1b[2J")
    """
    error = failed(script(text), model)
    assert "standard output is no single JSON document" in str(error)
    assert error.log.splitlines() == [
        "a warning", "standard output is:", "accuracy: 0.99\\x1b[2J",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message", "log"),
    [
        ('print("{}"); print("no data", file=sys.stderr); sys.exit(3)', "ended with status 3",
         "no data"),
        ('print(json.dumps({"accuracy": 1})); raise ValueError("late")', "ended with status 1",
         "ValueError: late"),
        ('print(json.dumps({"accuracy": 1}), flush=True); os.kill(os.getpid(), signal.SIGSEGV)',
         "was ended by SIGSEGV", '{"accuracy": 1}'),
        ('os.kill(os.getpid(), signal.SIGKILL)', "was ended by SIGKILL", ""),
        ('os.close(1); os.close(2); time.sleep(0.2)', "standard output is empty", ""),
        ('sys.stdout.buffer.write(bytes(range(128, 256)))', "byte 0 is no UTF-8", "output"),
    ],
)  # fmt: skip
def test_a_crash_is_a_failure_with_the_log(
    script: Script, model: Subject, text: str, message: str, log: str
) -> None:
    error = failed(script(text), model)
    assert message in str(error)
    assert log in error.log


def test_a_program_that_takes_too_long_is_killed_with_its_children(
    script: Script, model: Subject, tmp_path: Path
) -> None:
    text = f"""
        import subprocess
        code = "import time; time.sleep(60)"
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", code])
        open({str(tmp_path / "pids")!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
        print("begun", file=sys.stderr, flush=True)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(json.dumps({{"accuracy": 1}}), flush=True)
        time.sleep(60)
    """
    started = time.monotonic()
    error = failed(script(text, timeout=1.0), model)
    assert time.monotonic() - started < 20
    assert str(error).endswith("took longer than 1 seconds")
    assert error.log.splitlines()[0] == "begun"
    for pid in (tmp_path / "pids").read_text().split():
        assert gone(int(pid))


def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":  # killed, and nobody has asked for it
            return True
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return False


def test_a_child_left_behind_is_killed_and_not_waited_for(
    script: Script, model: Subject, tmp_path: Path
) -> None:
    text = f"""
        import subprocess
        code = "import time; time.sleep(60)"
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", code])
        open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
        print(json.dumps({{"accuracy": 0.25}}))
    """
    started = time.monotonic()
    assert said(script(text).score(model)) == {"accuracy": 0.25}
    assert time.monotonic() - started < 20
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_child_that_left_the_session_and_goes_on_talking_is_not_waited_for(
    script: Script, model: Subject, tmp_path: Path
) -> None:
    text = f"""
        if not os.fork():
            os.setsid()
            open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
            stop = time.monotonic() + 30
            while time.monotonic() < stop:
                os.write(2, b"still here " * 1000)
            os._exit(0)
        while not os.path.exists({str(tmp_path / "pid")!r}):
            time.sleep(0.01)
        print(json.dumps({{"accuracy": 0.25}}))
    """
    started = time.monotonic()
    try:
        assert said(script(text).score(model)) == {"accuracy": 0.25}
        assert time.monotonic() - started < 20
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_what_a_program_may_say_is_bounded(
    script: Script, model: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "MOST_BYTES", 1 << 20)
    error = failed(script("while True: print('x' * 10_000)"), model)
    assert str(error).endswith("said more than 1 MiB on its standard output")
    assert len(error.log) < 3_000
    text = """
        for i in range(300_000): print("line", i, file=sys.stderr)
        sys.exit(1)
    """
    error = failed(script(text), model)
    assert error.log.endswith("line 299999")
    assert len(error.log) <= 1 << 16


def test_a_large_answer_is_read_whole(script: Script, model: Subject) -> None:
    text = """
        rows = [{"id": str(i), "correct": i % 2} for i in range(50_000)]
        print(json.dumps({"metrics": [{"name": "accuracy", "value": 0.5}], "examples": rows}))
    """
    assert len(script(text).score(model).examples) == 50_000


# -- commands and options that can not be ----------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "options", "message"),
    [
        (EvaluationInputError, {"command": "no-such-program {path}"}, {}, "no program 'no-such-pr"),
        (EvaluationInputError, {"command": "/etc/passwd {path}"}, {}, "is not executable"),
        (EvaluationInputError, {"command": "cd /tmp"}, {}, "there is no program 'cd'"),
        (PlanError, {"command": "python 'score.py"}, {}, "can't be split .* No closing quotation"),
        (PlanError, {"command": "  "}, {}, "the command is empty"),
        (PlanError, {"command": ""}, {}, "the task command needs one"),
        (PlanError, {}, {}, "the task command needs one"),
        (PlanError, {"comand": "x"}, {}, "has no setting 'comand'"),
        (PlanError, {"command": "cat", "better": {"x": "up"}}, {}, "higher or lower; got 'up'"),
        (PlanError, {"command": "cat", "better": "x=up"}, {}, "better is by name of a metric"),
        (PlanError, {"command": "cat", "units": "x=up"}, {}, "units is by name of a metric"),
        (PlanError, {"command": "cat"}, {"batch_size": 3}, "--batch-size is nothing that a pro"),
        (PlanError, {"command": "cat"}, {"max_examples": 3}, "--max-examples is nothing that"),
        (PlanError, {"command": "cat"}, {"device": "cuda"}, "--device is nothing that"),
        (PlanError, {"command": "cat"}, {"timeout": 0}, "--timeout is above 0 seconds"),
    ],
)
def test_a_command_that_can_not_be_is_refused_before_anything_runs(
    kind: type[Exception], settings: Any, options: Any, message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        evaluator(TaskOptions(settings=settings, **options))
    assert "\n" not in str(caught.value)


def test_a_program_that_can_not_be_started_is_the_users_to_mend(
    tmp_path: Path, model: Subject
) -> None:
    for name, content in (("script", "#!/no/such/interpreter\n"), ("garbage", "\0\1\2")):
        path = tmp_path / name
        path.write_text(content)
        path.chmod(0o755)
        task = evaluator(TaskOptions(settings={"command": f"{path} {{path}}"}))
        with pytest.raises(EvaluationInputError, match="can't be run: "):
            task.score(model)
    task = evaluator(TaskOptions(settings={"command": "{path}"}))
    with pytest.raises(EvaluationInputError, match="can't be run: Permission denied"):
        task.score(model)


def test_a_run_with_a_failure_goes_on_and_says_what_failed(script: Script, tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"1")
    (tmp_path / "bad").write_bytes(b"2")
    task = script("""
        if sys.argv[1].endswith("bad"):
            sys.exit("the model is broken")
        print(json.dumps({"accuracy": 0.75}))
    """)
    subjects = [subject_of(tmp_path / name, any_file=True) for name in ("bad", "good")]
    with task as opened:
        document = evaluate("command", opened, subjects).document
    bad, good = document.outcomes
    assert bad.metrics == ()
    assert bad.failure.reason.endswith("ended with status 1")
    assert bad.failure.log == "the model is broken"
    assert good.metric("accuracy").value == 0.75
    assert good.failure is None
    assert type(document).model_validate_json(document.to_bytes()) == document


# -- evaluators by entry point ---------------------------------------------------------------------

INSTALLED = """
    import dataclasses
    from ckptshrink.evaluation import Scores, examples_of, metric

    @dataclasses.dataclass
    class Length:
        options: object
        data = None
        environment = {"length": "1.0"}

        @property
        def protocol(self):
            return {"bias": self.options.settings["bias"]}

        def score(self, subject):
            n = subject.path.stat().st_size + int(self.options.settings["bias"])
            if n > 100:
                raise RuntimeError("too long")
            return Scores((metric("length", n, better="lower"),))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    def evaluator(options):
        return Length(options)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a package that has an evaluator, as pip would."""
    site = tmp_path / "site"
    info = site / "length_eval-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: length-eval\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[ckptshrink.evaluators]\nlength = length_eval_made_for_a_test:evaluator\n"
        "lm = length_eval_made_for_a_test:evaluator\n"
    )
    (site / "length_eval_made_for_a_test.py").write_text(textwrap.dedent(INSTALLED))
    monkeypatch.syspath_prepend(site)
    return site


def test_an_installed_evaluator_is_a_task_by_its_name(installed: Path, tmp_path: Path) -> None:
    registry = Registry("task", EVALUATORS._builtin, "ckptshrink.evaluators")
    assert "length" in registry.names()
    assert registry.names().count("lm") == 1
    assert registry.get("lm").__module__ == "ckptshrink.evaluation.perplexity", "none is replaced"
    for name, size in (("short", 5), ("long", 99)):
        (tmp_path / name).write_bytes(b"x" * size)
    make = registry.get("length")
    subjects = [subject_of(tmp_path / name, any_file=True) for name in ("short", "long")]
    with make(TaskOptions(settings={"bias": 2})) as task:
        document = evaluate("length", task, subjects[1:], baseline=subjects[0]).document
    short, long = document.outcomes
    assert short.metric("length").value == 7
    assert long.failure.reason == "crashed: RuntimeError: too long"
    assert "length_eval_made_for_a_test.py" in long.failure.log
    assert document.protocol == {"bias": 2}
    assert document.environment == {"length": "1.0"}
    with pytest.raises(PlanError, match="unknown task 'lenght'") as caught:
        registry.get("lenght")
    assert caught.value.hint == "did you mean 'length'?"
