"""Every way a run can end, and its exit status."""

import errno
import signal
from pathlib import Path

import click
import pytest
from cli_helpers import Shrink

from ckptshrink import errors
from ckptshrink_cli import exit_codes
from ckptshrink_cli import main as program
from ckptshrink_cli.exit_codes import Stopped, status_of


def tree(kind: type[errors.CkptshrinkError]) -> list[type[errors.CkptshrinkError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in tree(child))]


EXPECTED = {
    errors.CheckpointError: 3,
    errors.UnknownFormatError: 3,
    errors.UnsafeCheckpointError: 3,
    errors.CorruptCheckpointError: 3,
    errors.TruncatedPickleError: 3,
    errors.MissingError: 3,
    errors.LayoutError: 3,
    errors.NonFiniteError: 3,
    errors.PlanError: 3,
    errors.NothingMatchedError: 3,
    errors.RankError: 3,
    errors.OutputError: 4,
    errors.ManifestMismatchError: 3,
    errors.EvaluationInputError: 3,
    errors.TransientError: 4,
    errors.WorkerLostError: 4,
    errors.EvaluationError: 1,
}


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: kind.__name__)
def test_every_error_has_its_status(kind: type[errors.CkptshrinkError]) -> None:
    assert status_of(kind("no")) == EXPECTED[kind]


def test_no_error_of_the_tree_is_forgotten() -> None:
    assert set(tree(errors.CkptshrinkError)) - {errors.CkptshrinkError} == set(EXPECTED)


def test_whatever_else_has_its_status() -> None:
    assert status_of(click.UsageError("no")) == 2
    assert status_of(click.BadParameter("no")) == 2
    assert status_of(KeyError("no")) == 70
    assert status_of(MemoryError()) == 70
    assert status_of(Stopped(signal.SIGTERM)) == 143
    assert status_of(Stopped(signal.SIGHUP)) == 129


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(path: Path) -> None:
        raise error

    monkeypatch.setattr("ckptshrink_cli.listing.list_checkpoint", fail)


def test_a_bug_is_one_line_and_a_hint(monkeypatch: pytest.MonkeyPatch, shrink: Shrink) -> None:
    raising(monkeypatch, KeyError("a\nb"))
    done = shrink("inspect", "x")
    assert (done.status, done.out) == (70, "")
    message, hint = done.err.splitlines()
    assert message == r"ckptshrink: a bug of ours: KeyError: 'a\nb'"
    assert hint == "hint: run it again with --debug, and report what it prints"


def test_debug_shows_where_it_came_from(monkeypatch: pytest.MonkeyPatch, shrink: Shrink) -> None:
    raising(monkeypatch, KeyError("x"))
    done = shrink("inspect", "x", "--debug")
    assert done.status == 70
    assert "Traceback (most recent call last):" in done.err
    assert "KeyError" in done.err.splitlines()[-2]


def test_no_traceback_of_an_expected_error_without_debug(shrink: Shrink, tmp_path: Path) -> None:
    done = shrink("inspect", tmp_path / "none.pt")
    assert done.status == 3
    assert "Traceback" not in done.err
    assert "Traceback" in shrink("inspect", tmp_path / "none.pt", "--debug").err


def test_out_of_memory_is_no_bug_to_report(monkeypatch: pytest.MonkeyPatch, shrink: Shrink) -> None:
    raising(monkeypatch, MemoryError())
    done = shrink("inspect", "x")
    assert (done.status, done.err) == (70, "ckptshrink: out of memory\n")


def test_a_machine_that_fails_is_no_bug_to_report(
    monkeypatch: pytest.MonkeyPatch, shrink: Shrink
) -> None:
    raising(monkeypatch, OSError(errno.EIO, "Input/output error"))
    done = shrink("inspect", "x")
    assert (done.status, done.err) == (4, "ckptshrink: the system failed: Input/output error\n")
    raising(monkeypatch, OSError(errno.ENOENT, "No such file or directory"))
    assert shrink("inspect", "x").status == 70


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch, shrink: Shrink) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    done = shrink("inspect", "x")
    assert done.status == 130
    assert done.err.splitlines()[-1] == "ckptshrink: interrupted"


def test_every_issue_of_a_plan_is_a_line_up_to_twenty(
    monkeypatch: pytest.MonkeyPatch, shrink: Shrink
) -> None:
    raising(monkeypatch, errors.PlanError("no", issues=[f"issue {i}" for i in range(23)]))
    lines = shrink("inspect", "x").err.splitlines()
    assert lines[0] == "ckptshrink: no"
    assert lines[1:21] == [f"  issue {i}" for i in range(20)]
    assert lines[21:] == ["  and 3 more"]


def test_an_issue_that_is_the_message_is_said_once(
    monkeypatch: pytest.MonkeyPatch, shrink: Shrink
) -> None:
    raising(monkeypatch, errors.PlanError("no", issues=["no"]))
    assert shrink("inspect", "x").err == "ckptshrink: no\n"


def test_the_help_lists_the_statuses(shrink: Shrink) -> None:
    listed = shrink("--help").out.partition("Exit status:")[2]
    named = [
        exit_codes.DONE, exit_codes.NO, exit_codes.USAGE, exit_codes.INPUT, exit_codes.OUTPUT,
        exit_codes.INCONCLUSIVE, exit_codes.BUG,
    ]  # fmt: skip
    assert all(f"{status} " in listed for status in named)


def test_each_command_says_what_the_list_of_commands_says(shrink: Shrink) -> None:
    for name, text in program.COMMANDS.items():
        assert text in " ".join(shrink(name, "-h").out.split()), name
